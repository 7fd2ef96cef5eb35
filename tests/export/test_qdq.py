"""Quantized models in standard nodes, built node by node, become ours."""

import logging

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from qdq_models import Qdq, attributes, check_same, constant, convert, node, op_types

INT4, INT8, UINT8, INT16 = (
    TensorProto.INT4,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT16,
)
FC = np.array([[0.4, -0.8], [0.1, 0.2], [-0.3, 0.6]], np.float32)  # [K, N]
X = np.array([[0.31, -0.2, 1.0], [-2.0, 9.0, 0.013]], np.float32)
RNG = np.random.default_rng(7)


def one_layer(act=(0.05, 3), act_codes=INT8, opset=13, **weight):
    """x -> pair -> MatMul `fc`."""
    graph = Qdq()
    x = graph.pair("x", *act, codes=act_codes, name="act")
    options = {"scale": 0.00625, "array": FC, "name": "w", **weight}
    array = graph.constant(options.pop("array"), "fc.weight")
    w = graph.pair(array, options.pop("scale"), **options)
    return graph.model(graph.add("MatMul", x, w, name="layer"), opset=opset)


# ---- numbers worked out by hand ----


def worked_example():
    graph = Qdq()
    conv_w = np.array([[0.5, -0.25], [1.0, 0.125]], np.float32).reshape(2, 1, 1, 2)
    fc_w = np.array([[0.4, -0.8, 0.1, 0.2], [-0.3, 0.6, 0.7, -0.1]], np.float32)
    conv = graph.add(
        "Conv",
        graph.pair("x", 0.02, -10),
        graph.weight(conv_w, [0.004, 0.008], "conv1.weight", axis=0),
        graph.constant(np.array([0.3, -1.7], np.float32), "conv1.bias"),
        name="/conv1/Conv",
    )
    fc = graph.add(
        "Gemm",
        graph.pair(graph.add("Flatten", conv), 0.05, 3),
        graph.weight(fc_w, 0.00625),
        graph.constant(np.array([0.05, -0.07], np.float32), "fc.bias"),
        name="/fc/Gemm",
        transB=1,
    )
    return graph.model(fc, shape=["N", 1, 1, 3])


def test_worked_example(tmp_path):
    converted = convert(tmp_path, worked_example())
    deploy = converted.deploy
    assert op_types(deploy) == [
        *("AscendQuant", "Conv", "AscendDequant", "Flatten"),
        *("AscendQuant", "Gemm", "AscendDequant"),
    ]
    assert attributes(deploy, "conv1.quant") == {
        "scale": 50.0,
        "offset": -10.0,
        "dst_type": b"INT8",
    }
    assert attributes(deploy, "fc.quant") == {"scale": 20.0, "offset": 3.0, "dst_type": b"INT8"}
    assert constant(deploy, "conv1.weight").reshape(2, 2).tolist() == [[125, -62], [125, 16]]
    assert constant(deploy, "conv1.bias").tolist() == [3750, -10625]
    assert constant(deploy, "fc.weight").tolist() == [[64, -48], [-128, 96], [16, 112], [32, -16]]
    assert constant(deploy, "fc.bias").tolist() == [160, -224]
    assert constant(deploy, "conv1.dequant.param").tolist() == [950519213, 958907821]
    assert constant(deploy, "fc.dequant.param").tolist() == [967038731]
    x = np.array([0.31, -0.2, 1.0], np.float32).reshape(1, 1, 1, 3)
    (y,) = converted.outputs(x)[1]
    np.testing.assert_array_equal(y, np.array([[-0.20000002, -1.0550001]], np.float32))
    check_same(converted, x, atol=1e-6)


def test_no_standard_pair_is_left(tmp_path):
    converted = convert(tmp_path, worked_example())
    for model in (converted.fake_quant, converted.deploy):
        assert not [op for op in op_types(model) if "Linear" in op]


# ---- types of codes ----


