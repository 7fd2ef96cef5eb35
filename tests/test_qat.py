"""Quantization-aware training from configuration to exported models."""

import json
import logging
import stat
from pathlib import Path

import onnx
import pytest
import torch
from models import example, settled
from qat_flow import retrain, train
from torch import nn

import amct_pytorch as amct
from amct_pytorch.export.verify import run_deploy
from amct_pytorch.records import Records


def config_of(flow):
    return json.loads(Path(flow.config_file).read_text())


def edited(data=None, weight=None, only=None, **top):
    """An edit that sets keys of the layers `only`, or of all, and of the whole configuration."""

    def edit(config):
        for name in only or [name for name, value in config.items() if isinstance(value, dict)]:
            config[name]["retrain_data_config"] |= data or {}
            config[name]["retrain_weight_config"] |= weight or {}
        config |= top

    return edit


def records_of(flow):
    return Records.load(flow.record_file)


def trained(folder, model, batches, edit=None, steps=2, **options):
    flow = retrain(folder, model, batches[0], edit, **options)
    train(flow.model, batches, steps)
    return flow


def deploy_output(flow, *inputs):
    names = [i.name for i in flow.deploy.graph.input]
    feeds = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(next(iter(run_deploy(flow.deploy, feeds).values())))


def assert_exports_agree(flow, *inputs, deploy=1e-6, **tolerance):
    """Evaluation mode, the fake_quant and, up to `deploy`, the deploy model compute the same."""
    with torch.no_grad():
        wanted = flow.model.eval()(*inputs)
    exact = {"rtol": 0, "atol": 0, **tolerance}
    torch.testing.assert_close(flow.run_fake_quant(*inputs), wanted, **exact)
    near = {"rtol": 1e-5, "atol": max(deploy, exact["atol"])}
    torch.testing.assert_close(deploy_output(flow, *inputs), wanted, **near)


