"""What stands for an LSTM or GRU while the model is trained to be quantized."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..records import LayerRecord
from .gates import gates_to_onnx
from .learned_range import LearnedRange
from .recurrent import HIDDEN, QuantizedRecurrence
from .retrain import Exported, Retrained, RetrainOptions


class QuantRecurrent(QuantizedRecurrence):
    """An LSTM or GRU with its quantizers."""

    def __init__(self, name: str, replaced_module: nn.Module, options: RetrainOptions) -> None:
        super().__init__()
        assert options.weight is not None
        self.replaced_module = replaced_module
        hidden = replace(options.range, fixed_min=False, clips=None)
        self.add_recurrence(name, replaced_module, options.range, hidden, options.weight)
        self.to(next(replaced_module.parameters()).device)


class RetrainedRecurrent(Retrained):
    """Stands for the LSTM or GRU `name`."""

    def __init__(self, name: str, module: nn.Module, options: RetrainOptions) -> None:
        super().__init__(name)
        self.options = options
        self.quant_module = QuantRecurrent(name, module, options)
        self.shift_search = None  # one operator does the whole layer: no sums to shift

    def ranges(self) -> list[tuple[LearnedRange, str]]:
        return [(self.quant_module, "acts"), (self.quant_module, HIDDEN)]

    def forward(self, input: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
        module = self.quant_module
        result: tuple[Tensor, Any] = module.run_quantized(
            self.sub_module, input, hx, self.options.force_fp16
        )
        return result

    def exported(self) -> Exported:
        kind = "LSTM" if isinstance(self.sub_module, nn.LSTM) else "GRU"
        force = self.options.force_fp16
        factors = self.quant_module.recurrent_factors(self.sub_module, force)
        scale_w, scale_r = (gates_to_onnx(s, kind) for s in (factors.scale_w, factors.scale_r))
        record = LayerRecord(
            scale_d=float(factors.scale_d),
            offset_d=int(factors.offset_d),
            scale_w=tuple(scale_w.tolist()),
            offset_w=(0,) * len(scale_w),
            act_type=f"INT{self.options.range.num_bits}",
            wts_type="INT8",
            fakequant_precision_mode="FORCE_FP16_QUANT" if force else None,
            scale_h=float(factors.scale_h),
            offset_h=int(factors.offset_h),
            scale_r=tuple(scale_r.tolist()),
            offset_r=(0,) * len(scale_r),
        )
        return Exported(record, {})
