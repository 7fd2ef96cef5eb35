"""LSTM and GRU: one operator of the NPU in deploy, quantized inputs and constants in fake_quant."""

import io

import numpy as np
import onnx
import onnxruntime
import pytest
import reference_recurrent
import torch
from onnx import helper, numpy_helper
from reference_recurrent import ONNX_GATES
from torch import nn

from amct_pytorch.export.graphs import graph_files
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.graph.options import ExportOptions
from amct_pytorch.records import LayerRecord, Records
from amct_pytorch.steps import capture_model, name_layers

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
GATES = {nn.LSTM: 4, nn.GRU: 3}
KINDS = pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
BATCH_FIRST = pytest.mark.parametrize(
    "batch_first", [False, True], ids=["time first", "batch first"]
)


class Net(nn.Module):
    """Returns all outputs of its one layer, `rnn`."""

    def __init__(self, cls, **options):
        super().__init__()
        self.rnn = cls(INPUTS, HIDDEN, **options)

    def forward(self, x, h, c=None):
        y, states = self.rnn(x, h if c is None else (h, c))
        return (y, *states) if isinstance(states, tuple) else (y, states)


class Case:
    """A model with data, and its record with factors in the order of ONNX."""

    def __init__(self, cls, per_gate=False, opset=13, net=Net, **options):
        torch.manual_seed(0)
        self.cls, self.opset = cls, opset
        self.model = net(cls, **options).eval()
        self.rnn = self.model.rnn
        first = (BATCH, STEPS) if self.rnn.batch_first else (STEPS, BATCH)
        self.data = [torch.randn(*first, INPUTS), torch.rand(1, BATCH, HIDDEN) - 0.3]
        self.data += [torch.randn(1, BATCH, HIDDEN)] if cls is nn.LSTM else []
        factors = {}
        for weight, scale, offset in (
            (self.rnn.weight_ih_l0, "scale_w", "offset_w"),
            (self.rnn.weight_hh_l0, "scale_r", "offset_r"),
        ):
            gates = weight.detach().numpy().reshape(GATES[cls], HIDDEN, -1)[ONNX_GATES[cls]]
            largest = np.abs(gates).max(axis=(1, 2) if per_gate else 2).reshape(-1)
            factors |= {scale: tuple(largest / np.float32(127)), offset: (0,) * largest.size}
        self.record = LayerRecord(
            scale_d=0.03,
            offset_d=5,
            scale_h=0.01,
            offset_h=-20,
            act_type="INT8",
            wts_type="INT8",
            **factors,
        )

    def change(self, **fields):
        self.record = LayerRecord(**(vars(self.record) | fields))
        return self

    def export(self, **others):
        names = ["x", "h", "c"][: len(self.data)]
        options = ExportOptions(opset_version=self.opset, input_names=names)
        captured, facts = capture_model(self.model, tuple(self.data), options)
        name_layers(captured, facts)
        paths = {"deploy": "deploy", "fake_quant": "fake_quant"}
        files = graph_files(captured.model, Records({"rnn": self.record, **others}), paths)
        contents = [io.BytesIO() for _ in paths]
        for form, content in zip(paths, contents, strict=True):
            files[form](content)
        return [onnx.load_from_string(content.getvalue()) for content in contents]

    @property
    def feeds(self):
        return {name: x.numpy() for name, x in zip("xhc", self.data, strict=False)}


def node(model, name="rnn"):
    return next(n for n in model.graph.node if n.name == name)


def constant(model, name):
    return next(numpy_helper.to_array(i) for i in model.graph.initializer if i.name == name)


def run(model, feeds):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


# --- both graphs compute what they shall ----------------------------------------------------------


def loop(case, integers):
    return reference_recurrent.loop(case.rnn, case.data, case.record, integers)


