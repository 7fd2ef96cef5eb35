"""Post-training quantization of LSTM and GRU."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import reference_calibration
import torch
from auto_flow import quantized_layers
from onnx import numpy_helper
from ptq_flow import ptq
from reference_recurrent import ONNX_GATES, array, loop, unrolled
from torch import nn

import amct_pytorch as amct
from amct_pytorch.common.auto_calibration import AutoCalibrationEvaluatorBase
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import Records

INPUTS, HIDDEN, BATCH, STEPS = 6, 8, 3, 5
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


class Tagger(Net):
    """A convolution makes the input, a Linear the first hidden state, another takes the outputs."""

    def __init__(self, cls, **options):
        super().__init__(cls, **options)
        self.conv = nn.Conv1d(4, INPUTS, 3, padding=1)
        self.start = nn.Linear(HIDDEN, HIDDEN)
        self.tags = nn.Linear(HIDDEN, 4)

    def forward(self, x, h, c=None):
        x = torch.relu(self.conv(x)).transpose(1, 2)
        x = x if self.rnn.batch_first else x.transpose(0, 1)
        y, *states = super().forward(x, torch.tanh(self.start(h)), c)
        return (self.tags(y), *states)


def smooth(*shape):
    """Waves of random phases: values that fill their range."""
    time = torch.linspace(0, 3, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return torch.sin(time + 6 * torch.rand(shape[1:]))


def states(cls, batch=BATCH):
    made = [torch.rand(1, batch, HIDDEN) - 0.5, torch.rand(1, batch, HIDDEN) - 0.5]
    return tuple(made[: 2 if cls is nn.LSTM else 1])


def example(cls, batches=2, steps=STEPS, net=Net, **options):
    """The model and batches of its arguments, the same for the same arguments."""
    torch.manual_seed(len(cls.__name__) + batches)
    model = net(cls, **options).eval()
    data = []
    for _ in range(batches):
        x = smooth(steps, BATCH, INPUTS if net is Net else 4)
        if net is Tagger:
            x = x.permute(1, 2, 0).contiguous()
        elif model.rnn.batch_first:
            x = x.transpose(0, 1).contiguous()
        data.append((x, *states(cls)))
    return model, data


def settings(act_bits=8, wts_bits=8, algorithm="ifmr", channel_wise=True, force_fp16=False):
    """An edit of the configuration for ptq()."""

    def edit(config):
        activation = {"num_bits": act_bits, "act_algo": algorithm, "asymmetric": True}
        weight = {"num_bits": wts_bits, "channel_wise": channel_wise}
        config["rnn"] |= {"activation_quant_params": activation, "weight_quant_params": weight}
        if force_fp16:
            config["fakequant_precision_mode"] = "FORCE_FP16_QUANT"

    return edit


VARIANTS = {
    "A8W8": {},
    "A16W8": {"act_bits": 16},
    "A8W4": {"wts_bits": 4},
    "A16W4": {"act_bits": 16, "wts_bits": 4},
    "per gate": {"channel_wise": False},
    "A8W4 per gate": {"wts_bits": 4, "channel_wise": False},
    "hfmg": {"algorithm": "hfmg"},
    "s19": {"force_fp16": True},
}


def names(model, time=True):
    """Arguments of ptq() that name the inputs; batch and, with `time`, length may differ."""
    inputs = ["x", "h", "c"][: 3 if isinstance(model.rnn, nn.LSTM) else 2]
    axes = {0: "time", 1: "batch"} if time else {1: "batch"}
    axes = {1 - axis: name for axis, name in axes.items()} if model.rnn.batch_first else axes
    dynamic = {"x": axes, "y": axes, **{name: {1: "batch"} for name in inputs[1:]}}
    return {"input_names": inputs, "output_names": ["y"], "dynamic_axes": dynamic}


def outputs(model, data):
    """All outputs of an ONNX model in stock ONNX Runtime."""
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds(model, data))


def executed(model, data):
    """All outputs of a deploy model in exact integer execution."""
    return list(run_deploy(model, feeds(model, data)).values())


def feeds(model, data):
    return {i.name: x.numpy() for i, x in zip(model.graph.input, data, strict=True)}


def assert_close(found, expected, atol=1e-6):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=0, atol=atol)


def sqnr(found, expected):
    return 10 * np.log10((expected**2).sum() / ((found - expected) ** 2).sum())


# --- factors -------------------------------------------------------------------------------------


def weight_scales(weight, cls, bits=8, per_gate=False):
    """ARQ as published, for the gates in the order of ONNX."""
    half = np.float32(2 ** (bits - 1))
    gates = array(weight).reshape(len(ONNX_GATES[cls]), HIDDEN, -1)[ONNX_GATES[cls]]
    rows = gates.reshape(len(gates), -1) if per_gate else gates.reshape(-1, gates.shape[2])
    low, high = -rows.min(1), rows.max(1)
    return np.where(low > high, low / half, high / (half - 1))


@KINDS
@pytest.mark.parametrize("per_gate", [False, True], ids=["per row", "per gate"])
@pytest.mark.parametrize("bits", [8, 4])
def test_scales_of_the_weights(tmp_path, cls, bits, per_gate):
    model, batches = example(cls)
    edit = settings(wts_bits=bits, channel_wise=not per_gate)
    flow = ptq(tmp_path, model, batches, edit)
    record = Records.load(flow.record_file)["rnn"]
    for scales, weight in (
        (record.scale_w, model.rnn.weight_ih_l0),
        (record.scale_r, model.rnn.weight_hh_l0),
    ):
        assert len(scales) == len(ONNX_GATES[cls]) * (1 if per_gate else HIDDEN)
        expected = weight_scales(weight, cls, bits, per_gate)
        np.testing.assert_array_equal(np.float32(scales), expected.astype(np.float32))
    assert record.offset_w == record.offset_r == (0,) * len(record.scale_w)
    assert (record.act_type, record.wts_type) == ("INT8", f"INT{bits}")


def test_scales_of_known_gates(tmp_path):
    """One hidden unit; gates i, f, g, o of torch: the record has i, o, f, c."""
    model = Net(nn.LSTM).eval()
    model.rnn = nn.LSTM(1, 1)
    with torch.no_grad():
        model.rnn.weight_ih_l0.copy_(torch.tensor([[1.27], [2.54], [-1.28], [5.08]]))
        model.rnn.weight_hh_l0.copy_(torch.tensor([[0.127], [-0.256], [0.381], [0.508]]))
    data = tuple(torch.full(shape, 0.5) for shape in [(2, 1, 1), (1, 1, 1), (1, 1, 1)])
    record = Records.load(ptq(tmp_path, model, [data]).record_file)["rnn"]
    assert record.scale_w == pytest.approx([0.01, 0.04, 0.02, 0.01])
    assert record.scale_r == pytest.approx([0.001, 0.004, 0.002, 0.003])


def rounded(weight, cls, bits=8):
    """A weight [G * H, n] quantized by row, in float."""
    gates = weight_scales(weight, cls, bits).reshape(len(ONNX_GATES[cls]), HIDDEN)
    scales = np.empty_like(gates)
    scales[ONNX_GATES[cls]] = gates
    scales, half = scales.reshape(-1, 1).astype(np.float32), 2 ** (bits - 1)
    return np.clip(np.rint(array(weight) / scales), -half, half - 1) * scales


def observed(model, batches):
    """Inputs and hidden states of every batch: the first state and all outputs but the last."""
    rnn, cls, seen = model.rnn, type(model.rnn), []
    w_ih, w_hh = (rounded(w, cls) for w in (rnn.weight_ih_l0, rnn.weight_hh_l0))
    b_ih, b_hh = array(rnn.bias_ih_l0), array(rnn.bias_hh_l0)
    for data in batches:
        y, *_ = unrolled(rnn, data, lambda x: x @ w_ih.T + b_ih, lambda h: h @ w_hh.T + b_hh)
        steps = y.swapaxes(0, 1) if rnn.batch_first else y
        hidden = np.concatenate([array(data[1]), steps[:-1]])
        assert hidden.shape == (STEPS, BATCH, HIDDEN)
        seen.append((data[0], torch.from_numpy(np.float32(hidden))))
    return zip(*seen, strict=True)


def ifmr(batches, bits):
    return reference_calibration.ifmr(torch.cat([x.flatten() for x in batches]), bits)


def hfmg(batches, bits):
    histogram = reference_calibration.hfmg_histogram(batches[0], 4096)
    for batch in batches[1:]:
        histogram = reference_calibration.hfmg_merged(histogram, batch)
    return reference_calibration.hfmg_search(histogram, bits)


@KINDS
@BATCH_FIRST
@pytest.mark.parametrize("batch_num", [1, 3])
@pytest.mark.parametrize("algorithm", [ifmr, hfmg])
def test_factors_of_input_and_hidden_state(tmp_path, cls, batch_first, batch_num, algorithm):
    model, batches = example(cls, batch_num, batch_first=batch_first)
    flow = ptq(tmp_path, model, batches, settings(algorithm=algorithm.__name__), save=False)
    record = Records.load(flow.record_file)["rnn"]
    inputs, hidden = observed(model, batches)
    scale, offset = algorithm(inputs, 8)
    assert (record.scale_d, record.offset_d) == (pytest.approx(scale, rel=1e-5), offset)
    scale, offset = algorithm(hidden, 8)
    assert (record.scale_h, record.offset_h) == (pytest.approx(scale, rel=1e-5), offset)


@KINDS
@BATCH_FIRST
def test_the_last_output_is_no_hidden_state_that_a_step_begins_with(tmp_path, cls, batch_first):
    """Of one step that is the initial state alone: small here, the output is not."""
    model, batches = example(cls, steps=1, batch_first=batch_first)
    batches = [(x, 0.01 * h, *c) for x, h, *c in batches]
    with torch.no_grad():
        assert model(*batches[0])[0].abs().max() > 0.1
    record = Records.load(ptq(tmp_path, model, batches, save=False).record_file)["rnn"]
    scale, offset = ifmr([h for _, h, *_ in batches], 8)
    assert (record.scale_h, record.offset_h) == (pytest.approx(scale, rel=1e-5), offset)


@KINDS
def test_force_fp16_quant_halves_both_scales(tmp_path, cls):
    model, batches = example(cls)
    for name in ("full", "half"):
        (tmp_path / name).mkdir()
    full = ptq(tmp_path / "full", model, batches)
    half = ptq(tmp_path / "half", model, batches, settings(force_fp16=True))
    one, other = (Records.load(flow.record_file)["rnn"] for flow in (full, half))
    for field in ("scale_d", "scale_h"):
        assert getattr(other, field) == float(np.float16(getattr(one, field)))
        assert getattr(other, field) != getattr(one, field)
    assert other.force_fp16
    words = next(i for i in half.deploy.graph.initializer if i.name == "rnn.dequant.param")
    assert not (numpy_helper.to_array(words) & np.uint64(0x1FFF)).any()


# --- the graphs ----------------------------------------------------------------------------------


@KINDS
@BATCH_FIRST
@pytest.mark.parametrize("variant", VARIANTS)
def test_all_forms_agree(tmp_path, cls, batch_first, variant):
    model, batches = example(cls, batch_first=batch_first)
    flow = ptq(tmp_path, model, batches, settings(**VARIANTS[variant]))
    data, record = batches[0], Records.load(flow.record_file)["rnn"]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    found = outputs(flow.fake_quant, data)
    assert_close(simulated(*data), found)
    assert_close(found, loop(model.rnn, data, record, integers=False), atol=2e-6)
    exact = executed(flow.deploy, data)
    assert_close(exact, loop(model.rnn, data, record, integers=True), atol=2e-6)
    # What is approximate in fake_quant: between the steps h is not rounded to its grid.
    assert_close(exact, found, atol=record.scale_h)


@KINDS
@pytest.mark.parametrize("variant", VARIANTS)
def test_fake_quant_of_one_step_is_what_the_npu_computes(tmp_path, cls, variant):
    model, batches = example(cls, steps=1)
    flow = ptq(tmp_path, model, batches, settings(**VARIANTS[variant]))
    # A GRU adds its state to the output, in deploy the one that is not quantized.
    data = batches[0]
    if cls is nn.GRU:
        record = Records.load(flow.record_file)["rnn"]
        codes = torch.tensor([-20.0, 0.0, 7.0, 30.0] * 2).expand(1, BATCH, HIDDEN)
        data = (data[0], (codes * record.scale_h).contiguous())
    assert_close(executed(flow.deploy, data), outputs(flow.fake_quant, data))


@KINDS
@BATCH_FIRST
@pytest.mark.parametrize(("opset", "bias"), [(11, True), (13, False), (17, True), (18, False)])
def test_opsets(tmp_path, cls, batch_first, opset, bias):
    model, batches = example(cls, batch_first=batch_first, bias=bias)
    flow = ptq(tmp_path, model, batches, opset_version=opset)
    data, record = batches[0], Records.load(flow.record_file)["rnn"]
    found = outputs(flow.fake_quant, data)
    assert_close(amct.simulate_model(flow.calibrated, flow.record_file)(*data), found)
    with torch.no_grad():
        expected = model(*data)
    for one, other in zip(found, expected, strict=True):
        assert sqnr(one, other.numpy()) > 30
    exact = executed(flow.deploy, data)
    assert_close(exact, loop(model.rnn, data, record, integers=True), atol=2e-6)


LEAST_DB = {"A8W8": 30, "A16W8": 35, "A8W4": 12, "A16W4": 12, "per gate": 30, "hfmg": 30, "s19": 30}


@KINDS
@pytest.mark.parametrize("variant", LEAST_DB)
def test_quantized_is_close_to_float(tmp_path, cls, variant):
    model, batches = example(cls, 3, steps=20)
    flow = ptq(tmp_path, model, batches, settings(**VARIANTS[variant]))
    with torch.no_grad():
        expected = model(*batches[0])[0].numpy()
    assert sqnr(outputs(flow.fake_quant, batches[0])[0], expected) > LEAST_DB[variant]
    assert sqnr(executed(flow.deploy, batches[0])[0], expected) > LEAST_DB[variant]


@KINDS
@BATCH_FIRST
@pytest.mark.parametrize(("opset", "steps"), [(13, 9), (17, 9), (18, STEPS)])
def test_other_lengths_and_batches(tmp_path, cls, batch_first, opset, steps):
    """The newer exporter of torch fixes the length, that of a float model too."""
    model, batches = example(cls, batch_first=batch_first)
    flow = ptq(tmp_path, model, batches, opset_version=opset, **names(model, steps != STEPS))
    x = smooth(steps, 2, INPUTS)
    data = (x.transpose(0, 1).contiguous() if batch_first else x, *states(cls, 2))
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    assert_close(simulated(*data), outputs(flow.fake_quant, data))
    record = Records.load(flow.record_file)["rnn"]
    exact = executed(flow.deploy, data)
    assert_close(exact, loop(model.rnn, data, record, integers=True), atol=2e-6)


@KINDS
@BATCH_FIRST
@pytest.mark.parametrize("variant", ["A8W8", "A8W4", "s19"])
def test_between_other_layers(tmp_path, cls, batch_first, variant):
    model, batches = example(cls, 3, net=Tagger, batch_first=batch_first)
    flow = ptq(tmp_path, model, batches, settings(**VARIANTS[variant]))
    assert {n for n, c in flow.config.items() if isinstance(c, dict)} == {
        *("conv", "start", "rnn", "tags"),
    }
    assert set(Records.load(flow.record_file)) == {"conv", "start", "rnn", "tags"}
    data = batches[0]
    found = outputs(flow.fake_quant, data)
    assert_close(amct.simulate_model(flow.calibrated, flow.record_file)(*data), found, atol=1e-5)
    with torch.no_grad():
        expected = model(*data)[0].numpy()
    least = 10 if variant == "A8W4" else 25
    assert sqnr(found[0], expected) > least
    assert sqnr(executed(flow.deploy, data)[0], expected) > least


def test_4_bit_weights_are_packed_along_the_input(tmp_path):
    model, batches = example(nn.GRU)
    flow = ptq(tmp_path, model, batches, settings(wts_bits=4))
    packed = {i.name: numpy_helper.to_array(i) for i in flow.deploy.graph.initializer}
    assert packed["rnn.weight"].shape == (1, 3 * HIDDEN, INPUTS // 2)
    assert packed["rnn.recurrence"].shape == (1, 3 * HIDDEN, HIDDEN // 2)
    record = Records.load(flow.record_file)["rnn"]
    gates = array(model.rnn.weight_ih_l0).reshape(3, HIDDEN, INPUTS)[ONNX_GATES[nn.GRU]]
    row = np.rint(gates.reshape(-1, INPUTS)[0] / np.float32(record.scale_w[0])).astype(int)
    bytes_ = [(low & 15) | (high & 15) << 4 for low, high in row.reshape(-1, 2)]
    assert packed["rnn.weight"][0, 0].view(np.uint8).tolist() == bytes_


# --- the calibrated model, its files -------------------------------------------------------------


@KINDS
@BATCH_FIRST
def test_the_calibrated_model_has_quantized_weights_only(tmp_path, cls, batch_first):
    model, batches = example(cls, batch_first=batch_first)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    flow = ptq(tmp_path, model, batches)
    assert_close(flow.calibrated(*batches[0]), outputs(flow.modified, batches[0]))
    weight = flow.calibrated.rnn.sub_module.weight_hh_l0
    np.testing.assert_array_equal(array(weight), rounded(model.rnn.weight_hh_l0, cls))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@KINDS
def test_saving_quantizes_what_is_quantized_without_error(tmp_path, cls):
    model, batches = example(cls)
    flow = ptq(tmp_path, model, batches)
    for part, key in (("weight", "weight_ih_l0"), ("recurrence", "weight_hh_l0")):
        of_modified, of_fake_quant = (
            next(numpy_helper.to_array(i) for i in m.graph.initializer if i.name == f"rnn.{part}")
            for m in (flow.modified, flow.fake_quant)
        )
        np.testing.assert_array_equal(of_modified, of_fake_quant)
        gates = rounded(getattr(model.rnn, key), cls)
        gates = gates.reshape(len(ONNX_GATES[cls]), HIDDEN, -1)[ONNX_GATES[cls]]
        np.testing.assert_array_equal(of_modified[0], gates.reshape(of_modified.shape[1:]))


@KINDS
def test_the_record_reads_back_and_saving_again_writes_the_same_bytes(tmp_path, cls):
    model, batches = example(cls)
    flow = ptq(tmp_path, model, batches)
    record = Records.load(flow.record_file)
    assert record.dumps() == (tmp_path / "record.txt").read_text()
    written = [(tmp_path / f"out_{f}_model.onnx").read_bytes() for f in ("deploy", "fake_quant")]
    flow.save()
    again = [(tmp_path / f"out_{f}_model.onnx").read_bytes() for f in ("deploy", "fake_quant")]
    assert written == again


def test_an_unfinished_calibration_is_told(tmp_path):
    model, batches = example(nn.LSTM, 1)
    flow = ptq(tmp_path, model, batches, config_options={"batch_num": 2}, save=False)
    text = (tmp_path / "record.txt").read_text()
    assert '# calibration: "rnn" has seen 1 of 2 batches' in text
    assert "scale_h" not in text
    with pytest.raises(RuntimeError, match='"rnn" has seen 1 of 2 batches'):
        flow.save()


@KINDS
def test_a_call_by_keywords_and_without_a_state(tmp_path, cls):
    """The state of the traced call is an input; later calls may begin with zeros."""

    class Optional(Net):
        def forward(self, x, h=None, c=None):
            hx = None if h is None else (h if c is None else (h, c))
            return self.rnn(input=x, hx=hx)[0]

    torch.manual_seed(0)
    model, batches = Optional(cls).eval(), example(cls)[1]
    flow = ptq(tmp_path, model, batches, config_options={"batch_num": 3}, save=False)
    flow.calibrated(batches[0][0])
    flow.save()
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    zeros = tuple(torch.zeros(1, BATCH, HIDDEN) for _ in states(cls))
    x = batches[0][0]
    assert torch.equal(simulated(x), simulated(x, *zeros))
    assert_close([simulated(x)], outputs(flow.fake_quant, (x, *zeros)))


# --- what stays float ----------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize("tiny", ["input", "hidden state"])
def test_a_tiny_range_leaves_the_layer_float(tmp_path, cls, tiny, caplog):
    model, batches = example(cls, net=Tagger)
    with torch.no_grad():
        if tiny == "input":
            model.conv.weight.mul_(1e-9)
            model.conv.bias.fill_(1e-9)
        else:
            for parameter in model.rnn.parameters():
                parameter.zero_()
            model.start.weight.zero_()
            model.start.bias.fill_(1e-9)
            batches = [(x, h, *(1e-9 * s for s in c)) for x, h, *c in batches]
    flow = ptq(tmp_path, model, batches)
    reason = f"rnn is left float: its {tiny} range is real but tiny"
    assert len([text for text in caplog.messages if text.startswith(reason)]) == 1
    assert "rnn" not in Records.load(flow.record_file)
    for graph in (flow.deploy, flow.fake_quant):
        assert next(n for n in graph.graph.node if n.name == "rnn").op_type == cls.__name__


def alone(rnn, x, h, c):
    return rnn(x, h if isinstance(rnn, nn.GRU) else (h, c))[0]


def unbatched(rnn, x, h, c):
    return alone(rnn, x[:, 0], h[:, 0], c[:, 0])


def stateless(rnn, x, h, c):
    return rnn(x)[0]


def halved(rnn, x, h, c):
    return alone(rnn, x.half(), h.half(), c.half()).float()


def packed(rnn, x, h, c):
    lengths = torch.full((x.shape[1],), x.shape[0])
    together = nn.utils.rnn.pack_padded_sequence(x, lengths)
    return nn.utils.rnn.pad_packed_sequence(rnn(together, (h, c) if c is not None else h)[0])[0]


UNSUPPORTED = {
    "layers": ({"num_layers": 2}, alone, "it has num_layers=2"),
    "dropout": ({"dropout": 0.5}, alone, "it has dropout=0.5"),
    "bidirectional": ({"bidirectional": True}, alone, "it has bidirectional=True"),
    "projection": ({"proj_size": 4}, alone, "it has proj_size=4"),
    "unbatched": ({}, unbatched, "it is called on an input without a batch dimension"),
    "stateless": ({}, stateless, "its initial states do not come from an input of the model"),
    "float16": ({}, halved, "its weights are float16, only float32 can be quantized"),
    "packed": ({}, packed, "it is called on a packed sequence"),
}


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_what_cannot_be_quantized_stays_float_with_its_reason(tmp_path, case, caplog):
    options, call, reason = UNSUPPORTED[case]
    rnn = nn.LSTM(INPUTS, HIDDEN, **options)

    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.rnn = nn.Linear(INPUTS, INPUTS), rnn

        def forward(self, x, h, c):
            return call(self.rnn, self.fc(x), h, c)

    torch.manual_seed(0)
    count = rnn.num_layers * (2 if rnn.bidirectional else 1)
    hidden = torch.randn(count, BATCH, rnn.proj_size or HIDDEN)
    data = (torch.randn(STEPS, BATCH, INPUTS), hidden, torch.randn(count, BATCH, HIDDEN))
    model = Between().eval()
    model.rnn.half() if case == "float16" else None
    opset = 18 if case == "projection" else 13  # the older exporter of torch has none
    flow = ptq(tmp_path, model, [data], opset_version=opset)
    assert [t for t in caplog.messages if t.startswith(f"rnn (LSTM) is left float: {reason}")]
    assert "rnn" not in flow.config
    assert list(Records.load(flow.record_file)) == ["fc"]
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    if case == "projection":  # what torch exports of it no runtime takes, in float too
        return
    used = data[:1] if case == "stateless" else data
    with torch.no_grad():
        assert_close([simulated(*data)], outputs(flow.fake_quant, used), atol=1e-3)


def test_a_model_that_is_a_layer_itself_is_told_to_be_wrapped(tmp_path):
    with pytest.raises(RuntimeError, match="the model itself is a LSTM layer, .* wrap it"):
        amct.create_quant_config(
            str(tmp_path / "config.json"), nn.LSTM(INPUTS, HIDDEN), torch.randn(2, 1, INPUTS)
        )


@pytest.mark.parametrize("key", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
def test_a_value_that_is_not_finite_is_named(tmp_path, key):
    model, batches = example(nn.GRU)
    with torch.no_grad():
        getattr(model.rnn, key).view(-1)[3] = float("nan")
    with pytest.raises(RuntimeError, match=f"rnn: the {key} has NaN or infinite values"):
        ptq(tmp_path, model, batches)


@pytest.mark.parametrize(("index", "what"), [(0, "input"), (1, "hidden state")])
def test_an_activation_that_is_not_finite_is_named(tmp_path, index, what):
    model, batches = example(nn.GRU)
    batches[1][index].view(-1)[0] = float("inf")
    with pytest.raises(RuntimeError, match=f"rnn: its {what} cannot be calibrated: .*batch 2 of 2"):
        ptq(tmp_path, model, batches)


@KINDS
@pytest.mark.parametrize("index", [0, 1], ids=["input", "state"])
def test_a_batch_that_is_refused_is_not_counted(tmp_path, cls, index):
    model, batches = example(cls)
    for name in ("expected", "found"):
        (tmp_path / name).mkdir()
    expected = ptq(tmp_path / "expected", model, batches)
    options = {"batch_num": 2}
    found = ptq(tmp_path / "found", model, batches[:1], config_options=options, save=False)
    bad = [x.clone() for x in batches[1]]
    bad[index].view(-1)[-1] = float("inf")
    with pytest.raises(RuntimeError, match="cannot be calibrated"):
        found.calibrated(*bad)
    found.calibrated(*batches[1])
    one, other = (Records.load(flow.record_file).dumps() for flow in (found, expected))
    assert one == other


class Doubled(nn.GRU):
    def forward(self, x, h):
        y, last = super().forward(x, h)
        return 2 * y, last


def test_a_class_with_a_forward_of_its_own_stays_float(tmp_path, caplog):
    model, batches = example(nn.GRU, net=Tagger)
    model.rnn = Doubled(INPUTS, HIDDEN)
    flow = ptq(tmp_path, model, batches)
    assert "rnn" not in flow.config
    reason = "its class Doubled has a forward of its own"
    assert f"rnn (GRU) is left float: {reason}" in caplog.messages


# --- the simulation ------------------------------------------------------------------------------


@KINDS
def test_the_simulation_keeps_its_numbers_in_other_types(tmp_path, cls):
    model, batches = example(cls)
    flow = ptq(tmp_path, model, batches, save=False)
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)
    data = batches[0]
    expected = simulated(*data)
    assert [type(part) for part in expected] == [torch.Tensor] * len(data)
    with torch.autocast("cpu", torch.bfloat16):
        for one, other in zip(simulated(*data), expected, strict=True):
            assert torch.equal(one, other)
    halves = tuple(x.half() for x in data)
    rounded_first = simulated(*(x.float() for x in halves))
    for one, other in zip(simulated.half()(*halves), rounded_first, strict=True):
        assert torch.equal(one, other.half())


def test_the_simulation_refuses_what_the_export_refuses(tmp_path):
    model, batches = example(nn.GRU)
    with torch.no_grad():
        model.rnn.bias_hh_l0[HIDDEN] = 1e6  # the first of the gate that ONNX has first
    flow = ptq(tmp_path, model, batches, save=False)
    expected = "rnn: the bias 1000000.0 of channel 0 is .* in units of scale_r . scale_h, beyond"
    with pytest.raises(RuntimeError, match=expected):
        amct.simulate_model(flow.calibrated, flow.record_file)
    with pytest.raises(RuntimeError, match=expected):
        flow.save()


# --- automatic calibration -----------------------------------------------------------------------


class RollsBack(AutoCalibrationEvaluatorBase):
    """Is satisfied by the model when `layer` is in float."""

    def __init__(self, batches, layer):
        self.batches, self.layer = batches, layer

    def calibration(self, model):
        for batch in self.batches:
            model(*batch)

    def evaluate(self, model):
        model(*self.batches[0])
        return self.layer in quantized_layers(model)

    def metric_eval(self, original, new):
        return not new, float(new)


def auto(folder, model, batches, layer, monkeypatch, edit=None, **options):
    monkeypatch.chdir(folder)
    amct.create_quant_config("config.json", model, batches[0], batch_num=len(batches))
    if edit is not None:
        config = json.loads((folder / "config.json").read_text())
        edit(config)
        (folder / "config.json").write_text(json.dumps(config))
    evaluator = RollsBack(batches, layer)
    return amct.accuracy_based_auto_calibration(
        model, evaluator, "config.json", "record.txt", "out/net", batches[0], **options
    )


@KINDS
@BATCH_FIRST
def test_automatic_calibration_puts_the_layer_back(tmp_path, cls, batch_first, monkeypatch):
    model, batches = example(cls, 2, net=Tagger, batch_first=batch_first)
    settings_4_bits = settings(wts_bits=4)  # that make it the most sensitive
    result = auto(tmp_path, model, batches, "rnn", monkeypatch, settings_4_bits)
    assert result.satisfied
    assert result.rolled_back_layers == ["rnn"]
    assert result.ranking[0][0] == "rnn"
    assert len(result.ranking) == 4
    assert not result.fidelity.differs
    deploy = onnx.load(tmp_path / "out" / "net_deploy_model.onnx")
    assert next(n for n in deploy.graph.node if n.name == "rnn").op_type == cls.__name__
    assert set(Records.load("record.txt")) == {"conv", "start", "tags"}


@KINDS
@pytest.mark.parametrize("variant", ["A8W8", "A8W4", "per gate", "s19"])
def test_automatic_calibration_keeps_the_layer(tmp_path, cls, variant, monkeypatch):
    model, batches = example(cls, 2, net=Tagger)
    edit = settings(**VARIANTS[variant])
    result = auto(tmp_path, model, batches, "nothing", monkeypatch, edit)
    assert sorted(result.quantized_layers) == ["conv", "rnn", "start", "tags"]
    assert result.fidelity.checked
    assert result.fidelity.largest_difference <= 1e-5
    flow_folder = tmp_path / "by hand"
    flow_folder.mkdir()
    by_hand = ptq(flow_folder, model, batches, edit)
    assert (tmp_path / "record.txt").read_text() == (flow_folder / "record.txt").read_text()
    deploy = (tmp_path / "out" / "net_deploy_model.onnx").read_bytes()
    assert deploy == (flow_folder / "out_deploy_model.onnx").read_bytes()
    report = json.loads(
        (tmp_path / "out" / "accuracy_based_auto_calibration_report.json").read_text()
    )
    layer = next(entry for entry in report["layers"] if entry["name"] == "rnn")
    rows = len(ONNX_GATES[cls]) * HIDDEN
    assert layer["weight_shape"] == [rows, INPUTS + HIDDEN]
    assert layer["output_shape"] == [STEPS, BATCH, HIDDEN]
    assert layer["macs"] == STEPS * rows * (INPUTS + HIDDEN)
    bits = 4 if "4" in variant else 8
    assert layer["deploy_bytes"] == rows * (INPUTS + HIDDEN) * bits // 8
    weights = torch.cat([model.rnn.weight_ih_l0, model.rnn.weight_hh_l0], 1)
    module = by_hand.calibrated.rnn.sub_module
    stored = torch.cat([module.weight_ih_l0, module.weight_hh_l0], 1)
    assert layer["weight_sqnr_db"] == pytest.approx(sqnr(array(stored), array(weights)), abs=1e-3)


@KINDS
def test_automatic_calibration_leaves_a_tiny_hidden_state_float(tmp_path, cls, monkeypatch):
    model, batches = example(cls, net=Tagger)
    with torch.no_grad():
        for parameter in (*model.rnn.parameters(), *model.start.parameters()):
            parameter.zero_()
        model.start.bias.fill_(1e-9)
        batches = [(x, h, *(1e-9 * s for s in c)) for x, h, *c in batches]
    result = auto(tmp_path, model, batches, "nothing", monkeypatch)
    assert "rnn" not in result.quantized_layers
    assert "its hidden state range is real but tiny" in result.left_float["rnn"]


# --- the configuration ---------------------------------------------------------------------------


def test_the_generated_configuration(tmp_path):
    model, batches = example(nn.LSTM)
    path = tmp_path / "config.json"
    amct.create_quant_config(str(path), model, batches[0])
    layer = json.loads(path.read_text())["rnn"]
    assert layer["quant_enable"] is True
    assert layer["activation_quant_params"]["num_bits"] == 8
    assert layer["activation_quant_params"]["asymmetric"] is True
    assert layer["weight_quant_params"] == {
        "num_bits": 8,
        "channel_wise": True,
        "wts_algo": "arq_quantize",
    }


def test_a_simplified_configuration(tmp_path, caplog):
    model, batches = example(nn.LSTM, net=Tagger)
    simplified = tmp_path / "quant.cfg"
    simplified.write_text(
        "batch_num: 2 common_config { arq_quantize { quant_bits: 4 } }"
        ' override_layer_types { layer_type: "LSTM" calibration_config { hfmg_quantize {'
        " num_of_bins: 2048 } arq_quantize { channel_wise: false } } }"
    )
    options = {"config_defination": str(simplified)}
    flow = ptq(tmp_path, model, batches, config_options=options, save=False)
    layer = flow.config["rnn"]
    assert layer["activation_quant_params"]["num_of_bins"] == 2048
    assert layer["weight_quant_params"]["channel_wise"] is False
    assert len(Records.load(flow.record_file)["rnn"].scale_r) == 4


CHANGES = [
    ({"num_bits": 4}, {}, "got 4: the operator of LSTM has activations of 8 or 16 bits"),
    ({}, {"num_bits": 6}, "got 6: 6- and 7-bit weights are for Conv2d, not LSTM"),
    ({}, {"wts_algo": "ada_quantize"}, "AdaRound is for Conv2d, ConvTranspose2d, Linear, not LSTM"),
]


@pytest.mark.parametrize(("activation", "weight", "message"), CHANGES, ids=str)
def test_what_the_layer_cannot_have(tmp_path, activation, weight, message):
    model, batches = example(nn.LSTM)

    def edit(config):
        config["rnn"]["activation_quant_params"] |= activation
        config["rnn"]["weight_quant_params"] |= weight

    with pytest.raises(ValueError, match=message):
        ptq(tmp_path, model, batches, edit)


def test_balancing_is_not_for_it(tmp_path):
    model, batches = example(nn.GRU)
    types = "Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, Linear"
    message = f"rnn.dmq_balancer_param: .*got 0.5: balancing is for {types}, not GRU"
    with pytest.raises(ValueError, match=message):
        ptq(tmp_path, model, batches, lambda c: c["rnn"].update(dmq_balancer_param=0.5))


def test_common_6_bit_weights_are_left_out_for_it(tmp_path, caplog):
    model, batches = example(nn.LSTM, net=Tagger)
    simplified = tmp_path / "quant.cfg"
    simplified.write_text("batch_num: 2 common_config { arq_quantize { quant_bits: 6 } }")
    path = str(tmp_path / "config.json")
    amct.create_quant_config(path, model, batches[0], config_defination=str(simplified))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["rnn"]["weight_quant_params"]["num_bits"] == 8
    message = "left out for rnn: 6- and 7-bit weights are for Conv2d, not LSTM"
    assert [text for text in caplog.messages if message in text]


@pytest.mark.parametrize(
    ("inputs", "hidden", "message"),
    [
        (5, 8, "an even number of inputs, this layer has 5"),
        (6, 7, "an even size of the hidden state, this layer has 7"),
    ],
)
def test_4_bit_weights_need_even_sizes(tmp_path, inputs, hidden, message):
    model = Net(nn.GRU).eval()
    model.rnn = nn.GRU(inputs, hidden)
    data = (torch.randn(2, 1, inputs), torch.randn(1, 1, hidden))
    with pytest.raises(ValueError, match=f"got 4: 4-bit weights need {message}"):
        ptq(tmp_path, model, [data], settings(wts_bits=4))


@KINDS
def test_a_bfloat16_layer(cls, tmp_path):
    torch.manual_seed(0)
    model = Net(cls).bfloat16().eval()
    states = [torch.zeros(1, BATCH, HIDDEN).bfloat16() for _ in range(1 + (cls is nn.LSTM))]
    batch = (smooth(STEPS, BATCH, INPUTS).bfloat16(), *states)
    flow = ptq(tmp_path, model, [batch])
    result = flow.run_fake_quant(*(value.float() for value in batch))
    expected = model(*batch)[0].detach().float().numpy()
    assert 10 * np.log10((expected**2).sum() / ((result - expected) ** 2).sum()) > 25
    simulated = amct.simulate_model(flow.calibrated, flow.record_file)(*batch)[0]
    assert simulated.dtype == torch.bfloat16
    np.testing.assert_allclose(simulated.float().numpy(), result, atol=0.01)