@pytest.mark.parametrize(
    ("codes", "zero", "opset", "dst_type", "offset"),
    [
        pytest.param(INT8, 3, 13, b"INT8", 3, id="int8"),
        pytest.param(UINT8, 131, 13, b"INT8", 3, id="uint8 is int8 shifted by 128"),
        pytest.param(INT16, -300, 21, b"INT16", -300, id="int16"),
        pytest.param(INT4, -2, 21, b"INT4", -2, id="int4"),
        pytest.param(TensorProto.UINT4, 6, 21, b"INT4", -2, id="uint4 is int4 shifted by 8"),
    ],
)
def test_types_of_activations(tmp_path, codes, zero, opset, dst_type, offset):
    converted = convert(tmp_path, one_layer((0.05, zero), codes, opset))
    quant = attributes(converted.deploy, "fc.quant")
    assert (quant["dst_type"], quant["offset"]) == (dst_type, offset)
    check_same(converted, X, atol=1e-6)


def test_zero_point_left_out_means_uint8_with_zero(tmp_path):
    model = one_layer()
    for name in ("act_q", "act_dq"):
        del node(model, name).input[2]
    converted = convert(tmp_path, model)
    assert attributes(converted.deploy, "fc.quant")["offset"] == -128
    check_same(converted, X, atol=1e-6)


@pytest.mark.parametrize("codes", [INT8, UINT8], ids=["int8", "uint8"])
def test_weight_that_is_codes_already(tmp_path, codes):
    graph = Qdq()
    middle = 128 if codes == UINT8 else 0
    stored = graph.constant(np.array([[64, -48], [16, 32]]) + middle, "fc.weight", codes)
    w = graph.add("DequantizeLinear", stored, *graph.factors(0.00625, middle, codes))
    model = graph.model(graph.add("MatMul", graph.pair("x", 0.05), w), shape=["N", 2])
    converted = convert(tmp_path, model)
    assert constant(converted.deploy, "fc.weight").tolist() == [[64, -48], [16, 32]]
    check_same(converted, X[:, :2], atol=1e-6)


def test_four_bit_weights_are_packed(tmp_path):
    array = np.array([[1.0], [-2.0], [3.0], [-4.0]], np.float32)
    model = one_layer(array=array, scale=1.0, codes=INT4, opset=21)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 4
    converted = convert(tmp_path, model)
    assert constant(converted.deploy, "fc.weight").tolist() == [[-31], [-61]]
    check_same(converted, np.array([[0.3, 0.2, -0.1, 1.0]], np.float32), atol=1e-6)


def test_weight_codes_are_those_of_a_division(tmp_path):
    """The ops multiply by fl(1/scale), which rounds some of these ties elsewhere."""
    scale = np.float32(0.3)
    weights = (np.arange(-20, 20, dtype=np.float32) + np.float32(0.5)) * scale
    codes = np.rint(weights / scale)
    assert np.any(codes != np.rint(weights * (1 / scale)))
    graph = Qdq()
    w = graph.weight(weights.reshape(1, -1), scale)
    model = graph.model(graph.add("MatMul", graph.pair("x", 0.05), w), shape=["N", 1])
    stored = constant(convert(tmp_path, model).deploy, "fc.weight")
    assert stored.reshape(-1).tolist() == codes.tolist()


# ---- layouts ----


def conv_transpose(groups):
    """[Cin 4, Cout/g 2, 3]; the scale lies along axis 1, as the node has it."""
    graph = Qdq()
    w = RNG.uniform(-1, 1, (4, 2, 3)).astype(np.float32)
    weight = graph.weight(w, [0.01, 0.02], "up.weight", axis=1)
    y = graph.add("ConvTranspose", graph.pair("x", 0.02, 5), weight, group=groups, strides=[2])
    return graph.model(y, shape=["N", 4, 5])