def assert_close(found, expected, atol=2e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


VARIANTS = {
    "per row": {},
    "per gate": {"per_gate": True},
    "no bias": {"bias": False},
    "newer exporter": {"opset": 18},
}


@KINDS
@BATCH_FIRST
@pytest.mark.parametrize("variant", VARIANTS)
def test_both_graphs_compute_their_transcription(cls, batch_first, variant):
    case = Case(cls, batch_first=batch_first, **VARIANTS[variant])
    deploy, fake_quant = case.export()
    assert_close(run(fake_quant, case.feeds), loop(case, integers=False))
    assert_close(run_deploy(deploy, case.feeds).values(), loop(case, integers=True))


@KINDS
@pytest.mark.parametrize(
    "changes",
    [
        {"act_type": "INT16", "scale_d": 2e-4, "scale_h": 1e-4, "offset_d": 300},
        {"fakequant_precision_mode": "FORCE_FP16_QUANT"},
    ],
    ids=["16 bits", "s19"],
)
def test_other_records_compute_their_transcription(cls, changes):
    case = Case(cls).change(**changes)
    deploy, fake_quant = case.export()
    assert_close(run(fake_quant, case.feeds), loop(case, integers=False))
    assert_close(run_deploy(deploy, case.feeds).values(), loop(case, integers=True))


@KINDS
@BATCH_FIRST
def test_quantized_is_close_to_float(cls, batch_first):
    case = Case(cls, batch_first=batch_first)
    deploy, fake_quant = case.export()
    with torch.no_grad():
        expected = [tensor.numpy() for tensor in case.model(*case.data)]
    assert_close(run(fake_quant, case.feeds), expected, atol=0.03)  # scales of 0.03 and 0.01
    assert_close(run_deploy(deploy, case.feeds).values(), expected, atol=0.03)


# --- the deploy graph ----------------------------------------------------------------------------

COMMON = {
    "hidden_size": 4,
    "activation_alpha": [],
    "activation_beta": [],
    "activations": [],
    "clip": -1.0,
    "direction": b"forward",
}
QUANT = {
    "quant_sqrt_mode_x": 0,
    "quant_sqrt_mode_h": 0,
    "quant_scale_x": float(np.float32(1) / np.float32(0.03)),
    "quant_offset_x": 5.0,
    "quant_scale_h": float(np.float32(1) / np.float32(0.01)),
    "quant_offset_h": -20.0,
    "quant_dtype": 2,
}


@pytest.mark.parametrize(
    ("cls", "op_type", "slots", "own"),
    [
        (
            nn.LSTM,
            "BasicLSTMInplaceFillWindowCache",
            [
                "x",
                "rnn.weight",
                "rnn.recurrence",
                "h",
                "c",
                "rnn.bias",
                "",
                "",
                "rnn.dequant.param",
            ],
            {"input_forget": 0},
        ),
        (
            nn.GRU,
            "BasicGRUInplaceFillWindowCache",
            ["x", "rnn.weight", "rnn.recurrence", "h", "rnn.bias", "", "", "rnn.dequant.param"],
            {"linear_before_reset": 1},
        ),
    ],
)
def test_deploy_node(cls, op_type, slots, own):
    deploy, _ = Case(cls).export()
    found = node(deploy)
    assert (found.op_type, found.domain) == (op_type, "")
    assert list(found.input) == slots
    attributes = [(a.name, helper.get_attribute_value(a)) for a in found.attribute]
    assert attributes == list((COMMON | own | QUANT).items())
    assert not [n for n in deploy.graph.node if n.op_type.startswith("Ascend")]
    rows = GATES[cls] * HIDDEN
    for name, dtype, shape in (
        ("rnn.weight", np.int8, (1, rows, INPUTS)),
        ("rnn.recurrence", np.int8, (1, rows, HIDDEN)),
        ("rnn.bias", np.int32, (1, 2 * rows)),
        ("rnn.dequant.param", np.uint64, (2 * rows,)),
    ):
        array = constant(deploy, name)
        assert (array.dtype, array.shape) == (dtype, shape), name
    assert len(deploy.graph.initializer) == 4


def test_deploy_integers_of_known_gates():
    """One hidden unit, gates i, f, g, o of torch with weights 0.1, 0.2, 0.3, 0.4."""
    case = Case(nn.LSTM, per_gate=True)
    rnn = case.model.rnn = case.rnn = nn.LSTM(1, 1)
    case.data = [torch.ones(2, 1, 1), torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)]
    with torch.no_grad():
        for parameter, sign in zip(rnn.parameters(), (1, -1, 1, -1), strict=True):
            values = torch.tensor([0.1, 0.2, 0.3, 0.4]) * sign
            parameter.copy_(values.reshape(parameter.shape))
    case.change(scale_d=0.5, scale_h=0.25)
    case.change(scale_w=(0.01, 0.02, 0.01, 0.01), scale_r=(0.01,) * 4)
    deploy, _ = case.export()
    assert constant(deploy, "rnn.weight").reshape(-1).tolist() == [10, 20, 20, 30]  # i, o, f, c
    assert constant(deploy, "rnn.recurrence").reshape(-1).tolist() == [-10, -40, -20, -30]
    assert constant(deploy, "rnn.bias").tolist() == [[20, 40, 40, 60, -40, -160, -80, -120]]
    words = constant(deploy, "rnn.dequant.param")
    scales = words.astype(np.uint32).view(np.float32)
    expected = [0.005, 0.01, 0.005, 0.005, 0.0025, 0.0025, 0.0025, 0.0025]
    np.testing.assert_allclose(scales, expected, rtol=1e-6)


