"""QuantizeLinear/DequantizeLinear models for tests, and what becomes of them."""

from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy


@dataclass
class Qdq:
    """Builds a graph node by node; every method returns the name of a value."""

    nodes: list = field(default_factory=list)
    initializers: list = field(default_factory=list)

    def add(self, op_type, *inputs, name=None, **attributes):
        output = f"v{len(self.nodes)}"
        name = name or f"{op_type}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], name=name, **attributes))
        return output

    def constant(self, array, name=None, data_type=None):
        name = name or f"c{len(self.initializers)}"
        tensor = numpy_helper.from_array(np.asarray(array), name)
        if data_type is not None:
            values = np.asarray(array)
            tensor = helper.make_tensor(name, data_type, values.shape, values.reshape(-1).tolist())
        self.initializers.append(tensor)
        return name

    def factors(self, scale, zero, codes):
        zeros = np.broadcast_to(zero, np.shape(scale))
        return self.constant(np.float32(scale)), self.constant(zeros, data_type=codes)

    def pair(self, value, scale, zero=0, codes=TensorProto.INT8, name="", **attributes):
        factors = self.factors(scale, zero, codes)
        q = self.add("QuantizeLinear", value, *factors, name=name and f"{name}_q", **attributes)
        return self.add("DequantizeLinear", q, *factors, name=name and f"{name}_dq", **attributes)

    def weight(self, array, scale, name="fc.weight", **attributes):
        return self.pair(self.constant(np.asarray(array, np.float32), name), scale, **attributes)

    def model(self, outputs, shape=("N", 3), opset=13):
        outputs = [outputs] if isinstance(outputs, str) else outputs
        graph = helper.make_graph(
            self.nodes,
            "qdq",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8 if opset < 21 else 10)


@dataclass
class Converted:
    qdq: onnx.ModelProto
    fake_quant: onnx.ModelProto
    deploy: onnx.ModelProto

    def outputs(self, *inputs):
        """Of the model, of fake_quant and of deploy."""
        feeds = {i.name: x for i, x in zip(self.qdq.graph.input, inputs, strict=True)}
        deploy = run_deploy(self.deploy, feeds)
        return run(self.qdq, feeds), run(self.fake_quant, feeds), list(deploy.values())


def convert(folder, model):
    """What `convert_qat_model` writes for `model`, a proto or nothing if it is there already."""
    source = folder / "qat.onnx"
    if model is not None:
        onnx.save(model, source)
    amct.convert_qat_model(str(source), str(folder / "out"))
    paths = (source, folder / "out_fake_quant_model.onnx", folder / "out_deploy_model.onnx")
    return Converted(*map(onnx.load, paths))


def check_same(converted, *inputs, atol, deploy_rtol=0.0):
    """fake_quant computes what the model does, but for `atol`; deploy what fake_quant does."""
    onnx.checker.check_model(converted.fake_quant, full_check=True)
    for expected, fake_quant, deploy in zip(*converted.outputs(*inputs), strict=True):
        np.testing.assert_allclose(fake_quant, expected, rtol=1e-5, atol=atol)
        np.testing.assert_allclose(deploy, fake_quant, rtol=deploy_rtol, atol=0)


def run(model, feeds):
    """All outputs in stock ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def attributes(model, name):
    return {a.name: helper.get_attribute_value(a) for a in node(model, name).attribute}


def constant(model, name):
    return numpy_helper.to_array(next(i for i in model.graph.initializer if i.name == name))


def op_types(model):
    return [n.op_type for n in model.graph.node]