@pytest.mark.parametrize("groups", [1, 2])
def test_scales_of_a_transposed_convolution(tmp_path, groups):
    converted = convert(tmp_path, conv_transpose(groups))
    words = constant(converted.deploy, "up.dequant.param").astype(np.uint32).view(np.float32)
    np.testing.assert_allclose(words, np.float32([0.0002, 0.0004] * groups), rtol=1e-6)
    check_same(converted, RNG.normal(size=(2, 4, 5)).astype(np.float32), atol=1e-5)


def test_transposed_convolution_with_a_scale_per_group_and_channel(tmp_path):
    """Scales [g * Cout/g] cannot lie along an axis of the weight: it is reshaped around them."""
    graph = Qdq()
    w = RNG.uniform(-1, 1, (4, 2, 3)).astype(np.float32)
    rows = w.reshape(2, 2, 2, 3).swapaxes(1, 2).reshape(4, 2, 3)  # [g * Cout/g, Cin/g, k]
    value = graph.weight(rows, [0.01, 0.02, 0.03, 0.04], "up.weight", axis=0)
    dims = [graph.constant(np.int64(shape)) for shape in ([2, 2, 2, 3], [4, 2, 3])]
    value = graph.add("Transpose", graph.add("Reshape", value, dims[0]), perm=[0, 2, 1, 3])
    y = graph.add(
        "ConvTranspose", graph.pair("x", 0.02), graph.add("Reshape", value, dims[1]), group=2
    )
    converted = convert(tmp_path, graph.model(y, shape=["N", 4, 5]))
    words = constant(converted.deploy, "up.dequant.param").astype(np.uint32).view(np.float32)
    np.testing.assert_allclose(words, np.float32([0.0002, 0.0004, 0.0006, 0.0008]), rtol=1e-6)
    check_same(converted, RNG.normal(size=(2, 4, 5)).astype(np.float32), atol=1e-5)


def test_grouped_convolution_between_transposes(tmp_path):
    """The output channel lies on axis 1 where the scales apply, and on axis 0 at the layer."""
    graph = Qdq()
    w = RNG.uniform(-1, 1, (4, 2, 3)).astype(np.float32)
    turned = graph.add("Transpose", graph.constant(w, "conv.weight"), perm=[1, 0, 2])
    value = graph.pair(turned, [0.01, 0.02, 0.03, 0.04])
    value = graph.add("Transpose", value, perm=[1, 0, 2])
    y = graph.add("Conv", graph.pair("x", 0.02, -7), value, group=2, pads=[1, 1])
    converted = convert(tmp_path, graph.model(y, shape=["N", 4, 5]))
    assert constant(converted.deploy, "conv.dequant.param").size == 4
    check_same(converted, RNG.normal(size=(2, 4, 5)).astype(np.float32), atol=1e-5)


def test_weight_through_every_node_that_moves_elements(tmp_path):
    graph = Qdq()
    value = graph.add("Cast", graph.constant(FC.astype(np.float64), "fc.weight"), to=1)
    value = graph.add("Unsqueeze", value, graph.constant(np.int64([0])))
    value = graph.add("Identity", graph.pair(value, 0.00625))
    value = graph.add("Squeeze", value, graph.constant(np.int64([0])))
    value = graph.add("Flatten", value)
    value = graph.add("Reshape", value, graph.constant(np.int64([0, -1])))
    model = graph.model(graph.add("MatMul", graph.pair("x", 0.05), value))
    converted = convert(tmp_path, model)
    assert op_types(converted.deploy) == ["AscendQuant", "MatMul", "AscendDequant"]
    check_same(converted, X, atol=1e-6)


