"""convert_qat_model on what torch.onnx.export writes, and its files."""

import warnings

import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from qdq_models import Qdq, check_same, constant, convert, node, op_types
from torch import nn

import amct_pytorch as amct

ACT, WEIGHT = 0.02, 0.01  # scales
HALF_A_UNIT = ACT * WEIGHT / 2  # what rounding a bias to its grid can add


def quantized(x, scale=ACT, zero=0):
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, -128, 127)


def compute(layer, x, weight):
    """What `layer` computes, with another weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    operation = {
        nn.Conv1d: F.conv1d,
        nn.Conv2d: F.conv2d,
        nn.Conv3d: F.conv3d,
        nn.ConvTranspose1d: F.conv_transpose1d,
        nn.ConvTranspose2d: F.conv_transpose2d,
    }[type(layer)]
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}
    return operation(x, weight, layer.bias, **options)


class Trained(nn.Module):
    """One layer with fake quantization at its input and its weight, as training has it."""

    def __init__(self, layer, zero=0, axis=None, shift=0):
        super().__init__()
        self.layer, self.zero, self.axis, self.shift = layer, zero, axis, shift
        if axis is not None:
            size = layer.weight.shape[axis]
            self.register_buffer("scales", torch.linspace(WEIGHT / 2, WEIGHT, size))
            self.register_buffer("zeros", torch.zeros(size, dtype=torch.int32))

    def forward(self, x):
        low, high = -128 + self.shift, 127 + self.shift
        x = torch.fake_quantize_per_tensor_affine(x, ACT, self.zero + self.shift, low, high)
        if self.axis is None:
            weight = quantized(self.layer.weight, WEIGHT)
        else:
            weight = torch.fake_quantize_per_channel_affine(
                self.layer.weight, self.scales, self.zeros, self.axis, -128, 127
            )
        return compute(self.layer, x, weight)


def export(folder, model, *inputs, **options):
    options = {"opset_version": 13, "dynamo": False, **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), inputs, str(folder / "qat.onnx"), **options)
    return convert(folder, None)


def seeded(make):
    torch.manual_seed(3)
    return make()


LAYERS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9), 0),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9), 0),
    "conv2d same": (lambda: nn.Conv2d(4, 6, 4, padding="same"), (2, 4, 9, 9), 0),
    "conv2d grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 9), 0),
    "conv2d depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 9, 9), 0),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 0),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 9), 1),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (2, 4, 9, 9), 1),
    "conv_transpose2d grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (2, 4, 9, 9), 1),
    "linear of rank 2": (lambda: nn.Linear(8, 5), (3, 8), None),
    "linear of rank 3": (lambda: nn.Linear(8, 5), (2, 3, 8), None),
}


@pytest.mark.parametrize("folding", [True, False], ids=["folded", "unfolded"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_with_their_usual_scales(tmp_path, name, folding):
    make, shape, axis = LAYERS[name]
    model, x = seeded(lambda: (Trained(make(), zero=-9, axis=axis), torch.randn(shape)))
    converted = export(tmp_path, model, x, do_constant_folding=folding)
    inserted = [op for op in op_types(converted.deploy) if op.startswith("Ascend")]
    assert inserted == ["AscendQuant", "AscendDequant"]
    assert "layer.weight" in {i.name for i in converted.deploy.graph.initializer}
    check_same(converted, x.numpy(), atol=HALF_A_UNIT + 1e-5)


@pytest.mark.parametrize("name", ["conv2d grouped", "conv_transpose2d grouped"])
def test_one_scale_for_all_channels(tmp_path, name):
    make, shape, _ = LAYERS[name]
    model, x = seeded(lambda: (Trained(make()), torch.randn(shape)))
    converted = export(tmp_path, model, x)
    assert constant(converted.deploy, "layer.dequant.param").size == 1
    check_same(converted, x.numpy(), atol=HALF_A_UNIT + 1e-5)


@pytest.mark.parametrize("name", ["conv2d grouped", "linear of rank 3"])
def test_the_newer_exporter(tmp_path, name):
    make, shape, axis = LAYERS[name]
    model, x = seeded(lambda: (Trained(make(), zero=-9, axis=axis), torch.randn(shape)))
    converted = export(tmp_path, model, x, dynamo=True, opset_version=18, verbose=False)
    check_same(converted, x.numpy(), atol=HALF_A_UNIT + 1e-5)


def test_unsigned_activations(tmp_path):
    model, x = seeded(lambda: (Trained(nn.Linear(8, 5), zero=-9, shift=128), torch.randn(3, 8)))
    converted = export(tmp_path, model, x)
    assert node(converted.qdq, "/QuantizeLinear").op_type == "QuantizeLinear"
    check_same(converted, x.numpy(), atol=HALF_A_UNIT + 1e-5)


def test_bias_that_lies_on_the_grid_changes_nothing(tmp_path):
    model, x = seeded(lambda: (Trained(nn.Linear(8, 5)), torch.randn(3, 8)))
    with torch.no_grad():
        model.layer.bias.copy_(torch.arange(-2, 3) * 500 * ACT * WEIGHT)
    check_same(export(tmp_path, model, x), x.numpy(), atol=1e-6)


class Branches(nn.Module):
    """Two convolutions on one quantized input, a float head behind them."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = quantized(x, zero=4)
        left, right = (
            F.conv2d(x, quantized(layer.weight, WEIGHT), layer.bias)
            for layer in (self.left, self.right)
        )
        return self.head(F.relu(self.norm(left) + right).mean((2, 3)))


