"""The quantized forms of single modules: Conv2dQAT and its like."""

import copy
import io
import warnings

import onnx
import pytest
import torch
from ptq_flow import run
from torch import nn

from amct_pytorch.nn.module.quantization import (
    GRUQAT,
    LSTMQAT,
    Conv1dQAT,
    Conv2dQAT,
    Conv3dQAT,
    ConvTranspose1dQAT,
    ConvTranspose2dQAT,
    LinearQAT,
    MatMulQAT,
)

# Quantized class, float class, arguments of both, shape of an input.
LAYERS = {
    "Linear": (LinearQAT, nn.Linear, (4, 6), {}, (3, 4)),
    "Linear on rank 3": (LinearQAT, nn.Linear, (4, 6), {"bias": False}, (3, 2, 4)),
    "Conv1d": (Conv1dQAT, nn.Conv1d, (4, 6, 3), {"padding": 1}, (2, 4, 7)),
    "Conv2d": (Conv2dQAT, nn.Conv2d, (4, 6, 3), {"stride": 2, "padding": 1}, (2, 4, 7, 7)),
    "grouped Conv2d": (Conv2dQAT, nn.Conv2d, (4, 6, 3), {"groups": 2, "dilation": 2}, (2, 4, 7, 7)),
    "Conv3d": (Conv3dQAT, nn.Conv3d, (4, 6, 2), {"bias": False}, (2, 4, 4, 4, 4)),
    "ConvTranspose1d": (
        ConvTranspose1dQAT,
        nn.ConvTranspose1d,
        (4, 6, 3),
        {"stride": 2, "output_padding": 1},
        (2, 4, 5),
    ),
    "ConvTranspose2d": (
        ConvTranspose2dQAT,
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"stride": 2, "output_padding": 1},
        (2, 4, 5, 5),
    ),
    "grouped ConvTranspose2d": (
        ConvTranspose2dQAT,
        nn.ConvTranspose2d,
        (4, 6, 3),
        {"groups": 2, "padding": 1},
        (2, 4, 5, 5),
    ),
}
KINDS = pytest.mark.parametrize("kind", LAYERS)
ALGOS = pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])
RECURRENT = pytest.mark.parametrize(("cls", "base"), [(LSTMQAT, nn.LSTM), (GRUQAT, nn.GRU)])


def made(kind, config=None):
    """The quantized layer and an input for it."""
    torch.manual_seed(0)
    cls, _, args, options, shape = LAYERS[kind]
    return cls(*args, **options, config=config), torch.randn(shape)


def states(cls):
    h = torch.rand(1, 2, 4) - 0.5
    return (h, 2 * h) if cls in (LSTMQAT, nn.LSTM) else h