def test_s19_holds_for_both_scales_and_the_bias():
    case = Case(nn.GRU).change(fakequant_precision_mode="FORCE_FP16_QUANT")
    deploy, _ = case.export()
    words = constant(deploy, "rnn.dequant.param")
    assert not (words & np.uint64(0x1FFF)).any()
    scales = words.astype(np.uint32).view(np.float32).astype(np.float64)
    biases = [case.rnn.bias_ih_l0, case.rnn.bias_hh_l0]
    rows = [b.detach().numpy().reshape(3, -1)[ONNX_GATES[nn.GRU]].reshape(-1) for b in biases]
    expected = np.rint(np.concatenate(rows) / scales)
    np.testing.assert_array_equal(constant(deploy, "rnn.bias")[0], expected)


@KINDS
def test_16_bit_activations_have_their_dtype(cls):
    deploy, _ = Case(cls).change(act_type="INT16").export()
    attributes = {a.name: helper.get_attribute_value(a) for a in node(deploy).attribute}
    assert attributes["quant_dtype"] == 6


@KINDS
def test_exports_are_equal_to_the_byte(cls):
    one, other = (Case(cls).export() for _ in range(2))
    assert [m.SerializeToString() for m in one] == [m.SerializeToString() for m in other]


class LastState(Net):
    def forward(self, x, h, c=None):
        return super().forward(x, h, c)[1:]


@KINDS
def test_outputs_that_nothing_uses(cls):
    case = Case(cls, net=LastState)
    deploy, fake_quant = case.export()
    expected = loop(case, integers=True)[1:]
    assert_close(run_deploy(deploy, case.feeds).values(), expected)
    assert_close(run(fake_quant, case.feeds), loop(case, integers=False)[1:])


# --- the fake_quant graph ------------------------------------------------------------------------


@KINDS
def test_names_of_the_fake_quant_chains(cls):
    _, fake_quant = Case(cls).export()
    names = [n.name for n in fake_quant.graph.node if n.op_type != "Constant"]
    chain = ["mul", "round", "add", "clip", "sub"]
    assert names[:13] == [
        *(f"rnn.quant.fakequant.{step}" for step in chain),
        "rnn.anti_quant.fake_antiquant.mul",
        *(f"rnn.quant1.fakequant.{step}" for step in chain),
        "rnn.anti_quant1.fake_antiquant.mul",
        "rnn",
    ]
    found = node(fake_quant)
    assert found.op_type == cls.__name__
    assert found.doc_string.startswith(
        "Approximate: the hidden state is quantized before the first"
    )
    scale = node(fake_quant, "rnn.anti_quant1.fake_antiquant.scale").attribute[0].t
    assert numpy_helper.to_array(scale) == np.float32(0.01)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "unit"), [("ih", "scale_w * scale_d"), ("hh", "scale_r * scale_h")]
)
def test_a_bias_beyond_int32_is_named(part, unit):
    case = Case(nn.LSTM)
    with torch.no_grad():
        getattr(case.rnn, f"bias_{part}_l0")[0] = 1e7
    with pytest.raises(RuntimeError) as caught:
        case.export()
    assert str(caught.value).startswith("rnn: the bias 10000000.0 of channel 0 is ")
    assert f"in units of {unit}, beyond int32" in str(caught.value)


def test_scales_without_a_product_are_named():
    with pytest.raises(ValueError, match="rnn: expected scale_h and scale_r with a finite inverse"):
        Case(nn.GRU).change(scale_h=1e-40).export()


def test_a_sum_beyond_int32_is_refused():
    case = Case(nn.GRU).change(act_type="INT16", scale_d=1e-4)
    deploy, _ = case.export()
    bias = next(i for i in deploy.graph.initializer if i.name == "rnn.bias")
    full = np.full(bias.dims, 2**31 - 1, np.int32)
    bias.CopyFrom(numpy_helper.from_array(full, bias.name))
    with pytest.raises(OverflowError, match="leaves the int32 accumulator"):
        run_deploy(deploy, case.feeds)


# --- in a larger model ---------------------------------------------------------------------------


class Between(Net):
    """A Linear makes the initial hidden state, another takes the outputs."""

    def __init__(self, cls):
        super().__init__(cls)
        self.before, self.behind = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x, h, c=None):
        return self.behind(super().forward(x, self.before(h), c)[0])


@KINDS
def test_beside_other_quantized_layers(cls):
    case = Case(cls, net=Between)
    plain = {"scale_w": (0.01,), "offset_w": (0,), "act_type": "INT8", "wts_type": "INT8"}
    linear = LayerRecord(scale_d=0.02, offset_d=0, **plain)
    deploy, fake_quant = case.export(before=linear, behind=linear)
    assert [n.name for n in deploy.graph.node if n.op_type == "AscendQuant"] == [
        "before.quant",
        "behind.quant",
    ]
    with torch.no_grad():
        expected = [case.model(*case.data).numpy()]
    assert_close(run(fake_quant, case.feeds), expected, atol=0.1)
    assert_close(run_deploy(deploy, case.feeds).values(), expected, atol=0.1)