def test_branches_share_the_quantization_of_their_input(tmp_path):
    model, x = seeded(lambda: (Branches(), torch.randn(2, 3, 8, 8)))
    converted = export(tmp_path, model, x)
    assert op_types(converted.deploy).count("AscendQuant") == 1
    assert {n.name for n in converted.deploy.graph.node if n.op_type == "Conv"} == {"left", "right"}
    # The head is float, and its additions have an order.
    check_same(converted, x.numpy(), atol=2 * HALF_A_UNIT + 1e-5, deploy_rtol=1e-6)


class Chain(nn.Module):
    """A convolution whose output a linear layer quantizes."""

    def __init__(self):
        super().__init__()
        self.conv = Trained(nn.Conv2d(3, 4, 3, bias=False), zero=4, axis=0)
        self.fc = Trained(nn.Linear(4, 5, bias=False))

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_layers_behind_each_other(tmp_path):
    model, x = seeded(lambda: (Chain(), torch.randn(2, 3, 8, 8)))
    converted = export(
        tmp_path,
        model,
        x,
        input_names=["image"],
        output_names=["scores"],
        dynamic_axes={"image": [0]},
    )
    for exported in (converted.fake_quant, converted.deploy):
        assert [i.name for i in exported.graph.input] == ["image"]
        assert [o.name for o in exported.graph.output] == ["scores"]
    # A code of the second layer may flip where the first differs by the order of additions.
    check_same(converted, torch.randn(7, 3, 8, 8).numpy(), atol=ACT * WEIGHT * 128)


class Attention(nn.Module):
    """A product of two activations, one of which a layer computes."""

    def __init__(self):
        super().__init__()
        self.query = Trained(nn.Linear(8, 8, bias=False), zero=4)

    def forward(self, x):
        query = quantized(self.query(x), 0.0113)  # of whose ties the sums miss all
        return torch.softmax(query @ quantized(x.transpose(1, 2)), -1)


def test_product_of_two_activations(tmp_path):
    model, x = seeded(lambda: (Attention(), torch.randn(4, 8, 8)))
    converted = export(tmp_path, model, x)
    assert op_types(converted.deploy).count("AscendQuant") == 3
    check_same(converted, x.numpy(), atol=1e-5, deploy_rtol=1e-6)


# ---- files and arguments ----


def small():
    graph = Qdq()
    weight = graph.weight([[0.5], [-0.25], [1.0]], 0.01)
    return graph.model(graph.add("MatMul", graph.pair("x", 0.05), weight))


def test_files(tmp_path):
    onnx.save(small(), tmp_path / "qat.onnx")
    before = (tmp_path / "qat.onnx").read_bytes()
    amct.convert_qat_model(str(tmp_path / "qat.onnx"), f"{tmp_path}/new/")
    names = sorted(path.name for path in (tmp_path / "new").iterdir())
    assert names == ["deploy_model.onnx", "fake_quant_model.onnx"]
    assert (tmp_path / "qat.onnx").read_bytes() == before


def test_external_data(tmp_path):
    onnx.save(
        small(),
        tmp_path / "qat.onnx",
        save_as_external_data=True,
        size_threshold=0,
        location="data",
    )
    amct.convert_qat_model(str(tmp_path / "qat.onnx"), str(tmp_path / "out"))
    assert constant(onnx.load(tmp_path / "out_deploy_model.onnx"), "fc.weight").tolist() == [
        [50],
        [-25],
        [100],
    ]
    (tmp_path / "data").unlink()
    with pytest.raises(FileNotFoundError, match="data"):
        amct.convert_qat_model(str(tmp_path / "qat.onnx"), str(tmp_path / "out"))


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"onnx_file '.*none.onnx' is missing; write it with"):
        amct.convert_qat_model(str(tmp_path / "none.onnx"), str(tmp_path / "out"))


def test_file_that_is_no_model(tmp_path):
    (tmp_path / "qat.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"qat.onnx: not a"):
        amct.convert_qat_model(str(tmp_path / "qat.onnx"), str(tmp_path / "out"))


def test_output_in_the_place_of_the_input(tmp_path):
    path = tmp_path / "net_deploy_model.onnx"
    onnx.save(small(), path)
    with pytest.raises(ValueError, match="is onnx_file; choose another path"):
        amct.convert_qat_model(str(path), str(tmp_path / "net"))


@pytest.mark.parametrize("arguments", [(3, "out"), ("qat.onnx", None)], ids=["file", "save_path"])
def test_arguments_of_another_type(arguments):
    with pytest.raises(TypeError, match="expected a str"):
        amct.convert_qat_model(*arguments)


def test_folder_that_cannot_be_made(tmp_path):
    onnx.save(small(), tmp_path / "qat.onnx")
    with pytest.raises(NotADirectoryError, match="is a file, not a folder"):
        amct.convert_qat_model(str(tmp_path / "qat.onnx"), str(tmp_path / "qat.onnx" / "out"))