def test_weight_of_parts_in_another_order(tmp_path):
    """The scales of the channels go with them."""
    graph = Qdq()
    w = np.float32([[1, 2], [3, 4], [5, 6]]).reshape(3, 2, 1) / 100
    whole = graph.weight(w, [0.01, 0.02, 0.03], "conv.weight", axis=0)
    last = graph.add("Slice", whole, *(graph.constant(np.int64([n])) for n in (2, 2**62)))
    backwards = [graph.constant(np.int64([n])) for n in (-2, -(2**62), 0, -1)]
    first = graph.add("Slice", whole, *backwards)
    parts = graph.add("Concat", last, first, axis=-3)
    turned = graph.add("Slice", parts, *map(graph.constant, np.int64([[0], [2], [1], [1]])))
    y = graph.add("Conv", graph.pair("x", 0.05), turned)
    converted = convert(tmp_path, graph.model(y, shape=["N", 2, 3]))
    assert constant(converted.deploy, "conv.weight").reshape(3, 2).tolist() == [
        [2, 2],  # 5 and 6 hundredths in units of 0.03
        [2, 2],
        [1, 2],
    ]
    words = constant(converted.deploy, "conv.dequant.param").astype(np.uint32).view(np.float32)
    np.testing.assert_allclose(words, np.float32([0.0015, 0.001, 0.0005]), rtol=1e-6)
    check_same(converted, RNG.normal(size=(2, 2, 3)).astype(np.float32), atol=1e-6)


def test_slice_without_axes_but_with_steps(tmp_path):
    graph = Qdq()
    bounds = [graph.constant(np.int64(n)) for n in ([0, 0], [9, 9])]
    steps = graph.constant(np.int64([2, 1]))
    w = graph.add("Slice", graph.weight(np.repeat(FC, 2, 0)[:-1], 0.00625), *bounds, "", steps)
    converted = convert(tmp_path, graph.model(graph.add("MatMul", graph.pair("x", 0.05), w)))
    assert constant(converted.deploy, "fc.weight").tolist() == [[64, -128], [16, 32], [-48, 96]]


@pytest.mark.parametrize("other", ["float", "computed", "of another type"])
def test_weight_of_unlike_parts(tmp_path, other):
    graph = Qdq()
    parts = [graph.weight(FC[:2], 0.00625)]
    if other == "float":
        parts.append(graph.constant(FC[2:]))
    elif other == "computed":
        start, end = graph.add("Shape", "x"), graph.constant(np.int64([3, 3]))
        parts.append(graph.add("Slice", graph.weight(FC, 0.00625), start, end))
    else:
        parts.append(graph.weight(FC[2:], 0.00625, "other", codes=UINT8, zero=128))
    w = graph.add("Concat", *parts, axis=0)
    y = graph.add("MatMul", graph.pair("x", 0.05), w)
    with pytest.raises(RuntimeError, match="its input is quantized .* is computed in forward"):
        convert(tmp_path, graph.model(y))


def test_zero_padding_behind_the_pair_moves_into_the_convolution(tmp_path):
    graph = Qdq()
    pads = graph.constant(np.int64([0, 0, 1, 0, 0, 1]))
    x = graph.add("Pad", graph.pair("x", 0.02, 9), pads)
    w = graph.weight(np.ones((1, 1, 3), np.float32), 0.01, "conv.weight")
    converted = convert(tmp_path, graph.model(graph.add("Conv", x, w), shape=["N", 1, 4]))
    assert op_types(converted.deploy) == ["AscendQuant", "Conv", "AscendDequant"]
    check_same(converted, np.float32([[[1, 2, -1, 0.5]]]), atol=1e-5)


def test_factors_of_gemm_are_folded(tmp_path):
    graph = Qdq()
    w = graph.weight(FC.T, 0.00625)
    bias = graph.constant(np.float32([0.05, -0.07]))
    y = graph.add("Gemm", graph.pair("x", 0.05), w, bias, transB=1, alpha=0.5, beta=2.0)
    converted = convert(tmp_path, graph.model(y))
    assert constant(converted.deploy, "fc.weight").tolist() == [[64, -128], [16, 32], [-48, 96]]
    check_same(converted, X, atol=0.05 * 0.00625 / 4)


# ---- biases ----


