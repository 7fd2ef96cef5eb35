"""LSTM and GRU in QuantizeLinear/DequantizeLinear models become ours."""

import warnings

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto
from qdq_models import Qdq, attributes, check_same, constant, convert, node, op_types
from torch import nn

from amct_pytorch.export.qdq import read_qdq
from amct_pytorch.layers.gates import gates_to_onnx
from amct_pytorch.nn.module.quantization import GRUQAT, LSTMQAT, LinearQAT

STEPS, BATCH, INPUTS, HIDDEN = 5, 2, 3, 4
KINDS = pytest.mark.parametrize("cls", [LSTMQAT, GRUQAT])
EXPORTERS = {
    "older": {"opset_version": 13, "dynamo": False},
    "newer": {"opset_version": 18, "dynamo": True, "verbose": False},
}

# --- what torch.onnx.export writes ---------------------------------------------------------------


class Net(nn.Module):
    """Returns all outputs of its one layer, `rnn`."""

    def __init__(self, cls, config=None, **options):
        super().__init__()
        self.rnn = cls(INPUTS, HIDDEN, config=config, **options)

    def forward(self, x, h, c=None):
        y, states = self.rnn(x, h if c is None else (h, c))
        return (y, *states) if isinstance(states, tuple) else (y, states)


class Case:
    """A model after one training step, with data."""

    def __init__(self, cls, per_gate=False, act="INT8", net=Net, **options):
        torch.manual_seed(4)  # hidden states no closer to a tie than a rounded bias moves them
        self.kind = cls.FLOAT.__name__
        config = {
            "retrain_data_config": {"dst_type": act},
            "retrain_weight_config": {"channel_wise": not per_gate},
        }
        self.model = net(cls, config, **options)
        self.rnn = self.model.rnn
        first = (BATCH, STEPS) if self.rnn.batch_first else (STEPS, BATCH)
        self.data = [torch.randn(*first, INPUTS), torch.rand(1, BATCH, HIDDEN) - 0.3]
        self.data += [torch.randn(1, BATCH, HIDDEN)] if self.kind == "LSTM" else []
        with torch.no_grad():
            self.model(*self.data)
        self.model.eval()

    def export(self, folder, **options):
        names = ["x", "h", "c"][: len(self.data)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                self.model,
                tuple(self.data),
                str(folder / "qat.onnx"),
                input_names=names,
                **(options or EXPORTERS["older"]),
            )
        return convert(folder, None)

    @property
    def inputs(self):
        return [x.numpy() for x in self.data]

    @property
    def half_a_unit(self):
        """What rounding the biases to their grids can add to a gate, at every step."""
        rnn = self.rnn
        units = rnn.wts_scales_deploy.max() * rnn.acts_scale
        return (units + rnn.rec_wts_scales_deploy.max() * rnn.acts_h_scale).item() / 2

    def check(self, converted, more=1e-6):
        """fake_quant computes what the model does, deploy what training does, step by step."""
        onnx.checker.check_model(converted.fake_quant, full_check=True)
        with torch.no_grad():
            y, last = self.rnn.trained(self.rnn, self.data[0], tuple(self.data[1:]))
        trained = [tensor.numpy() for tensor in (y, *last)]
        atol = more + (self.half_a_unit if self.rnn.bias else 0)
        qdq, fake_quant, deploy = converted.outputs(*self.inputs)
        for expected, found in zip((*qdq, *trained), (*fake_quant, *deploy), strict=True):
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
        for expected, found in zip(qdq, deploy, strict=True):
            atol = more + self.rnn.acts_h_scale.item()
            np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def read(folder):
    return read_qdq(ir.load(folder / "qat.onnx"), "qat.onnx")