class Small(nn.Module):
    """Two convolutions, the first with a BatchNorm, and a linear layer behind an average pool."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.pool = nn.AvgPool2d(2)
        self.fc = nn.Linear(16, 3)

    def forward(self, x):
        x = self.conv2(torch.relu(self.bn(self.conv(x))))
        return self.fc(self.pool(x).flatten(1))


def small(seed=0, batches=2):
    torch.manual_seed(seed)
    return settled(Small()), [torch.randn(3, 2, 6, 6) for _ in range(batches)]


class Recurrent(nn.Module):
    def __init__(self, cls, **options):
        super().__init__()
        self.lstm = cls is nn.LSTM
        self.rnn = cls(3, 4, **options)

    def forward(self, x, h):
        return self.rnn(x, (h, h) if self.lstm else h)[0]


STEPWISE = 5e-3  # the deployed operator quantizes the hidden state at every step


def recurrent(cls, **options):
    torch.manual_seed(0)
    return Recurrent(cls, **options).eval(), (torch.randn(5, 2, 3), torch.rand(1, 2, 4) - 0.5)


def train_recurrent(flow, data, steps=2):
    optimizer = torch.optim.SGD(flow.model.parameters(), lr=1e-2)
    flow.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        flow.model(*data).square().mean().backward()
        optimizer.step()


# ---- evaluation mode is the exported model ----

WEIGHTS = pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])


@WEIGHTS
@pytest.mark.parametrize("opset", [11, 13, 18])
@pytest.mark.parametrize("name", ["digits", "sequence", "volume"])
def test_evaluation_mode_computes_what_the_exports_compute(tmp_path, name, opset, algo):
    model, batches = example(name)
    flow = trained(tmp_path, model, batches, edited(weight={"algo": algo}))
    flow.save(opset_version=opset)
    assert {o.version for o in flow.fake_quant.opset_import if not o.domain} == {opset}
    assert_exports_agree(flow, batches[1])


@WEIGHTS
@pytest.mark.parametrize("channel_wise", [True, False], ids=["channel-wise", "per gate"])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_recurrent_layers_in_evaluation_mode_are_the_exports(tmp_path, cls, algo, channel_wise):
    model, data = recurrent(cls)
    weight = {"algo": algo, "channel_wise": channel_wise}
    flow = retrain(tmp_path, model, data, edited(weight=weight, only=["rnn"]))
    train_recurrent(flow, data)
    flow.save()
    assert_exports_agree(flow, *data, rtol=1e-5, atol=1e-6, deploy=STEPWISE)
    record = records_of(flow)["rnn"]
    rows = (4 if cls is nn.LSTM else 3) * (4 if channel_wise else 1)
    assert (len(record.scale_w), len(record.scale_r)) == (rows, rows)


@pytest.mark.parametrize(
    ("act", "wts"), [("INT16", "INT8"), ("INT8", "INT4"), ("INT4", "INT4"), ("INT8", "INT8")]
)
@WEIGHTS
def test_other_widths_of_activations_and_weights(tmp_path, act, wts, algo):
    model, batches = small()
    layers = ["conv", "conv2", "fc"]
    edit = edited({"dst_type": act}, {"dst_type": wts, "algo": algo}, layers)
    flow = trained(tmp_path, model, batches, edit).save()
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if act == "INT16" else {}  # sums beyond 2^24
    assert_exports_agree(flow, batches[1], **tolerance)
    records = [records_of(flow)[name] for name in layers]
    assert {(r.act_type, r.wts_type) for r in records} == {(act, wts)}


def test_fewer_bits_leave_fewer_values(tmp_path):
    model = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False)).eval()
    x = torch.linspace(-1, 1, 2000).reshape(1, 2, 1000, 1)
    edit = edited({"dst_type": "INT4"}, {"dst_type": "INT4"})
    flow = trained(tmp_path, model, [x], edit, steps=1).save()
    module = flow.model[0].quant_module
    assert len(module.quantize_input(x).unique()) <= 16
    assert len(module.quantize_weight(module.weight).unique()) <= 4


@pytest.mark.parametrize("algo", ["arq_retrain", "ulq_retrain"])
def test_one_weight_scale_becomes_one_per_channel_behind_a_batchnorm(tmp_path, algo):
    model, batches = small()
    edit = edited(weight={"channel_wise": False, "algo": algo}, only=["conv", "conv2"])
    flow = trained(tmp_path, model, batches, edit).save()
    assert_exports_agree(flow, batches[1])
    records = records_of(flow)
    assert len(records["conv2"].scale_w) == 1
    stand_in = flow.model.conv
    bn = stand_in.bn_module
    gain = bn.weight * torch.rsqrt(bn.running_var + bn.eps)
    scale = stand_in.quant_module.weight_scale(stand_in.sub_module.weight)
    assert scale.numel() == 1
    torch.testing.assert_close(torch.tensor(records["conv"].scale_w), (scale * gain).detach())


def test_half_precision_mode(tmp_path):
    model, batches = example("digits")
    edit = edited(fakequant_precision_mode="FORCE_FP16_QUANT")
    flow = trained(tmp_path, model, batches, edit).save()
    assert_exports_agree(flow, batches[1])
    for record in records_of(flow).values():
        scale = torch.tensor(record.scale_d)
        assert scale == scale.half().float()
        assert record.fakequant_precision_mode == "FORCE_FP16_QUANT"


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_half_precision_mode_of_recurrent_layers(tmp_path, cls):
    model, data = recurrent(cls)
    flow = retrain(tmp_path, model, data, edited(fakequant_precision_mode="FORCE_FP16_QUANT"))
    train_recurrent(flow, data)
    flow.save()
    assert_exports_agree(flow, *data, rtol=1e-5, atol=1e-6, deploy=STEPWISE)


class Untrainable(nn.Module):
    """BatchNorms that are special: of several processes, and without weight and bias."""

    def __init__(self, bn):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.bn = bn
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "bn",
    [
        lambda: nn.BatchNorm2d(4, affine=False),
        lambda: nn.SyncBatchNorm(4),
        lambda: nn.SyncBatchNorm(4, affine=False),
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        lambda: nn.BatchNorm2d(4, momentum=None),
    ],
    ids=["affine=False", "SyncBatchNorm", "SyncBatchNorm affine=False", "no statistics", "mean"],
)
def test_special_batchnorms(tmp_path, bn):
    torch.manual_seed(0)
    model, batches = settled(Untrainable(nn.Identity())), [torch.randn(4, 2, 5, 5)] * 2
    model.bn = bn().eval()
    flow = trained(tmp_path, model, batches).save()
    tolerance = {} if flow.model.conv.bn_module is not None else {"rtol": 1e-5, "atol": 1e-6}
    assert_exports_agree(flow, batches[0], **tolerance)


def test_batchnorm_behind_a_linear_layer_stays_float(tmp_path):
    model = settled(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    batches = [torch.randn(8, 4)]
    flow = trained(tmp_path, model, batches).save()
    assert any(n.op_type == "BatchNormalization" for n in flow.fake_quant.graph.node)
    assert_exports_agree(flow, batches[0], rtol=1e-5, atol=1e-5)


# ---- what the configuration decides ----


def test_clips_of_the_configuration_need_no_batches(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0], edited({"clip_max": 2.0, "clip_min": -1.0}))
    assert flow.model.conv.quant_module.acts_clip_max.item() == 2.0
    flow.save()
    record = records_of(flow)["conv"]
    assert record.scale_d == pytest.approx(3.0 / 255)
    assert record.offset_d == -43  # rint(-128 + 1 / (3 / 255))
    assert_exports_agree(flow, batches[0])


def test_first_range_is_symmetric_around_the_data(tmp_path):
    """scale = 1.27 / 127 is best: the codes -127, 0 and 127 are exact."""
    model = nn.Sequential(nn.Linear(3, 1)).eval()
    x = torch.tensor([[1.27, 0.0, -1.27]])
    flow = retrain(tmp_path, model, x)
    flow.model(x)
    module = flow.model[0].quant_module
    assert module.acts_clip_max.item() == pytest.approx(1.27, rel=1e-5)
    assert module.acts_clip_min.item() == pytest.approx(-1.28, rel=1e-5)


def test_range_is_that_of_all_first_batches_and_of_no_later_one(tmp_path):
    model = nn.Sequential(nn.Linear(2, 1)).eval()
    batches = [torch.tensor([[1.0, -1.0]]), torch.tensor([[12.7, 0.0]]), torch.tensor([[99.0, 0]])]
    flow = retrain(tmp_path, model, batches[0], edited(batch_num=2))
    module = flow.model[0].quant_module
    flow.model(batches[0])
    assert (module.acts_clip_max.item(), module.acts_clip_min.item()) == (1.0, -1.0)
    flow.model(batches[1])
    assert module.acts_clip_max.item() == pytest.approx(12.7, rel=0.05)
    found = module.acts_clip_max.item()
    flow.model(batches[2])
    assert module.acts_clip_max.item() == found


@pytest.mark.parametrize(
    ("activation", "fixed"), [(nn.ReLU(), True), (nn.ReLU6(), False), (nn.Sigmoid(), False)]
)
def test_lower_end_is_zero_behind_a_relu_only(tmp_path, activation, fixed):
    model = nn.Sequential(nn.Linear(3, 3), activation, nn.Linear(3, 3)).eval()
    batches = [torch.randn(8, 3)]
    flow = trained(tmp_path, model, batches).save()
    assert flow.model[2].options.range.fixed_min is fixed
    if fixed:
        assert records_of(flow)["2"].offset_d == -128
        assert flow.model[2].quant_module.acts_clip_min.item() == 0


@pytest.mark.parametrize("fixed", [True, False])
def test_lower_end_of_the_configuration_wins(tmp_path, fixed):
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval()
    batches = [torch.randn(8, 3)]
    flow = trained(tmp_path, model, batches, edited({"fixed_min": fixed}))
    assert {flow.model[i].options.range.fixed_min for i in (0, 2)} == {fixed}


def test_disabled_and_missing_layers_stay_as_they_are(tmp_path):
    model, batches = small()

    def edit(config):
        config["conv"]["retrain_enable"] = False
        del config["fc"]

    flow = trained(tmp_path, model, batches, edit).save()
    assert type(flow.model.conv) is nn.Conv2d
    assert type(flow.model.fc) is nn.Linear
    assert list(records_of(flow)) == ["conv2", "pool"]
    assert_exports_agree(flow, batches[0], rtol=1e-5, atol=1e-5)


def test_average_pooling_has_a_quantized_input_and_no_weight(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches).save()
    record = records_of(flow)["pool"]
    assert (record.scale_w, record.wts_type) == ((1.0,), None)
    names = [n for n in flow.model.state_dict() if n.startswith("pool.")]
    assert not any("wts" in name for name in names)
    assert flow.model.pool.quant_module.acts_clip_max.grad.abs() > 0


# ---- files ----


def test_files_and_their_permissions(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    assert Path(flow.record_file).read_text() == ""
    flow.save()
    files = {f.name: stat.S_IMODE(f.stat().st_mode) for f in tmp_path.iterdir()}
    assert files == {
        "retrain.json": 0o640,
        "record.txt": 0o640,
        "out_deploy_model.onnx": 0o640,
        "out_fake_quant_model.onnx": 0o640,
    }
    onnx.checker.check_model(flow.fake_quant)


def test_record_of_a_layer_worked_out_by_hand(tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.27, -2.56]).reshape(2, 1, 1, 1))
    x = torch.ones(1, 1, 2, 2)
    retrain(tmp_path, model, x, edited({"clip_max": 1.0, "clip_min": -1.55})).save()
    assert (tmp_path / "record.txt").read_text() == (
        'record {\n  key: "0"\n  value {\n    scale_d: 0.01\n    offset_d: 27\n'
        "    scale_w: 0.01\n    scale_w: 0.02\n    offset_w: 0\n    offset_w: 0\n"
        '    act_type: "INT8"\n    wts_type: "INT8"\n  }\n}\n'
    )


def test_names_and_dynamic_axes(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    axes = {"image": {0: "batch"}, "score": {0: "batch"}}
    flow.save(input_names=["image"], output_names=["score"], dynamic_axes=axes)
    for graph in (flow.fake_quant.graph, flow.deploy.graph):
        assert [i.name for i in graph.input] == ["image"]
        assert [o.name for o in graph.output] == ["score"]
        assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert_exports_agree(flow, torch.cat(batches))


# ---- the state ----


def test_state_has_the_names_of_the_ascend_toolkit(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    layer = "conv.quant_module."
    names = {k: v for k, v in flow.model.state_dict().items() if k.startswith("conv.")}
    assert set(names) == {
        *(f"{layer}replaced_module.{name}" for name in ("weight", "bias")),
        *(f"{layer}acts_{name}" for name in ("clip_max", "clip_min", "scale", "offset")),
        *(f"{layer}acts_clip_{end}_pre" for end in ("max", "min")),
        *(f"{layer}wts_{name}" for name in ("scales", "offsets")),
        f"{layer}init_module.batches_seen",
        *(f"conv.bn_module.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        "conv.bn_module.num_batches_tracked",
    }
    assert names[f"{layer}wts_scales"].shape == (4,)
    assert names[f"{layer}acts_clip_max"].shape == ()
    assert type(flow.model.bn) is nn.Identity


def toolkit_state(flow, sharing):
    """The state of `flow.model` as the Ascend toolkit names it; `sharing` reads another's input."""
    state = flow.model.state_dict()
    found = {k: v.clone() for k, v in state.items() if "batches_seen" not in k}
    layers = [k.removesuffix("replaced_module.weight") for k in state if "replaced_module.w" in k]
    for prefix in layers:
        layer = prefix.removesuffix("quant_module.")
        scales = found[f"{prefix}wts_scales"]
        weight = found[f"{prefix}replaced_module.weight"]
        found |= {
            f"{prefix}cur_batch": torch.tensor(7.0),
            f"{prefix}prune_cur_batch": torch.tensor(0.0),
            f"{prefix}s_rec_flag": torch.tensor(0.0),
            f"{prefix}wts_mask": torch.full_like(weight, torch.nan),
            f"{layer}scale_w": scales.clone(),
            f"{layer}offset_w": torch.zeros_like(scales),
            f"{layer}record_module.quant_layer_num": torch.tensor(3.0),
        }
    for reuser, main in sharing.items():
        copied = {k: v for k, v in found.items() if k.startswith(f"{main}.quant_module.")}
        for key, value in copied.items():
            part = key.removeprefix(f"{main}.quant_module.")
            found[f"{reuser}.quant_module.acts_comp_reuse.{part}"] = value
    return found