@pytest.mark.parametrize("op_type", ["Gemm", "MatMul"])
def test_bias_as_int32_codes(tmp_path, op_type):
    graph = Qdq()
    x, w = graph.pair("x", 0.05), graph.weight(FC, 0.00625)
    codes = graph.constant(np.int32([160, -224]), "fc.bias")
    scale = graph.constant(np.float32(0.05) * np.float32(0.00625))
    bias = graph.add("DequantizeLinear", codes, scale)
    if op_type == "Gemm":
        y = graph.add("Gemm", x, w, bias)
    else:
        y = graph.add("Add", graph.add("MatMul", x, w), bias)
    converted = convert(tmp_path, graph.model(y))
    stored = [i for i in converted.deploy.graph.initializer if i.data_type == TensorProto.INT32]
    assert [numpy_helper.to_array(i).tolist() for i in stored] == [[160, -224]]
    check_same(converted, X, atol=1e-6)


# ---- several layers ----


def test_layers_with_one_input_share_its_quantization(tmp_path):
    graph = Qdq()
    x = graph.pair("x", 0.05, 3)
    first = graph.add("MatMul", x, graph.weight(FC, 0.00625, "a.weight"))
    second = graph.add("MatMul", x, graph.weight(-FC, 0.00625, "b.weight"))
    converted = convert(tmp_path, graph.model([first, second]))
    assert op_types(converted.deploy).count("AscendQuant") == 1
    assert {node(converted.deploy, name).input[0] for name in "ab"} == {"a.quant.output0"}
    check_same(converted, X, atol=1e-6)


def test_layers_with_one_weight_get_names_and_weights_of_their_own(tmp_path):
    graph = Qdq()
    w = graph.weight(FC, 0.00625)
    outputs = [graph.add("MatMul", graph.pair("x", scale), w) for scale in (0.05, 0.1)]
    converted = convert(tmp_path, graph.model(outputs))
    assert {"fc", "fc1"} <= {n.name for n in converted.deploy.graph.node}
    check_same(converted, X, atol=1e-6)


@pytest.mark.parametrize(
    ("weight", "scale", "name"),
    [
        pytest.param("block.fc.weight", "s", "block.fc", id="after the weight"),
        pytest.param("onnx::Q_3", "block.fc.wts_scales", "block.fc", id="after the scales"),
        pytest.param("v", "block.fc.wts_scales_deploy", "block.fc", id="after exported scales"),
        pytest.param("onnx::Q_3", "s", "layer", id="as the node"),
        pytest.param("act_q.weight", "s", "act_q1", id="of no other node"),
    ],
)
def test_names_of_layers(tmp_path, weight, scale, name):
    graph = Qdq()
    x = graph.pair("x", 0.05, name="act")
    factors = graph.constant(np.float32(0.00625), scale), graph.constant(np.int8(0))
    q = graph.add("QuantizeLinear", graph.constant(FC, weight), *factors)
    w = graph.add("DequantizeLinear", q, *factors)
    converted = convert(tmp_path, graph.model(graph.add("MatMul", x, w, name="layer")))
    assert next(n.name for n in converted.deploy.graph.node if n.op_type == "MatMul") == name


def test_name_of_a_layer_with_a_computed_weight_is_its_own(tmp_path):
    """Not that of the layer which computes the weight."""
    graph = Qdq()
    y = graph.add("MatMul", graph.pair("x", 0.05), graph.weight(FC, 0.00625))
    y = graph.add("MatMul", graph.pair("x", 0.05), graph.add("Transpose", y), name="outer")
    with pytest.raises(RuntimeError, match="outer: its input is quantized"):
        convert(tmp_path, graph.model(y, shape=[2, 3]))


def test_float_layers_stay(tmp_path):
    graph = Qdq()
    y = graph.add("MatMul", graph.pair("x", 0.05), graph.weight(FC, 0.00625))
    y = graph.add("MatMul", graph.add("Relu", y), graph.constant(FC.T.copy()), name="head")
    converted = convert(tmp_path, graph.model(y))
    assert op_types(converted.deploy)[-2:] == ["Relu", "MatMul"]
    check_same(converted, X, atol=1e-5)