@KINDS
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("per_gate", [False, True], ids=["per row", "per gate"])
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_exports(tmp_path, cls, exporter, per_gate, batch_first):
    case = Case(cls, per_gate, batch_first=batch_first)
    converted = case.export(tmp_path, **EXPORTERS[exporter])
    case.check(converted)
    ((name, record),) = read(tmp_path).items()
    rnn, gates = case.rnn, 4 if case.kind == "LSTM" else 3
    assert name == "rnn"
    assert (record.scale_d, record.offset_d) == (rnn.acts_scale, rnn.acts_offset_deploy)
    assert (record.scale_h, record.offset_h) == (rnn.acts_h_scale, rnn.acts_h_offset_deploy)
    for scales, of_torch in (
        (record.scale_w, rnn.wts_scales_deploy),
        (record.scale_r, rnn.rec_wts_scales_deploy),
    ):
        assert len(scales) == (gates if per_gate else gates * HIDDEN)
        assert list(scales) == gates_to_onnx(of_torch, case.kind).tolist()
    assert record.offset_w == record.offset_r == (0,) * len(record.scale_w)
    assert (record.act_type, record.wts_type) == ("INT8", "INT8")


@KINDS
def test_nodes_of_both_forms(tmp_path, cls):
    converted = Case(cls, batch_first=True).export(tmp_path)
    operator = f"Basic{cls.FLOAT.__name__}InplaceFillWindowCache"
    assert op_types(converted.deploy)[:2] == ["Transpose", operator]
    assert list(node(converted.deploy, "rnn").input)[:4] == [
        "/rnn/Transpose_output_0",
        *("rnn.weight", "rnn.recurrence", "h"),
    ]
    assert node(converted.deploy, "/rnn/Transpose").input == ["x"]
    assert node(converted.fake_quant, "rnn").op_type == cls.FLOAT.__name__
    for model in (converted.fake_quant, converted.deploy):
        assert not {"QuantizeLinear", "Slice", "Concat"} & set(op_types(model))


@KINDS
def test_constants_that_are_not_folded(tmp_path, cls):
    case = Case(cls, per_gate=True)
    options = EXPORTERS["older"] | {"do_constant_folding": False}
    case.check(case.export(tmp_path, **options))
    assert list(read(tmp_path)) == ["rnn"]


@KINDS
def test_without_a_bias(tmp_path, cls):
    case = Case(cls, bias=False)
    case.check(case.export(tmp_path))


@KINDS
def test_16_bit_activations(tmp_path, cls):
    case = Case(cls, act="INT16")
    converted = case.export(tmp_path, **EXPORTERS["newer"] | {"opset_version": 21})
    assert attributes(converted.deploy, "rnn")["quant_dtype"] == 6
    case.check(converted, more=case.rnn.acts_h_scale.item())  # the last bit of a float moves codes


class Behind(Net):
    """Two recurrent layers, then a Linear."""

    def __init__(self, cls, config, **options):
        super().__init__(cls, config, **options)
        self.second = cls(HIDDEN, HIDDEN, config=config, **options)
        self.fc = LinearQAT(HIDDEN, 2)

    def forward(self, x, *state):
        y, *last = super().forward(x, *state)
        y, _ = self.second(y, tuple(last) if len(last) > 1 else last[0])
        return self.fc(y)


@KINDS
@pytest.mark.parametrize("exporter", EXPORTERS)
def test_layers_behind_each_other(tmp_path, cls, exporter):
    case = Case(cls, per_gate=True, net=Behind, batch_first=True)
    converted = case.export(tmp_path, **EXPORTERS[exporter])
    assert list(read(tmp_path)) == ["rnn", "second", "fc"]
    (qdq,), (fake_quant,), (deploy,) = converted.outputs(*case.inputs)
    unit = case.model.fc.acts_scale.item()  # of the last codes, of which one may flip
    np.testing.assert_allclose(fake_quant, qdq, rtol=0, atol=unit)
    np.testing.assert_allclose(deploy, qdq, rtol=0, atol=2 * unit)


class Alone(Net):
    """Is called without an initial state."""

    def forward(self, x, *state):
        return self.rnn(x)[0]


@KINDS
def test_without_an_initial_state(tmp_path, cls):
    case = Case(cls, net=Alone)
    case.data = case.data[:1]
    with pytest.raises(RuntimeError, match="rnn: cannot be quantized: its initial states do not c"):
        case.export(tmp_path)


@pytest.mark.parametrize("where", [0, 1], ids=["input", "weight"])
def test_node_without_initial_states(tmp_path, where):
    graph = Qdq()
    inputs = ["x", *(graph.constant(np.ones((1, 8, n), np.float32)) for n in (3, 2))]
    inputs[where] = graph.pair(inputs[where], 0.05)
    model = graph.model(graph.add("LSTM", *inputs, name="lstm", hidden_size=2), shape=[5, 1, 3])
    with pytest.raises(RuntimeError, match="lstm: cannot be quantized: its initial states do not"):
        convert(tmp_path, model)


