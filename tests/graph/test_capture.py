"""Which nodes belong to which module, whatever the exporter names them."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

from amct_pytorch.graph.capture import capture
from amct_pytorch.graph.facts import analyze, is_of_interest
from amct_pytorch.graph.options import ExportOptions

OPSETS = [11, 13, 17, 18]


def facts_of(model, x, opset=13, **options):
    model.eval()
    captured = capture(model, x, ExportOptions(opset_version=opset, **options), is_of_interest)
    return analyze(model, captured)


def reasons(model, x, opset=13):
    return {name: layer.reason for name, layer in facts_of(model, x, opset).layers.items()}


class Confusing(nn.Module):
    """Names that the exporter's own numbering collides with."""

    def __init__(self):
        super().__init__()
        self.pool, self.pool_1 = nn.AvgPool2d(2), nn.AvgPool2d(2)
        self.conv, self.conv_1 = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1)
        self.left = nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.right = nn.ModuleDict({"a": nn.Linear(4, 4)})
        self.alias = self.conv

    def forward(self, x):
        x = self.pool_1(self.pool(self.pool(self.conv_1(self.alias(x)))))
        return self.left["a"](x) + self.right["a"](x)


@pytest.mark.parametrize("opset", OPSETS)
def test_confusing_names(opset):
    found = reasons(Confusing(), torch.randn(2, 1, 32, 32), opset)
    assert found == {
        "pool": "it runs 2 times in one forward",
        "pool_1": None,
        "conv": None,
        "conv_1": None,
        "left.a": None,
        "right.a": None,
    }


class Shapes(nn.Module):
    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, *, flip=None):
        if x.shape[0] > 1 and x.dim() == 3:
            x = x.flip(1) if flip is not None else x
            return self.large(x)
        return self.small(x)


@pytest.mark.parametrize("opset", OPSETS)
def test_control_flow_on_shapes_and_keyword_inputs(opset):
    data = (torch.randn(2, 5, 4), {"flip": torch.ones(1)})
    assert reasons(Shapes(), data, opset) == {
        "small": "forward does not call it with this input_data",
        "large": None,
    }


def test_shared_parameters_are_told_with_their_owner():
    model = nn.Sequential(nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1), nn.Conv1d(2, 2, 1))
    model[1].weight = model[0].weight
    assert reasons(model, torch.randn(1, 2, 4)) == {
        "0": "it shares its weight with 1",
        "1": "it shares its weight with 0",
        "2": None,
    }


def test_a_parameter_of_the_model_itself():
    model = nn.Sequential(nn.Linear(4, 4))
    model.tied = model[0].weight
    assert reasons(model, torch.ones(1, 4)) == {"0": "it shares its weight with the model itself"}


def test_equal_but_separate_weights_are_not_shared():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].load_state_dict(model[0].state_dict())
    assert reasons(model, torch.randn(1, 3)) == {"0": None, "1": None}


class Reading(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 1, 3), nn.Conv2d(1, 1, 3)

    def forward(self, x):
        return self.b(nn.functional.conv2d(self.a(x), self.a.weight))


@pytest.mark.parametrize("opset", OPSETS)
def test_a_weight_that_forward_uses_twice_is_shared_too(opset):
    assert reasons(Reading(), torch.randn(1, 1, 9, 9), opset) == {
        "a": "its weight is also used elsewhere in forward",
        "b": None,
    }


def parametrized(name):
    class Twice(nn.Module):
        def forward(self, value):
            return value * 2

    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, name, Twice())
    return layer


def hooked(register, hook):
    layer = nn.Conv2d(1, 1, 1)
    getattr(layer, register)(hook)
    return layer


class Doubling(nn.Conv2d):
    def forward(self, x):
        return super().forward(x * 2)


class Plain(nn.Conv2d):
    pass


@pytest.mark.parametrize(
    ("layer", "x", "reason"),
    [
        (Plain(1, 1, 1), torch.randn(1, 1, 4, 4), None),
        (Doubling(1, 1, 1), torch.randn(1, 1, 4, 4), "its forward runs Mul before Conv"),
        (
            nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"),
            torch.randn(1, 1, 4, 4),
            "it has padding_mode 'circular', only 'zeros' can be quantized",
        ),
        (
            nn.Conv3d(1, 1, 2, dilation=(2, 1, 1)),
            torch.randn(1, 1, 4, 4, 4),
            "it has dilation (2, 1, 1), the first entry must be 1",
        ),
        (
            nn.Conv2d(1, 1, 1),
            torch.randn(1, 4, 4),
            "it is called on an input without a batch dimension",
        ),
        (nn.Linear(4, 4), torch.randn(4), "it is called on inputs of 1 dimensions, not 2 to 4"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
            torch.randn(2, 4),
            "its weight is parametrized, not a plain parameter",
        ),
        (
            parametrized("bias"),
            torch.randn(2, 4),
            "its bias is parametrized, not a plain parameter",
        ),
        (
            hooked("register_forward_pre_hook", lambda module, args: (args[0] * 2,)),
            torch.randn(1, 1, 4, 4),
            "its forward runs Mul before Conv",
        ),
        (
            hooked("register_forward_hook", lambda module, args, output: output.relu()),
            torch.randn(1, 1, 4, 4),
            "its forward runs Relu after Conv",
        ),
        (hooked("register_forward_hook", lambda *_: None), torch.randn(1, 1, 4, 4), None),
        (
            nn.AvgPool2d(2, divisor_override=3),
            torch.randn(1, 1, 4, 4),
            "its forward runs Mul after AveragePool",
        ),
        (nn.Conv2d(1, 1, 2, padding="same"), torch.randn(1, 1, 4, 4), None),
    ],
    ids=[
        *("subclass", "own forward", "circular", "dilation", "unbatched", "vector", "weight norm"),
        *("bias", "pre-hook", "hook", "idle hook", "divisor", "same"),
    ],
)
@pytest.mark.parametrize("opset", [13, 18])
def test_reason(layer, x, reason, opset):
    assert reasons(nn.Sequential(layer), x, opset) == {"0": reason}


