"""The quantized model in torch: what the fake_quant graph computes, layer by layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..capability import is_recurrent
from ..export.integer_ir import dequant_scale, quantize_bias, shift_of
from ..graph.lazy_array import LazyArray
from ..layers.calibrate import CalibratedLayer
from ..layers.dmq import balanced_weight, inverse_factors
from ..layers.integers import Factors, integers_of
from ..layers.replace import replace_modules
from ..layers.simulate import Simulated, SimulatedLayer
from ..records import LayerRecord, Records
from .insert import forget_record
from .simulate_recurrent import simulated_recurrent


def simulate_model(model: nn.Module, record_file: str) -> nn.Module:
    """A copy of a calibrated model whose layers are quantized as in the exported graphs.

    Args:
        model: the model that `quantize_model` returned.
        record_file: its record file, complete.

    A layer without factors in the record runs as it is. Raises RuntimeError for a record that
    belongs to an unfinished calibration and for a model without calibrated layers.

    Example::

        simulated = amct.simulate_model(calibrated, "record.txt")
        accuracy = evaluate(simulated)
    """
    layers = [m for m in model.modules() if isinstance(m, CalibratedLayer)]
    if not layers:
        raise RuntimeError("the model has no calibrated layer; pass what quantize_model returned")
    records = Records.load(record_file)
    records.check_quantized()
    simulated = copy.deepcopy(model)
    forget_record(simulated)
    stand_ins: dict[nn.Module, nn.Module] = {}
    for module in [m for m in simulated.modules() if isinstance(m, CalibratedLayer)]:
        record = records.get(module.name)
        stand_in: nn.Module = module.sub_module
        if record is not None and record.has_factors:
            stand_in = simulated_layer(module.name, module.sub_module, record)
        stand_ins[module] = stand_in
    replace_modules(simulated, stand_ins)
    return simulated


def simulate_layers(
    model: nn.Module, records: Records, rounded: Mapping[str, Tensor]
) -> dict[str, Simulated]:
    """Puts a stand-in in the place of every layer of `records`, in place; returns them by name.

    `model` is in float, BatchNorms folded, nothing balanced: switched off, a stand-in runs the
    float layer. `rounded` has the weights, balanced, of layers that AdaRound has rounded.
    """
    modules = {name: model.get_submodule(name) for name in records}
    stand_ins = {}
    for name, record in records.items():
        factors = record.tensor_balance_factor
        stand_ins[name] = simulated_layer(name, modules[name], record, factors, rounded.get(name))
    replace_modules(model, {modules[name]: stand_in for name, stand_in in stand_ins.items()})
    return stand_ins


@torch.no_grad()
def simulated_layer(
    name: str,
    module: Any,
    record: LayerRecord,
    balance: tuple[float, ...] = (),
    rounded: Tensor | None = None,
) -> Simulated:
    """The stand-in that computes with the integers of `record`.

    With `balance`, the factors by which the record was made, it balances weight and input first;
    without, they are balanced already if they need to be. `rounded` stands for the balanced weight.
    """
    if is_recurrent(module):
        return simulated_recurrent(name, module, record)
    deq_scale = dequant_scale(name, record)  # raises for factors that cannot be used
    bias: Tensor | None = getattr(module, "bias", None)
    if bias is not None:
        quantize_bias(name, LazyArray.of_tensor(bias).read(), deq_scale)  # raises beyond int32
    weight: Tensor | None = getattr(module, "weight", None)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    shift = shift_of(record)
    factors = Factors(
        torch.tensor(record.scale_d, dtype=torch.float32, device=device),
        torch.tensor(record.offset_d, dtype=torch.int32, device=device),
        record.act_bits,
        torch.tensor(record.scale_w, dtype=torch.float32, device=device),
        record.wts_bits,
        record.force_fp16,
        None if shift is None else torch.from_numpy(shift).to(device, torch.int32),
    )
    inverse = None
    if balance:
        weight = balanced_weight(name, module, balance)
        inverse = inverse_factors(name, module, balance)
    weight = weight if rounded is None else rounded
    return SimulatedLayer(name, module, integers_of(module, weight, bias, factors), inverse)