# --- graphs built node by node -------------------------------------------------------------------

INT8, UINT8, INT4, INT16 = (
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT4,
    TensorProto.INT16,
)
W = np.arange(-9, 9, dtype=np.float32).reshape(1, 6, 3) / 100  # two hidden units
R = np.arange(-6, 6, dtype=np.float32).reshape(1, 6, 2) / 100
FACTORS = {"X": (0.05, 3), "initial_h": (0.02, -1), "W": (0.01,), "R": (0.01,)}
SEQUENCE = np.random.default_rng(7).normal(size=(4, 1, 3)).astype(np.float32)


def window(graph, value, starts, ends, *more):
    numbers = [graph.constant(np.int64(given)) for given in (starts, ends, *more)]
    return graph.add("Slice", value, *numbers)


def one_gru(factors=FACTORS, opset=13, op_type="GRU", lengths=(), weight=W, **codes):
    """x [T, 1, I] -> GRU `gru`, which begins with the first two numbers of x."""
    graph = Qdq()
    first = window(graph, "x", [0, 0], [1, 2], [0, 2])
    inputs = {"X": "x", "initial_h": first}
    inputs |= {"W": graph.constant(weight, "gru.weight"), "R": graph.constant(R)}
    for part, given in factors.items():
        axis = {"axis": 1} if np.ndim(given[0]) else {}
        options = {"codes": codes.get(part, INT8), "name": part, **axis}
        inputs[part] = graph.pair(inputs[part], *given, **options)
    x, h, w, r = (inputs[part] for part in ("X", "initial_h", "W", "R"))
    lengths = graph.constant(np.int32(lengths)) if lengths else ""
    options = {"linear_before_reset": 1} if op_type == "GRU" else {}
    y = graph.add(op_type, x, w, r, "", lengths, h, name="node", hidden_size=2, **options)
    return graph.model(y, shape=["T", 1, weight.shape[2]], opset=opset)


def test_integers_of_known_scales(tmp_path):
    """Rows lie on grids of their own; those of a gate are equal in W, but not in R."""
    of_w = [0.01, 0.01, 0.02, 0.02, 0.01, 0.01]
    of_r = [0.01, 0.02, 0.01, 0.01, 0.01, 0.01]
    model = one_gru(FACTORS | {"W": (of_w, 0), "R": (of_r, 0)})
    converted = convert(tmp_path, model)
    codes = constant(converted.deploy, "gru.weight").reshape(6, 3)
    assert codes.tolist() == [
        *([-9, -8, -7], [-6, -5, -4]),
        *([-2, -1, 0], [0, 0, 1]),  # -1.5, -1, -0.5 and 0, 0.5, 1
        *([3, 4, 5], [6, 7, 8]),
    ]
    assert constant(converted.deploy, "gru.recurrence").reshape(6, 2)[:2].tolist() == [
        [-6, -5],
        [-2, -2],  # -2, -1.5
    ]
    words = constant(converted.deploy, "gru.dequant.param").astype(np.uint32).view(np.float32)
    expected = np.float32([0.05 * s for s in of_w] + [0.02 * s for s in of_r])
    np.testing.assert_allclose(words, expected, rtol=1e-6)
    found = attributes(converted.deploy, "gru")
    assert (found["quant_scale_x"], found["quant_offset_x"]) == (20.0, 3.0)
    assert (found["quant_scale_h"], found["quant_offset_h"]) == (50.0, -1.0)
    check_fake_quant(converted, SEQUENCE)