@pytest.mark.parametrize("opset", OPSETS)
def test_batch_norm_pairs(opset):
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)
    )
    assert facts_of(model, torch.randn(2, 1, 4, 4), opset).batch_norms == {"1": "0"}


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.conv(x)
        return self.bn(x) + x


class ActivatedBatchNorm(nn.BatchNorm2d):
    def forward(self, x):
        return torch.relu(super().forward(x))


class Folded(nn.Module):
    """`other` reads a tensor that folding the BatchNorm would change, or take away."""

    def __init__(self, other=None, batch_norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(2, 4, 1), batch_norm(4), other

    def forward(self, x):
        y = self.bn(self.conv(x))
        return y if self.other is None else y * self.other(self).sum()


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize(
    ("model", "pairs"),
    [
        (Folded(), {"bn": "conv"}),
        (Folded(batch_norm=ActivatedBatchNorm), {}),
        (Folded(lambda m: m.conv.bias), {}),
        (Folded(lambda m: m.bn.weight), {}),
        (Folded(lambda m: m.bn.running_var), {}),
    ],
    ids=["plain", "activated", "bias", "weight", "variance"],
)
def test_pairs_that_can_be_folded(model, pairs, opset):
    assert facts_of(model, torch.randn(2, 2, 3, 3), opset).batch_norms == pairs


@pytest.mark.parametrize("opset", [13, 18])
def test_a_hook_behind_a_batch_norm(opset):
    model = Folded()
    model.bn.register_forward_hook(lambda module, args, output: output * 2)
    assert facts_of(model, torch.randn(2, 2, 3, 3), opset).batch_norms == {}


def test_no_pair_when_the_convolution_has_another_reader():
    assert facts_of(TwoReaders(), torch.randn(2, 1, 4, 4)).batch_norms == {}


class Broken(nn.Module):
    def forward(self, x):
        return x @ torch.zeros(3)  # the user's own line


class Unknown(nn.Module):
    def forward(self, x):
        return torch.linalg.svd(x)[0]  # the user's own line


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("model", [Broken(), Unknown()], ids=["raises", "no ONNX form"])
def test_a_failed_capture_shows_the_users_line(model, opset, capsys):
    if isinstance(model, Unknown) and opset == 18:
        pytest.skip("the newer exporter knows this operator")
    with pytest.raises(RuntimeError, match=r"cannot be captured") as error:
        capture(model, torch.randn(4, 4), ExportOptions(opset_version=opset), is_of_interest)
    assert f"{__file__}:" in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"input_names": "x"}, TypeError, "input_names"),
        ({"output_names": [1]}, RuntimeError, "output_names"),
        ({"dynamic_axes": []}, TypeError, "dynamic_axes"),
        ({"dynamic_axes": {1: [0]}}, RuntimeError, "dynamic_axes"),
        ({"dynamic_axes": {"x": 0}}, RuntimeError, "dynamic_axes"),
        ({"dynamic_axes": {"x": [-1]}}, RuntimeError, "dynamic_axes"),
        ({"dynamic_axes": {"x": {0: 1}}}, RuntimeError, "dynamic_axes"),
        ({"opset_version": 10}, ValueError, "opset_version"),
        ({"opset_version": "13"}, TypeError, "opset_version"),
    ],
    ids=str,
)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        ExportOptions(**options)