def test_weight_alone_quantized_becomes_float_with_a_warning(tmp_path, caplog):
    graph = Qdq()
    y = graph.add("MatMul", graph.pair("x", 0.05), graph.weight(FC, 0.00625))
    y = graph.add("MatMul", y, graph.weight(FC.T, 0.1, "head.weight"))
    with caplog.at_level(logging.WARNING):
        converted = convert(tmp_path, graph.model(y))
    assert "head: only its weight is quantized: left float" in caplog.text
    assert op_types(converted.deploy).count("AscendQuant") == 1
    check_same(converted, X, atol=1e-5)


def test_other_quantized_constants_become_float_with_a_warning(tmp_path, caplog):
    graph = Qdq()
    y = graph.add("MatMul", graph.pair("x", 0.05), graph.weight(FC, 0.00625))
    y = graph.add("Mul", y, graph.pair(graph.constant(np.float32([1.0, 3.0])), 0.1), name="gain")
    with caplog.at_level(logging.WARNING):
        converted = convert(tmp_path, graph.model(y))
    assert "gain: its quantized constant becomes float" in caplog.text
    check_same(converted, X, atol=1e-5)


def test_opset_10_is_raised_to_what_fake_quant_needs(tmp_path):
    converted = convert(tmp_path, one_layer(opset=10))
    assert converted.fake_quant.opset_import[0].version == 11
    check_same(converted, X, atol=1e-6)


# ---- products of two activations ----


def product(first=(0.05, 0), second=(0.1, 0), **options):
    """relu(x) @ transpose(x), both quantized."""
    graph = Qdq()
    left = graph.pair(graph.add("Relu", "x"), *first, **options)
    right = graph.pair(graph.add("Transpose", "x", perm=[0, 2, 1]), *second, **options)
    return graph.model(graph.add("MatMul", left, right, name="qk"), shape=["N", 4, 2])


def test_product_of_two_activations(tmp_path):
    converted = convert(tmp_path, product())
    deploy = converted.deploy
    assert list(node(deploy, "qk").input) == ["qk.quant.output0", "qk.second.quant.output0"]
    assert attributes(deploy, "qk.quant")["scale"] == 20.0
    assert attributes(deploy, "qk.second.quant")["scale"] == 10.0
    (word,) = constant(deploy, "qk.dequant.param").astype(np.uint32).view(np.float32)
    assert word == np.float32(0.05) * np.float32(0.1)
    # As many matrices as half their rows: nothing tells them from packed weights but their rank.
    check_same(converted, RNG.normal(size=(1, 4, 2)).astype(np.float32), atol=1e-6)
    check_same(converted, RNG.normal(size=(2, 4, 2)).astype(np.float32), atol=1e-6)


def test_product_of_a_value_with_itself_quantizes_it_once(tmp_path):
    graph = Qdq()
    x = graph.pair("x", 0.05)
    converted = convert(tmp_path, graph.model(graph.add("MatMul", x, x), shape=[3, 3]))
    assert op_types(converted.deploy) == ["AscendQuant", "MatMul", "AscendDequant"]
    check_same(converted, RNG.normal(size=(3, 3)).astype(np.float32), atol=1e-6)


def test_product_and_layer_share_the_quantization_of_their_input(tmp_path):
    graph = Qdq()
    x = graph.pair("x", 0.05)
    y = graph.add("MatMul", x, graph.weight(np.eye(2, dtype=np.float32), 0.01))
    z = graph.add("MatMul", graph.pair(graph.add("Transpose", y), 0.1), x)
    converted = convert(tmp_path, graph.model(z, shape=[2, 2]))
    assert op_types(converted.deploy).count("AscendQuant") == 2
    check_same(converted, X[:, :2], atol=1e-6)


@pytest.mark.parametrize("where", ["first", "second"])
def test_product_with_an_offset(tmp_path, where):
    with pytest.raises(RuntimeError, match="qk: expected 8 bits and offset 0 at both inputs"):
        convert(tmp_path, product(**{where: (0.05, 3)}))


