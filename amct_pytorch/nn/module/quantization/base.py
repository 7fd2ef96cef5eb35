"""What the quantized modules have in common.

In training they fake-quantize input and weight as the learned quantizers do; in evaluation they
compute what their ONNX export computes in QuantizeLinear and DequantizeLinear nodes. The float
weight and bias stay as they are, under their own names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from ....layers.base import Processed
from ....layers.channels import channels_first, channels_restored
from ....layers.gradient import with_gradient_of
from ....layers.integers import is_transposed
from ....layers.learned_range import LearnedRange
from ....layers.learned_weight import LearnedWeight, WeightOptions
from ....layers.range_init import RangeOptions
from ....layers.run import run_layer
from ....ops.fake_quantize import fake_quantize
from .config import DataConfig, ModuleConfig, read_config
from .qdq import quantize_dequantize

CODES = {8: torch.int8, 16: torch.int16}


class QuantizedInputs(LearnedRange, Processed):
    """A module with quantized inputs that can be exported."""

    def add_input(self, config: DataConfig, prefix: str = "acts") -> None:
        """Registers the range of one input and its factors as they are exported."""
        options = RangeOptions(
            config.num_bits, config.batch_num, config.fixed_min, config.asymmetric, config.clips
        )
        self.add_range(type(self).__name__, options, prefix)
        offset = torch.zeros((), dtype=CODES[config.num_bits])
        self.register_buffer(f"{prefix}_offset_deploy", offset)
        self._prefixes = (*self.__dict__.get("_prefixes", ()), prefix)

    def quantized(self, x: Tensor, prefix: str = "acts") -> Tensor:
        """`x` fake-quantized, in each mode as described at the top of the file."""
        if torch.onnx.is_in_onnx_export():
            self._check_exportable(prefix)
            scale, offset = (getattr(self, f"{prefix}_{n}") for n in ("scale", "offset_deploy"))
            return quantize_dequantize(x, scale, offset, None)
        if torch.compiler.is_exporting():  # the newer exporter tries again in other ways
            self._check_found(prefix)
        self.observe_input(x, prefix)
        if self.training:
            return self.quantize_input(x, prefix)
        scale, offset = self.range_factors(prefix)
        self._keep(prefix, scale, offset)
        exact = fake_quantize(x.detach(), scale, offset, self.range_init(prefix).options.num_bits)
        if not torch.is_grad_enabled():
            return exact
        return with_gradient_of(exact, self.quantize_input(x, prefix))

    def train(self, mode: bool = True) -> Self:
        """Leaving training mode settles the factors that an export will have."""
        super().train(mode)
        if not mode:
            self.settle()
        return self

    @torch.no_grad()
    def settle(self) -> None:
        """Makes the factors for export those of the present parameters."""
        for prefix in self._prefixes:
            self._keep(prefix, *self.range_factors(prefix))

    @torch.no_grad()
    def _keep(self, prefix: str, scale: Tensor, offset: Tensor) -> None:
        getattr(self, f"{prefix}_scale").copy_(scale)
        getattr(self, f"{prefix}_offset").copy_(offset)
        getattr(self, f"{prefix}_offset_deploy").copy_(offset)

    def _check_exportable(self, prefix: str) -> None:
        self._check_found(prefix)
        if self.training:
            raise RuntimeError(f"{type(self).__name__}: call model.eval() before torch.onnx.export")

    def _check_found(self, prefix: str) -> None:
        name, init = type(self).__name__, self.range_init(prefix)
        if not init.done:
            raise RuntimeError(
                f"{name}: there are no quantization factors yet: it needs batch_num = "
                f"{init.options.batch_num} forwards before export"
            )


class QuantizedForm(QuantizedInputs):
    """The quantized form of a torch layer; subclasses are also a subclass of `FLOAT`."""

    FLOAT: ClassVar[type[nn.Module]]

    @classmethod
    def from_float(cls, mod: nn.Module, config: Mapping[str, Any] | None = None) -> Self:
        """The quantized form of a float layer, whose weight and bias it shares.

        Raises TypeError for a module of another type, and as the constructor does.
        """
        if not isinstance(mod, cls.FLOAT) or isinstance(mod, Processed):
            raise TypeError(
                f"{cls.__name__}.from_float: expected a torch.nn.{cls.FLOAT.__name__}, got "
                f"{type(mod).__name__}"
            )
        if torch.nn.utils.parametrize.is_parametrized(mod):
            raise TypeError(
                f"{cls.__name__}.from_float: expected plain parameters, got parametrized ones; "
                "torch.nn.utils.parametrize.remove_parametrizations makes them plain"
            )
        layer = cls.__new__(cls)
        containers = (dict, set)
        for key, value in mod.__dict__.items():
            layer.__dict__[key] = copy.copy(value) if isinstance(value, containers) else value
        layer.add_quantizers(config)
        return layer

    def add_quantizers(self, config: Mapping[str, Any] | None) -> None:
        """Reads the configuration and registers what it asks for."""
        raise NotImplementedError


class QATLayer(QuantizedForm, LearnedWeight):
    """A quantized convolution or linear layer."""

    RANKS: ClassVar[tuple[int, ...]] = ()  # of the input; empty: any
    CHANNEL_WISE: ClassVar[bool] = True  # the default, and whether it is allowed

    weight: Any
    bias: Any
    wts_options: WeightOptions
    wts_scales: Tensor
    wts_scales_deploy: Tensor
    wts_offsets_deploy: Tensor

    def add_quantizers(self, config: Mapping[str, Any] | None) -> None:
        """Reads the configuration and registers what it asks for."""
        name = type(self).__name__
        self.config: ModuleConfig = read_config(name, config)
        self.check_options()
        if not self.config.retrain_enable:
            return
        self.add_input(self.config.retrain_data_config)
        settings = self.config.retrain_weight_config
        channel_wise = settings.channel_wise
        if channel_wise and not self.CHANNEL_WISE:
            raise RuntimeError(f"{name}: config: channel_wise must be false for this layer")
        options = WeightOptions(
            channel_wise=self.CHANNEL_WISE if channel_wise is None else channel_wise,
            learned=settings.weights_retrain_algo == "ulq_retrain",
            transposed=is_transposed(self),
            groups=getattr(self, "groups", 1),
            reciprocal=settings.s_rec_flag,
        )
        self.add_weight(self.weight, options)
        scales = self.wts_scales.detach()
        self.register_buffer("wts_scales_deploy", scales.clone())
        self.register_buffer("wts_offsets_deploy", torch.zeros_like(scales, dtype=torch.int8))
        self.to(self.weight.device)

    def check_options(self) -> None:
        """Raises for options of the layer that cannot be quantized."""
        mode = getattr(self, "padding_mode", "zeros")
        if mode != "zeros":
            raise ValueError(f"{type(self).__name__}: padding_mode: expected 'zeros', got {mode!r}")

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """The layer on quantized input and weight."""
        if self.RANKS and input.dim() not in self.RANKS:
            ranks = " or ".join(map(str, self.RANKS))
            raise RuntimeError(
                f"{type(self).__name__}: expected an input of {ranks} dimensions, got "
                f"{list(input.shape)}"
            )
        if not self.config.retrain_enable:
            return run_layer(self, input, self.weight, self.bias, output_size)
        x = self.quantized(input)
        return run_layer(self, x, self._quantized_weight(), self.bias, output_size)

    @torch.no_grad()
    def settle(self) -> None:
        if self.config.retrain_enable:
            super().settle()
            self.wts_scales_deploy.copy_(self.weight_scale(self.weight))

    def _quantized_weight(self) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._exported_weight()
        if not self.training:
            with torch.no_grad():
                self.wts_scales_deploy.copy_(self.weight_scale(self.weight))
        return self.quantize_weight(self.weight)

    def _exported_weight(self) -> Tensor:
        groups = self.wts_options.groups
        scale, offset = self.wts_scales_deploy, self.wts_offsets_deploy
        if not self.wts_options.channel_wise:
            return quantize_dequantize(self.weight, scale, offset, None)
        if not is_transposed(self):
            return quantize_dequantize(self.weight, scale, offset, 0)
        if groups == 1:
            return quantize_dequantize(self.weight, scale, offset, 1)
        rows = channels_first(self.weight, True, groups)
        return channels_restored(quantize_dequantize(rows, scale, offset, 0), True, groups)