class Sequence(nn.Module):
    """All outputs of a recurrent layer, for exporters, which want tensors."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, h, c=None):
        return self.rnn(x, h if c is None else (h, c))[0]


def train_a_step(model, *inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(*inputs).square().mean().backward()
        optimizer.step()
    return model.eval()


def exported(model, inputs, dynamo, opset=18):
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            program = torch.onnx.export(
                model, inputs, dynamo=True, opset_version=opset, verbose=False
            )
            return program.model_proto
        torch.onnx.export(model, inputs, file, dynamo=False, opset_version=opset)
    return onnx.load_from_string(file.getvalue())


EXPORTERS = pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])


# ---- construction ----


@KINDS
def test_is_its_float_layer_with_the_same_arguments(kind):
    _, base, args, options, shape = LAYERS[kind]
    layer, x = made(kind)
    assert isinstance(layer, base)
    float_layer = base(*args, **options)
    assert layer(x).shape == float_layer(x).shape
    assert {n: p.shape for n, p in float_layer.named_parameters()}.items() <= {
        n: p.shape for n, p in layer.named_parameters()
    }.items()
    assert len(shape) == x.dim()


@KINDS
@ALGOS
def test_from_float_shares_weight_and_bias(kind, algo):
    _, base, args, options, _ = LAYERS[kind]
    cls, x = LAYERS[kind][0], made(kind)[1]
    float_layer = base(*args, **options).eval()
    config = {"retrain_weight_config": {"weights_retrain_algo": algo}}
    layer = cls.from_float(float_layer, config)
    assert type(layer) is cls
    assert layer.weight is float_layer.weight
    assert layer.bias is float_layer.bias
    assert getattr(layer, "output_padding", None) == getattr(float_layer, "output_padding", None)
    assert not any("acts" in name for name in float_layer.state_dict())
    torch.testing.assert_close(layer(x), float_layer(x), rtol=0, atol=0.05)


def test_from_float_keeps_the_output_size_of_a_transposed_convolution():
    float_layer = nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)
    x = torch.randn(1, 2, 9, 9)
    layer = ConvTranspose2dQAT.from_float(float_layer)
    assert layer(x).shape == float_layer(x).shape == (1, 3, 18, 18)
    assert layer(x, output_size=[17, 17]).shape == (1, 3, 17, 17)


def test_from_float_takes_subclasses_of_the_float_class_and_nothing_else():
    class Own(nn.Linear):
        pass

    assert LinearQAT.from_float(Own(2, 3)).out_features == 3
    with pytest.raises(TypeError, match="expected a torch.nn.Linear, got Conv2d"):
        LinearQAT.from_float(nn.Conv2d(1, 1, 1))
    with pytest.raises(TypeError, match="expected a torch.nn.Linear, got LinearQAT"):
        LinearQAT.from_float(LinearQAT(2, 3))


@RECURRENT
def test_from_float_of_recurrent_layers_shares_their_weights(cls, base):
    torch.manual_seed(0)
    rnn = base(3, 4, batch_first=True)
    layer, x = cls.from_float(rnn), torch.randn(2, 5, 3)
    assert layer.weight_ih_l0 is rnn.weight_ih_l0
    h = states(cls)
    torch.testing.assert_close(layer(x, h)[0], rnn(x, h)[0], rtol=0, atol=0.05)


def test_dtype_and_device_reach_the_weight():
    layer = Conv2dQAT(1, 2, 3, device="meta", dtype=torch.float16)
    assert (layer.weight.dtype, layer.weight.device.type) == (torch.float16, "meta")
    assert {t.device.type for t in layer.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("cls", [Conv1dQAT, Conv2dQAT, Conv3dQAT])
def test_input_without_a_batch_is_refused(cls):
    rank = {Conv1dQAT: 3, Conv2dQAT: 4, Conv3dQAT: 5}[cls]
    with pytest.raises(RuntimeError, match=f"expected an input of {rank} dimensions, got"):
        cls(1, 1, 1)(torch.randn(*[1] * (rank - 1)))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Conv2dQAT(1, 1, 3, padding_mode="reflect"), ValueError, "padding_mode"),
        (lambda: Conv3dQAT(1, 1, 3, padding_mode="reflect"), RuntimeError, "padding_mode"),
        (lambda: Conv3dQAT(1, 1, 3, dilation=2), RuntimeError, "dilation"),
        (lambda: LSTMQAT(2, 2, num_layers=2), RuntimeError, "num_layers"),
        (lambda: GRUQAT(2, 2, bidirectional=True), RuntimeError, "bidirectional"),
        (lambda: LSTMQAT(2, 3, proj_size=1), RuntimeError, "proj_size"),
    ],
)
def test_options_that_cannot_be_quantized(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---- config ----


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ([], TypeError, "expected a dict or None, got list"),
        ({"retrain_data_config": 8}, TypeError, "retrain_data_config"),
        ({"retrain_data_config": {"dst_type": "INT4"}}, ValueError, "dst_type"),
        ({"retrain_data_config": {"batch_num": 0}}, ValueError, "batch_num"),
        ({"retrain_data_config": {"batch_num": "2"}}, ValueError, "batch_num"),
        ({"retrain_data_config": {"clip_max": -1.0, "clip_min": -2.0}}, ValueError, "clip_max"),
        ({"retrain_data_config": {"clip_max": 1.0}}, ValueError, "both of clip_max and clip_min"),
        ({"retrain_data_config": {"clip_min": -1.0}}, ValueError, "both of clip_max and clip_min"),
        ({"retrain_data_config": {"clip_maximum": 1.0}}, ValueError, "clip_maximum"),
        ({"retrain_weight_config": {"dst_type": "INT4"}}, ValueError, "dst_type"),
        ({"retrain_weight_config": {"weights_retrain_algo": "arq"}}, ValueError, "weights_retrain"),
        ({"retrain_weight_config": {"channel_wise": 1}}, ValueError, "channel_wise"),
        ({"retrain": True}, ValueError, "retrain"),
    ],
)
def test_mistakes_in_the_config_are_found_at_construction(config, error, message):
    with pytest.raises(error, match=message):
        Conv2dQAT(1, 1, 1, config=config)


def test_linear_has_one_weight_scale():
    with pytest.raises(RuntimeError, match="channel_wise must be false"):
        LinearQAT(2, 2, config={"retrain_weight_config": {"channel_wise": True}})
    assert LinearQAT(2, 3).wts_scales.shape == (1,)
    assert Conv2dQAT(2, 3, 1).wts_scales.shape == (3,)
    config = {"retrain_weight_config": {"channel_wise": False}}
    assert Conv2dQAT(2, 3, 1, config=config).wts_scales.shape == (1,)


def test_none_means_the_default():
    config = {"retrain_data_config": {"clip_max": None, "clip_min": None}}
    layer = Conv2dQAT(1, 1, 1, config=config)
    assert not layer.range_init().done


def test_clips_of_the_config_are_used_from_the_start():
    config = {"retrain_data_config": {"clip_max": 2, "clip_min": -1.0}}
    layer = LinearQAT(2, 2, config=config)
    assert (layer.acts_clip_max.item(), layer.acts_clip_min.item()) == (2.0, -1.0)
    layer.train()(torch.tensor([[9.0, -9.0]]))
    assert layer.acts_scale.item() == pytest.approx(3 / 255)


def test_the_config_is_not_changed():
    config = {"retrain_data_config": {"batch_num": 2}}
    LinearQAT(2, 2, config=config)
    assert config == {"retrain_data_config": {"batch_num": 2}}


@KINDS
def test_disabled_layer_is_the_float_layer(kind):
    layer, x = made(kind, {"retrain_enable": False})
    base = LAYERS[kind][1]
    assert torch.equal(layer(x), base.forward(layer, x))
    assert set(layer.state_dict()) <= {"weight", "bias"}


# ---- state ----


def test_state_has_the_names_of_the_ascend_toolkit():
    layer = Conv2dQAT(2, 3, 1)
    shapes = {name: tuple(t.shape) for name, t in layer.state_dict().items()}
    assert shapes == {
        "weight": (3, 2, 1, 1),
        "bias": (3,),
        "acts_clip_max": (),
        "acts_clip_min": (),
        "acts_clip_max_pre": (),
        "acts_clip_min_pre": (),
        "acts_scale": (),
        "acts_offset": (),
        "acts_offset_deploy": (),
        "wts_scales": (3,),
        "wts_offsets": (3,),
        "wts_scales_deploy": (3,),
        "wts_offsets_deploy": (3,),
        "init_module.batches_seen": (),
    }


@KINDS
@ALGOS
def test_state_restores_the_layer(kind, algo):
    config = {"retrain_weight_config": {"weights_retrain_algo": algo}}
    layer, x = made(kind, config)
    train_a_step(layer, x)
    other, _ = made(kind, config)
    other.load_state_dict(copy.deepcopy(layer.state_dict()))
    assert torch.equal(other.eval()(x), layer(x))
    other.train()(5 * x)
    assert torch.equal(other.acts_clip_max, layer.acts_clip_max)


# ---- training ----


@KINDS
@ALGOS
def test_everything_learns(kind, algo):
    config = {"retrain_weight_config": {"weights_retrain_algo": algo}}
    layer, x = made(kind, config)
    layer(x).square().sum().backward()
    grads = {name: p.grad for name, p in layer.named_parameters()}
    assert ("wts_scales" in grads) == (algo == "ulq_retrain")
    assert all(grad is not None and grad.abs().max() > 0 for grad in grads.values())


@RECURRENT
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_recurrent_layers_learn(cls, base, batch_first):
    torch.manual_seed(0)
    layer = cls(3, 4, batch_first=batch_first)
    x = torch.randn((2, 5, 3) if batch_first else (5, 2, 3))
    layer(x, states(cls))[0].square().sum().backward()
    assert all(p.grad.abs().max() > 0 for n, p in layer.named_parameters() if "l0" in n)
    assert {n for n, p in layer.named_parameters() if p.grad is None} == set()


@KINDS
def test_evaluation_is_close_to_training_and_needs_no_batch(kind):
    layer, x = made(kind)
    evaluated = layer.eval()(x)
    torch.testing.assert_close(layer.train()(x), evaluated, rtol=0, atol=0.02)


def test_reciprocal_scale_is_the_same_quantization():
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3), torch.randn(2, 3)
    layers = []
    for reciprocal in (False, True):
        config = {"weights_retrain_algo": "ulq_retrain", "s_rec_flag": reciprocal}
        layer = LinearQAT(3, 2, bias=False, config={"retrain_weight_config": config})
        with torch.no_grad():
            layer.weight.copy_(weight)
        layer(x).sum().backward()
        layers.append(layer)
    plain, reciprocal = layers
    torch.testing.assert_close(reciprocal.wts_scales, 1 / plain.wts_scales)
    torch.testing.assert_close(reciprocal(x), plain(x), rtol=0, atol=1e-5)
    wanted = -(plain.wts_scales.detach() ** 2) * plain.wts_scales.grad
    torch.testing.assert_close(reciprocal.wts_scales.grad, wanted, rtol=1e-3, atol=1e-9)


def test_symmetric_input_has_no_offset():
    layer = LinearQAT(3, 2, config={"retrain_data_config": {"asymmetric": False}})
    layer(torch.tensor([[1.0, 0.5, 0.25]]))
    layer.eval()
    assert layer.acts_offset.item() == 0


# ---- export ----


@EXPORTERS
@ALGOS
@KINDS
def test_plain_export_computes_what_evaluation_computes(kind, algo, dynamo):
    config = {"retrain_weight_config": {"weights_retrain_algo": algo}}
    layer, x = made(kind, config)
    train_a_step(layer, x)
    with torch.no_grad():
        wanted = layer(x)
    model = exported(layer, (x,), dynamo)
    onnx.checker.check_model(model)
    kinds = [node.op_type for node in model.graph.node]
    assert (kinds.count("QuantizeLinear"), kinds.count("DequantizeLinear")) == (2, 2)
    y = torch.from_numpy(run(model, x))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)


@EXPORTERS
@RECURRENT
@pytest.mark.parametrize("batch_first", [False, True], ids=["time first", "batch first"])
def test_plain_export_of_recurrent_layers(cls, base, batch_first, dynamo):
    torch.manual_seed(0)
    model = Sequence(cls(3, 4, batch_first=batch_first))
    x = torch.randn((2, 5, 3) if batch_first else (5, 2, 3))
    inputs = (x, *states(cls)) if cls is LSTMQAT else (x, states(cls))
    train_a_step(model, *inputs)
    with torch.no_grad():
        wanted = model(*inputs)
    y = torch.from_numpy(run(exported(model, inputs, dynamo), *inputs))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)


@EXPORTERS
def test_plain_export_of_a_matrix_product(dynamo):
    torch.manual_seed(0)
    product, inputs = MatMulQAT(), (torch.randn(2, 3, 4), torch.randn(4, 5))
    product(*inputs)
    product.eval()
    with torch.no_grad():
        wanted = product(*inputs)
    y = torch.from_numpy(run(exported(product, inputs, dynamo), *inputs))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)


@EXPORTERS
def test_export_has_the_factors_of_the_parameters_as_they_are(dynamo):
    layer, x = made("Conv2d")
    train_a_step(layer, x)
    layer.train()(x)
    with torch.no_grad():
        layer.weight.mul_(2)
        layer.acts_clip_max.mul_(2)
    layer.eval()
    model = exported(layer, (x,), dynamo)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(model, x)), layer(x), rtol=1e-5, atol=1e-6)


@EXPORTERS
@pytest.mark.parametrize("prepare", ["nothing", "too few"])
def test_export_before_the_ranges_are_found_is_refused(dynamo, prepare):
    layer, x = made("Conv2d", {"retrain_data_config": {"batch_num": 2}})
    if prepare == "too few":
        layer(x)
    with pytest.raises(RuntimeError) as raised:
        exported(layer.eval(), (x,), dynamo)
    error, text = raised.value, ""
    while error is not None:  # the newer exporter wraps errors
        text, error = text + str(error), error.__cause__
    assert "it needs batch_num = 2 forwards before export" in text


def test_int16_inputs_need_opset_21():
    """Which the newer exporter has; the older one ends before it."""
    layer, x = made("Linear", {"retrain_data_config": {"dst_type": "INT16"}})
    train_a_step(layer, x)
    with torch.no_grad():
        wanted = layer(x)
    y = torch.from_numpy(run(exported(layer, (x,), True, 21), x))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    with pytest.raises(RuntimeError, match="opset_version 21 or later, got 18"):
        exported(layer, (x,), False, 18)


def test_channel_wise_weights_need_opset_13():
    layer, x = made("Conv2d")
    train_a_step(layer, x)
    with pytest.raises(RuntimeError, match="opset_version 13 or later, got 11"):
        exported(layer, (x,), False, 11)


# ---- the matrix product ----


def test_matrix_product_quantizes_both_inputs_symmetrically():
    """Codes of 1.27 and 0.5 under scale 0.01: 127 and 50."""
    product = MatMulQAT(config={"retrain_data_config": {"clip_max": 1.27, "clip_min": -1.27}})
    y = product(torch.tensor([[1.27, 0.504]]), torch.tensor([[0.5], [1.0]])).item()
    assert y == pytest.approx(1.27 * 0.5 + 0.5 * 1.0, abs=0.02)
    assert y != pytest.approx(1.27 * 0.5 + 0.504, abs=1e-4)
    assert (product.x1_offset.item(), product.x2_offset.item()) == (0, 0)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((torch.zeros(3), torch.zeros(3, 2)), RuntimeError, "x1: expected 2 to 6 dimensions"),
        ((torch.zeros(2, 3), torch.zeros(*[1] * 7)), RuntimeError, "x2: expected 2 to 6"),
        ((torch.zeros(2, 3).half(), torch.zeros(3, 2)), TypeError, "x1: expected dtype float32"),
    ],
)
def test_inputs_that_a_matrix_product_cannot_have(inputs, error, message):
    with pytest.raises(error, match=message):
        MatMulQAT()(*inputs)


def test_matrix_product_has_8_bits_only():
    with pytest.raises(ValueError, match="INT16"):
        MatMulQAT(config={"retrain_data_config": {"dst_type": "INT16"}})