def test_product_in_16_bits(tmp_path):
    model = product(codes=INT16)
    model.opset_import[0].version = 21
    with pytest.raises(RuntimeError, match="got 16 bits and offset 0 at input 0"):
        convert(tmp_path, model)


def test_product_with_a_vector(tmp_path):
    graph = Qdq()
    x = graph.pair("x", 0.05)
    model = graph.model(graph.add("MatMul", x, x, name="dot"), shape=[3])
    with pytest.raises(RuntimeError, match="dot: expected inputs of 2 dimensions or more, got 1"):
        convert(tmp_path, model)


def test_product_with_one_float_input(tmp_path):
    graph = Qdq()
    y = graph.add("MatMul", graph.pair("x", 0.05, name="act"), "x", name="qk")
    with pytest.raises(RuntimeError, match="qk: its input is quantized .* is computed in forward"):
        convert(tmp_path, graph.model(y, shape=[3, 3]))


# ---- what has no deploy form ----


def test_weight_with_a_zero_point(tmp_path):
    with pytest.raises(RuntimeError, match="fc: expected weights with zero point 0, got 5"):
        convert(tmp_path, one_layer(zero=5))


@pytest.mark.parametrize("which", [1, 2], ids=["scale", "zero point"])
@pytest.mark.parametrize("name", ["act", "w"])
def test_pair_with_different_factors(tmp_path, name, which):
    model = one_layer()
    other = np.float32(0.07) if which == 1 else np.int8(1)
    model.graph.initializer.append(numpy_helper.from_array(np.array(other), "other"))
    node(model, f"{name}_dq").input[which] = "other"
    with pytest.raises(RuntimeError, match=rf"{name}_q and {name}_dq: expected one scale and one"):
        convert(tmp_path, model)


def test_scales_per_channel_of_a_matmul(tmp_path):
    with pytest.raises(RuntimeError, match='"fc": scale_w: expected 1 for this MatMul, found 2'):
        convert(tmp_path, one_layer(scale=[0.01, 0.02], axis=1))


def test_scales_along_an_input_channel(tmp_path):
    with pytest.raises(RuntimeError, match="fc: expected one weight scale, or one per output ch"):
        convert(tmp_path, one_layer(scale=[0.01, 0.02, 0.03], axis=0))


def test_scales_that_do_not_fit_the_axis(tmp_path):
    with pytest.raises(RuntimeError, match=r"w_q: 2 scales do not fit axis 0 of shape \[3, 2\]"):
        convert(tmp_path, one_layer(scale=[0.01, 0.02], axis=0))


def test_scales_per_channel_of_an_activation(tmp_path):
    with pytest.raises(RuntimeError, match="fc: expected one scale for its input, act_q has 3"):
        convert(tmp_path, one_layer(([0.1, 0.2, 0.3], 0)))


def test_scales_per_channel_below_opset_13(tmp_path):
    with pytest.raises(RuntimeError, match="w_q: one scale per channel needs opset 13 or above"):
        convert(tmp_path, one_layer(scale=[0.01, 0.02], opset=12))


def test_opset_without_quantization(tmp_path):
    with pytest.raises(RuntimeError, match="expected opset 10 or above"):
        convert(tmp_path, one_layer(opset=9))


def test_input_alone_quantized(tmp_path):
    graph = Qdq()
    x = graph.pair("x", 0.05, name="act")
    model = graph.model(graph.add("MatMul", x, graph.constant(FC, "fc.weight")))
    with pytest.raises(RuntimeError, match=r"fc: its input is quantized \(by act_dq\), but its w"):
        convert(tmp_path, model)


