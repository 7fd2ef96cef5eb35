"""Layers as graphs hold them in practice: where weight, bias, padding and output may stand.

Each graph is written by hand, quantized by `save_model`, and its three forms must agree.
"""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from ptq_flow import run_session

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy

RNG = np.random.default_rng(0)
W = (RNG.standard_normal((4, 3)) * 0.5).astype(np.float32)  # [K, N]
B = (RNG.standard_normal(3) * 0.3).astype(np.float32)
X = RNG.standard_normal((5, 4)).astype(np.float32)
LINEAR = {"fc": (0.02, 3, float(np.abs(W).max()) / 127)}


def initializer(name, array):
    return numpy_helper.from_array(np.ascontiguousarray(array), name)


def constant(name, array):
    return helper.make_node("Constant", [], [name], name, value=initializer(name, array))


def node(op, inputs, output="y", name="fc", **attributes):
    return helper.make_node(op, inputs, [output], name, **attributes)


def model_of(nodes, initializers, x=X, outputs=("y",), opset=13, inputs=()):
    """A model from `x` of the shape of X to outputs of any shape."""
    infos = [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape)), *inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    tensors = [initializer(name, array) for name, array in initializers.items()]
    graph = helper.make_graph(nodes, "graph", infos, results, tensors)
    opsets = [helper.make_opsetid("", opset)]
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=opsets, ir_version=8)
    )


def record_text(layers):
    entries = []
    for name, (scale_d, offset_d, *scale_w) in layers.items():
        weights = "".join(f"scale_w: {scale} " for scale in scale_w)
        weights += "offset_w: 0 " * len(scale_w)
        entries.append(
            f'record {{ key: "{name}" value {{ scale_d: {scale_d} offset_d: {offset_d} {weights}'
            "} }"
        )
    return "\n".join(entries)


@pytest.fixture
def saved(tmp_path):
    """Quantizes a model and returns (deploy, fake_quant) when all forms agree."""

    def save(model, layers, x=X, least_sqnr=25):
        onnx.checker.check_model(model, full_check=True)
        modified, record = tmp_path / "modified.onnx", tmp_path / "record.txt"
        onnx.save(model, modified)
        record.write_text(record_text(layers))
        amct.save_model(str(modified), str(record), str(tmp_path / "out"))
        deploy = onnx.load(tmp_path / "out_deploy_model.onnx")
        fake = onnx.load(tmp_path / "out_fake_quant_model.onnx")
        onnx.checker.check_model(fake, full_check=True)
        expected, result = run_session(model, {"x": x}), run_session(fake, {"x": x})
        exact = run_deploy(deploy, {"x": x})
        assert list(result) == list(expected) == list(exact)
        for name, value in result.items():
            np.testing.assert_allclose(exact[name], value, rtol=1e-6, atol=1e-6)
            error = value - expected[name]
            signal, noise = (expected[name] ** 2).sum(), (error**2).sum()
            assert 10 * np.log10(signal / noise) > least_sqnr, name
        return deploy, fake

    return save


def tensors(model):
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def ops(model):
    return [n.op_type for n in model.graph.node]


GEMMS = {
    "plain": ({}, W, B),
    "transB": ({"transB": 1}, W.T, B),
    "alpha": ({"alpha": 0.5}, W * 2, B),
    "beta": ({"beta": 0.25}, W, B * 4),
    "all of them": ({"transB": 1, "alpha": 2.0, "beta": 3.0}, W.T / 2, B / 3),
    "bias of two dimensions": ({}, W, B[None]),
}


@pytest.mark.parametrize(("attributes", "weight", "bias"), GEMMS.values(), ids=GEMMS)
def test_every_gemm_becomes_the_same_integers(saved, attributes, weight, bias):
    gemm = node("Gemm", ["x", "w", "b"], **attributes)
    deploy, _ = saved(model_of([gemm], {"w": weight, "b": bias}), LINEAR)
    scale_d, _, scale_w = LINEAR["fc"]
    found = tensors(deploy)
    codes = np.rint(W / np.float32(scale_w))
    assert np.abs(found["fc.weight"] - codes).max() <= 1  # alpha moves a tie
    product = float(np.float32(scale_d) * np.float32(scale_w))
    np.testing.assert_allclose(found["fc.bias"], B / product, atol=0.51)
    (gemm,) = (n for n in deploy.graph.node if n.op_type == "Gemm")
    assert not {"transB", "alpha", "beta"} & {a.name for a in gemm.attribute}


def test_a_gemm_without_bias(saved):
    deploy, _ = saved(model_of([node("Gemm", ["x", "w"])], {"w": W}), LINEAR)
    assert "fc.bias" not in tensors(deploy)