class Scaled(nn.Module):
    """A parameter with the name of an argument."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        self.fc = nn.Linear(4, 4)

    def forward(self, x, weight=None):
        return self.fc(x * self.weight * weight)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("argument", ["input_names", "output_names"])
def test_a_value_cannot_have_the_name_of_a_parameter(opset, argument):
    model, x = Scaled().eval(), (torch.ones(1, 4), {"weight": torch.ones(1)})
    options = ExportOptions(opset_version=opset, **{argument: ["fc.weight"]})
    with pytest.raises(ValueError, match=f"{argument}: 'fc.weight' is the name of a parameter"):
        capture(model, x, options, is_of_interest)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("keyword", [False, True], ids=["positional", "keyword"])
def test_an_argument_named_like_a_parameter(opset, keyword):
    model, ones, weight = Scaled().eval(), torch.ones(1, 4), torch.tensor([2.0])
    x = (ones, {"weight": weight}) if keyword else (ones, weight)
    proto = ir.to_proto(capture(model, x, ExportOptions(opset_version=opset), is_of_interest).model)
    feeds = dict(zip((i.name for i in proto.graph.input), (ones, weight), strict=True))
    (result,) = ReferenceEvaluator(proto).run(None, {k: np.asarray(v) for k, v in feeds.items()})
    np.testing.assert_allclose(result, model(ones, weight).detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("opset", OPSETS)
def test_more_names_than_inputs(opset, caplog):
    options = ExportOptions(["x", "mask"], opset_version=opset)
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    graph = capture(model, torch.ones(1, 4), options, is_of_interest).model.graph
    assert [value.name for value in graph.inputs] == ["x"]
    assert {"0.weight", "0.bias"} <= set(graph.initializers)
    assert "input_names: the model is called on 1 tensors, so 'mask' are not used" in caplog.text


@pytest.mark.parametrize("opset", OPSETS)
def test_dynamic_axes_of_no_input_are_told(opset, caplog):
    caplog.set_level("WARNING")
    axes = {"x": {0: "rows"}, "image": {0: "rows"}}
    options = ExportOptions(["x"], ["y"], axes, opset)
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    graph = capture(model, torch.ones(2, 4), options, is_of_interest).model.graph
    assert str(graph.inputs[0].shape[0]) == "rows"
    told = [record.getMessage() for record in caplog.records]
    assert told == [
        "dynamic_axes: no input or output of the graph is named 'image'; there are 'x', 'y'"
    ]


class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(0.05)  # long enough for the captures to meet
        return super().forward(x)


@pytest.mark.parametrize("opset", [13, 18])
def test_two_models_at_once(opset):
    with ThreadPoolExecutor(2) as threads:
        models = [nn.Sequential(Slow(4, 4)) for _ in range(2)]
        found = list(threads.map(lambda m: reasons(m, torch.ones(1, 4), opset), models))
    assert found == [{"0": None}] * 2


@pytest.mark.parametrize("opset", [13, 18])
def test_a_capture_shows_evaluation_mode_and_restores_each_mode(opset):
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Dropout(), nn.BatchNorm2d(2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    options = ExportOptions(opset_version=opset)
    graph = capture(model, torch.randn(2, 1, 4, 4), options, is_of_interest).model.graph
    assert [module.training for module in model.modules()] == modes
    assert [node.op_type for node in graph] == ["Conv", *["BatchNormalization"] * 2]
    assert not any(len(node.outputs) > 1 for node in graph)


@pytest.mark.parametrize("opset", [13, 18])
@pytest.mark.parametrize("padding", [0, 1])
def test_a_divisor_of_its_own_reaches_the_graph(opset, padding):
    layer = nn.AvgPool2d((3, 2), padding=padding, count_include_pad=False, divisor_override=4)
    x, options = torch.randn(1, 2, 6, 6), ExportOptions(opset_version=opset)
    model = capture(nn.Sequential(layer).eval(), x, options, is_of_interest).model
    result = ReferenceEvaluator(ir.to_proto(model)).run(
        None, {model.graph.inputs[0].name: x.numpy()}
    )
    np.testing.assert_allclose(result[0], layer(x).numpy(), rtol=1e-6)


@pytest.mark.parametrize("opset", [13, 18])
def test_a_dict_is_an_argument_before_empty_keywords(opset):
    class Entry(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, inputs):
            return self.fc(inputs["x"])

    assert reasons(Entry(), ({"x": torch.randn(2, 4)}, {}), opset) == {"fc": None}


def test_the_graph_has_no_notes_about_the_users_files():
    options = ExportOptions(opset_version=18)
    model = capture(Confusing().eval(), torch.randn(2, 1, 32, 32), options, is_of_interest).model
    assert os.path.dirname(__file__).encode() not in ir.to_proto(model).SerializeToString()


class Counting(nn.Module):
    """A forward that writes to a buffer, and puts another in the place of a second."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("gain", torch.ones(4))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        y = self.fc(x) * self.gain
        with torch.no_grad():
            self.gain.mul_(2)
            self.calls = self.calls + 1
        return y


@pytest.mark.parametrize("opset", [13, 18])
def test_buffers_that_forward_writes_to(opset):
    model = Counting().eval()
    captured = capture(
        model, torch.ones(1, 4), ExportOptions(opset_version=opset), is_of_interest
    ).model
    assert model.gain.tolist() == [1, 1, 1, 1]
    assert model.calls.tolist() == [0]
    model(torch.ones(1, 4))
    assert model.gain.tolist() == [2, 2, 2, 2]
    assert captured.graph.initializers["gain"].const_value.numpy().tolist() == [1, 1, 1, 1]