def check_fake_quant(converted, x):
    qdq, fake_quant, deploy = converted.outputs(x)
    for expected, found, integers in zip(qdq, fake_quant, deploy, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
        np.testing.assert_allclose(integers, expected, rtol=0, atol=0.02)  # a code of h


def test_one_scale_is_that_of_every_gate(tmp_path):
    onnx.save(one_gru(), tmp_path / "qat.onnx")
    record = read(tmp_path)["gru"]
    assert record.scale_w == record.scale_r == (float(np.float32(0.01)),) * 3


def test_unsigned_codes(tmp_path):
    factors = {"X": (0.05, 131), "initial_h": (0.02, 127), "W": (0.01, 128), "R": (0.01, 128)}
    converted = convert(tmp_path, one_gru(factors, **dict.fromkeys(factors, UINT8)))
    assert attributes(converted.deploy, "gru")["quant_offset_x"] == 3.0
    check_fake_quant(converted, SEQUENCE)


def test_bias_as_int32_codes(tmp_path):
    model = one_gru()
    graph = Qdq()
    codes = graph.constant(np.arange(12, dtype=np.int32)[None] * 100, "gru.bias")
    graph.add("DequantizeLinear", codes, graph.constant(np.float32(0.0005), "bias_scale"))
    graph.nodes[0].output[0] = "bias"
    model.graph.initializer.extend(graph.initializers)
    model.graph.node.insert(0, graph.nodes[0])
    node(model, "node").input[3] = "bias"
    converted = convert(tmp_path, model)
    of_input, of_hidden = np.split(constant(converted.deploy, "gru.bias")[0], 2)
    assert of_input.tolist() == [0, 100, 200, 300, 400, 500]
    assert of_hidden.tolist() == [1500, 1750, 2000, 2250, 2500, 2750]  # in units of 0.02 * 0.01
    check_fake_quant(converted, SEQUENCE)


def two_grus(also_read=False):
    """Both read one pair through the node `between`, which something else may read as well."""
    graph = Qdq()
    x = graph.add("Transpose", graph.pair("x", 0.05, 3), name="between", perm=[1, 0, 2])
    outputs = [graph.add("Relu", x)] if also_read else []
    first = window(graph, "x", [0, 0], [1, 2], [1, 2])
    for name in ("a", "b"):
        h = graph.pair(first, 0.02)
        w, r = graph.weight(W, 0.01, f"{name}.weight"), graph.weight(R, 0.01, f"{name}.r")
        options = {"hidden_size": 2, "linear_before_reset": 1}
        outputs.append(graph.add("GRU", x, w, r, "", "", h, **options))
    return graph.model(outputs, shape=[1, "T", 3])


def test_pair_that_two_layers_share(tmp_path):
    converted = convert(tmp_path, two_grus())
    names = {n.name for n in converted.deploy.graph.node}
    assert {"a", "b", "between", "between1"} < names
    check_fake_quant(converted, SEQUENCE.swapaxes(0, 1))


def test_pair_that_something_else_reads(tmp_path):
    with pytest.raises(RuntimeError, match="has no deploy form; .* is read by between"):
        convert(tmp_path, two_grus(also_read=True))


def test_weight_made_of_parts(tmp_path):
    """The gates r, z, h of one weight, turned to z, r, h; its scales go with them."""
    graph = Qdq()
    rzh = W[0][[2, 3, 0, 1, 4, 5]]
    scales = [0.02, 0.03, 0.01, 0.02, 0.03, 0.04]
    weight = graph.pair(graph.constant(rzh, "gru.weight"), scales, axis=0)
    parts = [
        window(graph, weight, [2], [4]),
        window(graph, weight, [-5], [-7], [0], [-1]),  # backwards, from 1 to the beginning
        window(graph, weight, [4, 0], [2**62, 3], [-2, -1], [1, 1]),
    ]
    axes = graph.constant(np.int64([0]))
    w = graph.add("Unsqueeze", graph.add("Concat", *parts, axis=-2), axes)
    h = graph.pair(window(graph, "x", [0, 0], [1, 2], [0, 2]), 0.02)
    options = {"hidden_size": 2, "linear_before_reset": 1}
    r = graph.weight(R, 0.01, "r")
    model = graph.model(
        graph.add("GRU", graph.pair("x", 0.05), w, r, "", "", h, **options), ["T", 1, 3]
    )
    converted = convert(tmp_path, model)
    record = read(tmp_path)["gru"]
    assert record.scale_w == tuple(np.float32([0.01, 0.02, 0.03, 0.02, 0.03, 0.04]).tolist())
    check_fake_quant(converted, SEQUENCE)


# --- what has no deploy form ---------------------------------------------------------------------


@pytest.mark.parametrize("quantized", [False, True], ids=["alone float", "alone quantized"])
@pytest.mark.parametrize("part", FACTORS)
def test_quantized_in_part(tmp_path, part, quantized):
    factors = {key: given for key, given in FACTORS.items() if (key == part) == quantized}
    missing = ", ".join(key for key in FACTORS if key not in factors)
    expected = f"gru: expected X, initial_h, W and R quantized, or none of them; not .*: {missing}$"
    with pytest.raises(RuntimeError, match=expected):
        convert(tmp_path, one_gru(factors))


def test_different_bits_of_input_and_hidden_state(tmp_path):
    with pytest.raises(RuntimeError, match="gru: expected X and initial_h in one number of bits, "):
        convert(tmp_path, one_gru(opset=21, X=INT16))


@pytest.mark.parametrize("part", ["W", "R"])
def test_different_bits_of_the_weights(tmp_path, part):
    with pytest.raises(RuntimeError, match="gru: expected W and R in one number of bits, got "):
        convert(tmp_path, one_gru(opset=21, **{part: INT4}))


def test_4_bit_weights(tmp_path):
    weight = np.arange(-12, 12, dtype=np.float32).reshape(1, 6, 4) / 50
    model = one_gru(FACTORS | {"W": (0.02,)}, opset=21, weight=weight, W=INT4, R=INT4)
    converted = convert(tmp_path, model)
    assert read(tmp_path)["gru"].wts_type == "INT4"
    of_input = constant(converted.deploy, "gru.weight")  # codes -8, -8, -8, -8 come first
    assert of_input.shape == (1, 6, 2)
    assert of_input[0, :2].view(np.uint8).tolist() == [[0x88, 0x88], [0x98, 0xBA]]
    assert constant(converted.deploy, "gru.recurrence").shape == (1, 6, 1)
    sequence = np.random.default_rng(7).normal(size=(4, 1, 4)).astype(np.float32)
    check_fake_quant(converted, sequence)


def test_4_bit_weights_of_an_odd_input(tmp_path):
    with pytest.raises(RuntimeError, match="gru: expected an even size of input and hidden state"):
        convert(tmp_path, one_gru(opset=21, W=INT4, R=INT4))


@pytest.mark.parametrize("part", ["W", "R"])
def test_weight_with_a_zero_point(tmp_path, part):
    with pytest.raises(RuntimeError, match=f"gru: {part}: expected weights with zero point 0, got"):
        convert(tmp_path, one_gru(FACTORS | {part: (0.01, -5)}))


def test_scales_along_the_inputs(tmp_path):
    model = one_gru(FACTORS | {"W": ([0.01, 0.02, 0.03], 0)})
    for name in ("W_q", "W_dq"):
        node(model, name).attribute[0].i = 2
    with pytest.raises(RuntimeError, match="gru: W: expected one scale per row or per gate, found"):
        convert(tmp_path, model)


def test_lengths_of_sequences(tmp_path):
    with pytest.raises(RuntimeError, match="gru: cannot be quantized: it is called on a packed se"):
        convert(tmp_path, one_gru(lengths=[4]))


def test_computed_weight(tmp_path):
    model = one_gru()
    node(model, "W_q").input[0] = "w"
    computed = onnx.helper.make_node("Add", ["gru.weight", "x"], ["w"])
    model.graph.node.insert(0, computed)
    with pytest.raises(RuntimeError, match="node: cannot be quantized: its weights are computed"):
        convert(tmp_path, model)


@pytest.mark.parametrize("part", FACTORS)
def test_simple_recurrence(tmp_path, part):
    model = one_gru({part: FACTORS[part]}, op_type="RNN")
    with pytest.raises(RuntimeError, match="gru: a quantized RNN cannot be converted; export the"):
        convert(tmp_path, model)


def test_float_layer_stays(tmp_path):
    graph = Qdq()
    weight = graph.weight(np.eye(3), 0.01)
    x = graph.add("MatMul", graph.pair("x", 0.05), weight)
    w, r = graph.constant(W), graph.constant(R)
    h = window(graph, "x", [0, 0], [1, 2], [0, 2])
    y = graph.add("GRU", x, w, r, "", "", h, hidden_size=2, name="gru")
    converted = convert(tmp_path, graph.model(y, shape=["T", 1, 3]))
    assert op_types(converted.deploy)[-1] == "GRU"
    check_same(converted, SEQUENCE, atol=1e-6, deploy_rtol=1e-5)