REFUSED = {
    "a transposed input": (node("Gemm", ["xt", "w"], transA=1), W),
    "a bias for each row": (node("Gemm", ["x", "w", "rows"]), W),
    "a weight of three dimensions": (node("MatMul", ["x", "w"]), W[None]),
}


@pytest.mark.parametrize(("layer", "weight"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_layer_is_refused_by_name(saved, layer, weight):
    transpose = node("Transpose", ["x"], "xt", "t", perm=[1, 0])
    constants = {"w": weight.astype(np.float32), "rows": np.ones((5, 3), np.float32)}
    with pytest.raises(RuntimeError, match='layer "fc": key: .*no quantizable layer'):
        saved(model_of([transpose, layer], constants), LINEAR)


@pytest.mark.parametrize("first", [True, False], ids=["bias first", "bias second"])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_bias_at_either_input_of_the_add(saved, first, rank):
    x = X if rank == 2 else X.reshape(1, 5, 4)
    inputs = ["b", "h"] if first else ["h", "b"]
    nodes = [node("MatMul", ["x", "w"], "h"), node("Add", inputs, name="add")]
    deploy, _ = saved(model_of(nodes, {"w": W, "b": B}, x), LINEAR, x)
    assert ops(deploy) == ["AscendQuant", "MatMul", "Add", "AscendDequant"]
    assert tensors(deploy)["fc.bias"].dtype == np.int32


def test_an_add_that_is_no_bias_stays_float(saved):
    for other in (B[None], np.float32(0.5)):  # not of one dimension
        nodes = [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"], name="add")]
        deploy, _ = saved(model_of(nodes, {"w": W, "b": np.asarray(other)}), LINEAR)
        assert ops(deploy) == ["AscendQuant", "MatMul", "AscendDequant", "Add"]


def test_a_product_that_is_read_twice_has_no_bias(saved):
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("Add", ["h", "b"], "s", "add"),
        node("Mul", ["s", "h"], name="mul"),
    ]
    deploy, _ = saved(model_of(nodes, {"w": W, "b": B}), LINEAR, least_sqnr=20)
    assert ops(deploy) == ["AscendQuant", "MatMul", "AscendDequant", "Add", "Mul"]


BEHIND = {
    "Constant": [constant("w", W)],
    "Identity": [node("Identity", ["v"], "w", "i")],
    "Transpose": [node("Transpose", ["t"], "w", "t", perm=[1, 0])],
    "Transpose by default": [node("Transpose", ["t"], "w", "t")],
    "Transpose of a Constant": [constant("c", W.T), node("Transpose", ["c"], "w", "t")],
}


@pytest.mark.parametrize("nodes", BEHIND.values(), ids=BEHIND)
def test_a_weight_behind_other_nodes(saved, nodes):
    graph = model_of([*nodes, node("MatMul", ["x", "w"])], {"v": W, "t": W.T})
    deploy, _ = saved(graph, LINEAR)
    assert ops(deploy) == ["AscendQuant", "MatMul", "AscendDequant"]
    codes = np.rint(W / np.float32(LINEAR["fc"][2]))
    np.testing.assert_array_equal(tensors(deploy)["fc.weight"], codes)


def test_a_transposed_weight_of_a_convolution(saved):
    weight = RNG.standard_normal((3, 4, 1, 2)).astype(np.float32)
    x = RNG.standard_normal((2, 4, 5, 5)).astype(np.float32)
    nodes = [
        node("Transpose", ["t"], "w", "t", perm=[2, 1, 3, 0]),
        node("Conv", ["x", "w"], kernel_shape=[1, 2], name="fc"),
    ]
    layers = {"fc": (0.03, -4, float(np.abs(weight).max()) / 127)}
    graph = model_of(nodes, {"t": weight.transpose(3, 1, 0, 2)}, x)
    deploy, _ = saved(graph, layers, x)
    assert tensors(deploy)["fc.weight"].shape == (3, 4, 1, 2)


def test_a_weight_that_another_node_reads_stays_float_there(saved):
    nodes = [
        node("MatMul", ["x", "w"], "h"),
        node("ReduceSum", ["w"], "s", "sum", keepdims=0),
        node("Add", ["h", "s"], name="add"),
    ]
    deploy, fake = saved(model_of(nodes, {"w": W}), LINEAR)
    for model in (deploy, fake):
        np.testing.assert_array_equal(tensors(model)["w"], W)


def test_one_bias_of_two_layers_becomes_two(saved):
    nodes = [
        node("Gemm", ["x", "w", "b"], "h", "one"),
        node("Gemm", ["x", "w", "b"], "g", "two"),
        node("Add", ["h", "g"], name="add"),
    ]
    scale = LINEAR["fc"][2]
    layers = {"one": (0.02, 3, scale), "two": (0.04, 1, scale)}
    deploy, _ = saved(model_of(nodes, {"w": W, "b": B}), layers)
    found = tensors(deploy)
    assert np.abs(found["one.bias"] - 2 * found["two.bias"]).max() <= 1


PADS = np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)
IMAGE = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32)