def test_pair_at_no_layer(tmp_path):
    graph = Qdq()
    y = graph.add("MatMul", graph.pair("x", 0.05), graph.weight(FC, 0.00625))
    model = graph.model(graph.add("Relu", graph.pair(y, 0.1, name="out"), name="relu"))
    with pytest.raises(RuntimeError, match="out_dq: has no deploy form; .* is read by relu"):
        convert(tmp_path, model)


def test_pair_at_a_layer_and_elsewhere(tmp_path):
    graph = Qdq()
    x = graph.pair("x", 0.05, name="act")
    y = graph.add("MatMul", x, graph.weight(FC, 0.00625))
    model = graph.model([y, graph.add("Relu", x, name="relu")])
    with pytest.raises(RuntimeError, match="act_dq: has no deploy form; .* is read by relu"):
        convert(tmp_path, model)


def test_codes_that_come_from_no_quantization(tmp_path):
    model = one_layer()
    model.graph.node.insert(1, helper.make_node("Identity", ["v0"], ["copy"], name="copy"))
    node(model, "act_dq").input[0] = "copy"
    with pytest.raises(RuntimeError, match="fc: expected QuantizeLinear directly before act_dq, f"):
        convert(tmp_path, model)


def test_computed_factors(tmp_path):
    model = one_layer()
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x"], ["s"], keepdims=0))
    node(model, "act_q").input[1] = "s"
    with pytest.raises(RuntimeError, match="act_q: expected constant factors, found computed one"):
        convert(tmp_path, model)


def test_float16_factors(tmp_path):
    model = one_layer(opset=19)
    for initializer in model.graph.initializer:
        if initializer.name == node(model, "act_q").input[1]:
            initializer.CopyFrom(
                numpy_helper.from_array(np.array(np.float16(0.05)), initializer.name)
            )
    with pytest.raises(RuntimeError, match="act_q: expected a float32 scale, got float16"):
        convert(tmp_path, model)


@pytest.mark.parametrize("scale", [0.0, np.nan, np.inf], ids=str)
def test_scales_of_no_use(tmp_path, scale):
    with pytest.raises(RuntimeError, match="w_q: expected finite scales above 0"):
        convert(tmp_path, one_layer(scale=scale))


def test_weight_with_nan(tmp_path):
    with pytest.raises(RuntimeError, match="w_q: expected numbers to quantize, found NaN"):
        convert(tmp_path, one_layer(array=np.full_like(FC, np.nan)))


def test_16_bit_weights(tmp_path):
    with pytest.raises(RuntimeError, match="\"fc\": wts_type: expected .*, got 'INT16'"):
        convert(tmp_path, one_layer(codes=INT16, opset=21))


def test_codes_of_another_type(tmp_path):
    with pytest.raises(RuntimeError, match="act_q: expected codes of INT4, .*, got FLOAT8E4M3FN"):
        convert(tmp_path, one_layer(act_codes=TensorProto.FLOAT8E4M3FN, act=(0.05, 0), opset=19))


def test_odd_number_of_4_bit_weights(tmp_path):
    with pytest.raises(RuntimeError, match="fc: 4-bit weights are packed in pairs .* which are 3"):
        convert(tmp_path, one_layer(codes=INT4, opset=21))


def test_gemm_with_a_transposed_input(tmp_path):
    graph = Qdq()
    y = graph.add("Gemm", graph.pair("x", 0.05), graph.weight(FC.T, 0.00625), transA=1)
    with pytest.raises(RuntimeError, match="fc: cannot be quantized: its input is transposed"):
        convert(tmp_path, graph.model(y, shape=[2, 3]))


def test_model_without_quantization(tmp_path):
    graph = Qdq()
    model = graph.model(graph.add("MatMul", "x", graph.constant(FC)))
    with pytest.raises(RuntimeError, match=r"qat.onnx: no quantized layer; expected a model with"):
        convert(tmp_path, model)


def test_nothing_is_written_after_an_error(tmp_path):
    with pytest.raises(RuntimeError):
        convert(tmp_path, one_layer(zero=5))
    assert [path.name for path in tmp_path.iterdir()] == ["qat.onnx"]