@WEIGHTS
def test_checkpoint_of_the_ascend_toolkit_is_restored(tmp_path, algo):
    model, batches = example("digits")

    def edit(config):
        del config["pool"]  # which the toolkit does not train
        edited(weight={"algo": algo})(config)

    flow = trained(tmp_path, model, batches, edit)
    state = toolkit_state(flow, {"right": "left"})
    torch.save({"net": state, "epoch": 3}, tmp_path / "toolkit.pth")
    restored = flow.restore(tmp_path / "toolkit.pth", state_dict_name="net")
    assert torch.equal(restored.eval()(batches[0]), flow.model.eval()(batches[0]))
    flow.save(restored)  # needs no further batches
    clip = restored.fc.quant_module.acts_clip_max.item()
    restored.train()(10 * batches[0])
    assert restored.fc.quant_module.acts_clip_max.item() == clip


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    state = {prefix + key: value for key, value in flow.model.state_dict().items()}
    torch.save(state, tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth")
    assert torch.equal(restored.eval()(batches[0]), flow.model.eval()(batches[0]))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_layer_of_the_user_that_is_called_module_is_no_wrapper(tmp_path, prefix):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(2, 2)

        def forward(self, x):
            return self.module(x)

    x = torch.randn(3, 2)
    flow = trained(tmp_path, Net().eval(), [x])
    state = {prefix + key: value for key, value in flow.model.state_dict().items()}
    torch.save(state, tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth")
    assert torch.equal(restored.eval()(x), flow.model.eval()(x))


def test_wrapped_model_is_saved_as_the_one_inside(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches).save()
    wanted = flow.fake_quant.SerializeToString()
    flow.save(nn.DataParallel(flow.model))
    assert flow.fake_quant.SerializeToString() == wanted
    flow.save(torch.compile(flow.model))
    assert flow.fake_quant.SerializeToString() == wanted


# ---- mistakes ----


def test_missing_key_of_a_checkpoint(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    torch.save({"net": flow.model.state_dict()}, tmp_path / "state.pth")
    with pytest.raises(KeyError, match="'model' is missing; the file has 'net'"):
        flow.restore(tmp_path / "state.pth", state_dict_name="model")
    with pytest.raises(RuntimeError, match="give state_dict_name"):
        flow.restore(tmp_path / "state.pth")


def test_checkpoint_of_another_model(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    state = flow.model.state_dict()
    torch.save({k: v for k, v in state.items() if "acts_clip_max" not in k}, tmp_path / "a.pth")
    with pytest.raises(RuntimeError, match="Missing key.*conv.quant_module.acts_clip_max"):
        flow.restore(tmp_path / "a.pth")
    torch.save({**state, "conv9.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(RuntimeError, match="Unexpected key.*conv9.weight"):
        flow.restore(tmp_path / "b.pth")


def test_a_checkpoint_of_the_float_model_is_called_one(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    torch.save(model.state_dict(), tmp_path / "float.pth")
    with pytest.raises(RuntimeError, match="float.pth: it is that of the float model: load it bef"):
        flow.restore(tmp_path / "float.pth")


class Noted(nn.Module):
    """A module with a state that is no tensor."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.note = layer, "new"

    def forward(self, x):
        return self.layer(x)

    def get_extra_state(self):
        return {"note": self.note}

    def set_extra_state(self, state):
        self.note = state["note"]


def test_state_of_the_users_modules_that_is_no_tensor_is_restored(tmp_path):
    """At opset 18, for the exporter of the opsets before knows states of tensors only."""
    model, batches = small()
    files = [str(tmp_path / name) for name in ("retrain.json", "record.txt", "state.pth")]
    noted, data, new = Noted(model).eval(), batches[0], {"opset_version": 18}
    amct.create_quant_retrain_config(files[0], noted, data, **new)
    retrained = amct.create_quant_retrain_model(files[0], noted, files[1], data, **new)
    retrained.note = "saved"
    torch.save(retrained.state_dict(), files[2])
    restored = amct.restore_quant_retrain_model(files[0], noted, files[1], data, files[2], **new)
    assert restored.note == "saved"


def test_a_missing_checkpoint(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        flow.restore(tmp_path / "nothing.pth")


@pytest.mark.parametrize("damage", ["text", "nothing", "cut", "whole model"])
def test_an_unreadable_checkpoint_is_named(tmp_path, damage):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    path = tmp_path / "state.pth"
    torch.save(flow.model if damage == "whole model" else flow.model.state_dict(), path)
    written = path.read_bytes()
    half = written[: len(written) // 2]
    path.write_bytes({"text": b"weights", "nothing": b"", "cut": half}.get(damage, written))
    with pytest.raises(
        RuntimeError, match=r"state.pth: expected what torch.save\(model.state_dict"
    ):
        flow.restore(path)


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_too_few_batches_are_named_with_their_layer(tmp_path, seen):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0], edited(batch_num=3))
    for _ in range(seen):
        flow.model(batches[0])
    with pytest.raises(RuntimeError, match=f'"conv2" has seen {seen} of 3') as error:
        flow.save()
    assert f'"fc" has seen {seen} of 3' in str(error.value)
    assert not (tmp_path / "out_deploy_model.onnx").exists()
    assert Path(flow.record_file).read_text() == ""


def test_training_and_evaluation_batches_both_count(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0], edited(batch_num=3))
    train(flow.model, batches, steps=2)
    flow.model.eval()(batches[0])
    flow.save()
    assert_exports_agree(flow, batches[0])


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.update(batch_num=2),
        lambda c: c.update(fakequant_precision_mode="FORCE_FP16_QUANT"),
        lambda c: c["conv"].update(retrain_enable=False),
        lambda c: c["conv"]["retrain_weight_config"].update(algo="ulq_retrain"),
        lambda c: c["conv"]["retrain_weight_config"].update(channel_wise=False),
        lambda c: c["conv"]["retrain_data_config"].update(fixed_min=True),
        lambda c: c["conv"]["retrain_data_config"].update(clip_max=1.0, clip_min=-1.0),
        lambda c: c.update(shift_n=True),
    ],
    ids=["batch_num", "precision", "enable", "algo", "channel_wise", "fixed_min", "clips", "shift"],
)
def test_saving_with_another_configuration_names_the_layer(tmp_path, change):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    config = config_of(flow)
    change(config)
    Path(flow.config_file).write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="conv: .*created with"):
        flow.save()


def test_layer_enabled_only_at_save(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches, lambda c: c["fc"].update(retrain_enable=False))
    config = config_of(flow)
    config["fc"]["retrain_enable"] = True
    Path(flow.config_file).write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="fc: is enabled here and is not in the model"):
        flow.save()


def test_model_that_was_created_before(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    for again in (
        lambda: amct.create_quant_retrain_config(flow.config_file, flow.model, batches[0]),
        lambda: amct.create_quant_retrain_model(
            flow.config_file, flow.model, flow.record_file, batches[0]
        ),
    ):
        with pytest.raises(RuntimeError, match="already processed"):
            again()


def test_float_model_cannot_be_saved(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    with pytest.raises(RuntimeError, match="no layer that learns"):
        flow.save(model)


def test_wrapped_model_cannot_be_created(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    flow.float_model = nn.DataParallel(model)
    with pytest.raises(RuntimeError, match="create first and wrap second"):
        flow.create()


@pytest.mark.parametrize(
    ("where", "value"),
    [("weight", torch.nan), ("weight", torch.inf), ("bias", torch.inf), ("bn", torch.nan)],
)
def test_weights_that_diverged_are_not_saved(tmp_path, where, value):
    model, batches = small()
    flow = trained(tmp_path, model, batches).save()
    stand_in = flow.model.conv
    if where == "bn":
        tensor = stand_in.bn_module.running_var
    else:
        tensor = stand_in.sub_module.get_parameter(where)
    before = [f.read_bytes() for f in sorted(tmp_path.iterdir())]
    with torch.no_grad():
        tensor.view(-1)[0] = value
    with pytest.raises(RuntimeError, match="conv: .*diverged"):
        flow.save()
    assert [f.read_bytes() for f in sorted(tmp_path.iterdir())] == before


def test_clips_that_diverged_fall_back(tmp_path):
    model, batches = small()
    flow = trained(tmp_path, model, batches)
    wanted = flow.model.eval()(batches[0])
    before = flow.model.conv.quant_module.acts_clip_max_pre.item()
    with torch.no_grad():
        flow.model.conv.quant_module.acts_clip_max.fill_(torch.nan)
    flow.save()
    assert_exports_agree(flow, batches[0])
    assert before > 0
    assert torch.isfinite(wanted).all()


def test_bfloat16_weights_are_refused_with_advice(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0])
    flow.float_model = model.to(torch.bfloat16)
    flow.data = batches[0].to(torch.bfloat16)
    with pytest.raises(TypeError, match="autocast"):
        flow.create()


def test_unusable_layers_are_warned_of(tmp_path, caplog):
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 1))
    with caplog.at_level(logging.WARNING):
        flow = retrain(tmp_path, model.eval(), torch.randn(1, 1, 4, 4))
    assert "0 (Conv2d) is left float" in caplog.text
    assert list(config_of(flow)) == ["version", "batch_num", "1"]


# ---- the shift factor N ----


def shifted(tmp_path, batch_num=2, **options):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0], edited(shift_n=True, batch_num=batch_num))
    train(flow.model, batches, steps=batch_num)
    return flow, batches


def test_shift_is_found_over_evaluation_batches_after_training(tmp_path):
    flow, batches = shifted(tmp_path)
    with pytest.raises(RuntimeError, match='shift factor.*"conv" has seen 0 of 2'):
        flow.save()
    flow.model.eval()
    for batch in batches:
        flow.model(batch)
    flow.save()
    records = records_of(flow)
    assert len(records["conv"].shift_bit) == 4
    assert len(records["fc"].shift_bit) == 1
    assert records["pool"].shift_bit == ()
    assert all(1 <= n <= 16 for n in records["conv"].shift_bit)
    assert_exports_agree(flow, batches[1])


def test_shift_is_the_least_that_holds_the_largest_sum(tmp_path):
    """codes 127 * 127 * 4 = 64516: 16 bits hold its half, which is exact."""
    model = nn.Sequential(nn.Linear(4, 1, bias=False)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.27)
    x = torch.full((1, 4), 1.27)
    clips = {"clip_max": 1.27, "clip_min": -1.28}
    flow = retrain(tmp_path, model, x, edited(clips, shift_n=True))
    flow.model.eval()(x)
    flow.save()
    assert records_of(flow)["0"].shift_bit == (2,)  # 64516 = 4 * 16129: 2 is the larger
    assert flow.model(x).item() == pytest.approx(4 * 1.27 * 1.27, rel=1e-5)


def test_training_on_forgets_the_shift(tmp_path):
    flow, batches = shifted(tmp_path, batch_num=1)
    flow.model.eval()(batches[0])
    train(flow.model, batches, steps=1)
    with pytest.raises(RuntimeError, match="has seen 0 of 1"):
        flow.save()


def test_more_evaluation_does_not_change_the_shift(tmp_path):
    flow, batches = shifted(tmp_path)
    flow.model.eval()
    for batch in batches:
        flow.model(batch)
    found = flow.model.conv.shift_search.shift()
    state = {k: v.clone() for k, v in flow.model.state_dict().items()}
    flow.model(1000 * batches[0])
    assert torch.equal(flow.model.conv.shift_search.shift(), found)
    for key, value in flow.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_shift_survives_a_restore(tmp_path):
    flow, batches = shifted(tmp_path)
    flow.model.eval()(batches[0])
    torch.save(flow.model.state_dict(), tmp_path / "state.pth")
    restored = flow.restore(tmp_path / "state.pth").eval()
    for model in (flow.model, restored):
        model(batches[1])
    assert torch.equal(restored(batches[0]), flow.model(batches[0]))
    flow.save(restored)


def test_shift_of_one_layer_only(tmp_path):
    model, batches = small()
    flow = retrain(tmp_path, model, batches[0], lambda c: c["fc"].update(shift_n=True))
    train(flow.model, batches)
    flow.model.eval()(batches[0])
    flow.save()
    assert [n for n, r in records_of(flow).items() if r.shift_bit] == ["fc"]