def pool_after_pad(pads=PADS, fill=0.0, **attributes):
    nodes = [
        node("Pad", ["x", "pads", "fill"], "p", "pool_pad"),
        node("AveragePool", ["p"], name="pool", kernel_shape=[2, 2], **attributes),
    ]
    return model_of(nodes, {"pads": pads, "fill": np.float32(fill)}, IMAGE)


def test_a_pad_with_zeros_is_folded_into_the_pooling(saved):
    deploy, fake = saved(pool_after_pad(), {"pool": (0.03, 7, 1)}, IMAGE)
    assert ops(deploy) == ["AscendQuant", "AveragePool", "AscendDequant"]
    (pool,) = (n for n in fake.graph.node if n.op_type == "AveragePool")
    attributes = {a.name: helper.get_attribute_value(a) for a in pool.attribute}
    assert (attributes["pads"], attributes["count_include_pad"]) == ([1, 1, 1, 1], 1)


@pytest.mark.parametrize(
    "options",
    [{"fill": 1.0}, {"pads": np.roll(PADS, 1)}, {"ceil_mode": 1}],
    ids=["ones", "channels", "ceil_mode"],
)
def test_another_pad_stays_in_front_of_the_quantization(saved, options):
    deploy, _ = saved(pool_after_pad(**options), {"pool": (0.03, 7, 1)}, IMAGE)
    assert ops(deploy) == ["Pad", "AscendQuant", "AveragePool", "AscendDequant"]


def output_names(model):
    return [output.name for output in model.graph.output]


def test_a_layer_at_the_output_gives_its_name_to_what_stands_behind(saved):
    deploy, fake = saved(model_of([node("Gemm", ["x", "w", "b"])], {"w": W, "b": B}), LINEAR)
    produced = {output: n for n in deploy.graph.node for output in n.output}
    assert produced["y"].name == "fc.dequant"
    assert next(n for n in deploy.graph.node if n.name == "fc").output == ["fc_output0"]
    assert output_names(fake) == ["y"]


def test_an_add_at_the_output_gives_its_name_too(saved):
    nodes = [node("MatMul", ["x", "w"], "h"), node("Add", ["h", "b"], name="last")]
    deploy, _ = saved(model_of(nodes, {"w": W, "b": B}), LINEAR)
    assert next(n for n in deploy.graph.node if n.name == "last").output == ["last_output0"]


def test_an_output_that_is_also_read(saved):
    nodes = [node("Gemm", ["x", "w", "b"], "h"), node("Relu", ["h"], name="relu")]
    graph = model_of(nodes, {"w": W, "b": B}, outputs=("h", "y"))
    deploy, _ = saved(graph, LINEAR)
    assert output_names(deploy) == ["h", "y"]
    assert next(n for n in deploy.graph.node if n.name == "relu").input == ["h"]


def test_initializers_that_are_inputs_too_are_no_inputs_of_the_result(saved):
    repeated = [
        helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]),
        helper.make_tensor_value_info("b", TensorProto.FLOAT, [3]),
    ]
    graph = model_of([node("Gemm", ["x", "w", "b"])], {"w": W, "b": B}, inputs=repeated)
    for model in saved(graph, LINEAR):
        assert [i.name for i in model.graph.input] == ["x"]
        assert "w" not in tensors(model)


def test_names_that_are_taken_get_a_number(saved):
    nodes = [
        node("Relu", ["x"], "r", "fc.quant"),
        node("Gemm", ["r", "w", "b"], "h"),
        node("Relu", ["h"], name="fc.dequant"),
    ]
    deploy, _ = saved(model_of(nodes, {"w": W, "b": B, "fc.weight": W}), LINEAR)
    names = [n.name for n in deploy.graph.node]
    assert names == ["fc.quant", "fc.quant1", "fc", "fc.dequant1", "fc.dequant"]


def test_every_opset_import_is_kept(saved, tmp_path):
    graph = model_of([node("Gemm", ["x", "w", "b"])], {"w": W, "b": B})
    graph.opset_import.append(helper.make_opsetid("com.example", 3))
    deploy, fake = saved(graph, LINEAR)
    for model in (deploy, fake):
        assert {(o.domain, o.version) for o in model.opset_import} == {("", 13), ("com.example", 3)}
