"""KV-cache calibration of a model: what is observed, what is recorded, what stays as it was."""

import copy
import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import amct_pytorch as amct
from amct_pytorch.records import KVCacheRecord, Records


class Attention(nn.Module):
    """What fills a KV cache: two projections of one input."""

    def __init__(self, kind=nn.Linear):
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (kind(8, 4) for _ in range(3))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        x = self.norm(x)
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return torch.softmax(q @ k.transpose(-1, -2), -1) @ v


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Attention().eval()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def calibrated(model, batch_num=1, **params):
    """`model` with k_proj and v_proj calibrated; `params` are for both."""
    names = {"kv_cache_quant_layers": ["k_proj", "v_proj"]}
    amct.create_quant_cali_config("config.json", model, names)
    config = json.loads(Path("config.json").read_text())
    config["batch_num"] = batch_num
    for name in ("k_proj", "v_proj"):
        config[name] = {"kv_data_quant_config": params}
    Path("config.json").write_text(json.dumps(config))
    return amct.create_quant_cali_model("config.json", "record.txt", model)


def batches(count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 8, generator=generator) for _ in range(count)]


def set_output(linear, values):
    """Lets `linear` return `values` whatever it is called on."""
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(torch.tensor(values))


# --- factors -------------------------------------------------------------------------------------


def test_the_output_of_the_layer_is_what_is_calibrated(model):
    set_output(model.k_proj, [-127.0, 0.0, 1.0, 127.0])
    set_output(model.v_proj, [0.0, 0.0, 0.0, 5.1])
    calibrated(model, act_algo="hfmg")(batches(1)[0])
    records = Records.load("record.txt").kv_cache
    # From -127 to 127 in 255 steps; from 0 to 5.1 in as many.
    assert records["k_proj"].scale == pytest.approx((254 / 255,))
    assert records["k_proj"].offset == (0,)
    assert records["v_proj"].scale == pytest.approx((5.1 / 255,))
    assert records["v_proj"].offset == (-128,)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("granularity", [0, 1], ids=["per_tensor", "per_channel"])
@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_factors_are_those_of_the_op_on_the_outputs(model, algorithm, granularity, asymmetric):
    xs = batches(1)
    calibrated(
        model, act_algo=algorithm, quant_granularity=granularity, asymmetric=asymmetric
    )(xs[0])  # fmt: skip
    op = {"ifmr": amct.ops.ifmr, "hfmg": amct.ops.hfmg}[algorithm]
    k = model.k_proj(model.norm(xs[0]))
    scale, offset = op(k, asymmetric=asymmetric, axis=-1 if granularity else None)
    record = Records.load("record.txt").kv_cache["k_proj"]
    assert record.scale == tuple(scale.reshape(-1).tolist())
    assert record.offset == tuple(offset.reshape(-1).tolist())
    assert len(record.scale) == (4 if granularity else 1)


@pytest.mark.parametrize("granularity", [0, 1], ids=["per_tensor", "per_channel"])
def test_ifmr_of_three_batches_is_that_of_all_their_values(model, granularity):
    xs = batches(3)
    run = calibrated(model, batch_num=3, quant_granularity=granularity)
    for x in xs:
        run(x)
    v = torch.cat([model.v_proj(model.norm(x)) for x in xs])
    scale, offset = amct.ops.ifmr(v, axis=-1 if granularity else None)
    record = Records.load("record.txt").kv_cache["v_proj"]
    assert record == KVCacheRecord(
        tuple(scale.reshape(-1).tolist()), tuple(offset.reshape(-1).tolist())
    )


def test_one_channel_of_a_tensor_has_the_factors_it_has_alone(model):
    x = batches(1)[0]
    calibrated(model, quant_granularity=1)(x)
    k = model.k_proj(model.norm(x))
    alone = [amct.ops.ifmr(k[..., channel])[0].item() for channel in range(4)]
    assert list(Records.load("record.txt").kv_cache["k_proj"].scale) == alone


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_float32_factors_of_the_rounded_values(model, dtype):
    model, x = model.to(dtype), batches(1)[0].to(dtype)
    run = calibrated(model)
    assert torch.equal(run(x), model(x))
    scale, _ = amct.ops.ifmr(model.k_proj(model.norm(x)).float())
    assert Records.load("record.txt").kv_cache["k_proj"].scale == (scale.item(),)


def test_activation_offset_decides_where_a_layer_does_not_say(model):
    Path("cali.cfg").write_text(
        'activation_offset: false kv_cache_quant_config { quant_layers: "k_proj" }'
        'override_layers_configs { layer_name: "v_proj" kv_data_quant_config {'
        "  hfmg_quantize { asymmetric: true } } }"
    )
    set_output(model.k_proj, [0.0, 1.0, 2.0, 3.0])
    set_output(model.v_proj, [0.0, 1.0, 2.0, 3.0])
    amct.create_quant_cali_config("config.json", model, config_defination="cali.cfg")
    amct.create_quant_cali_model("config.json", "record.txt", model)(batches(1)[0])
    records = Records.load("record.txt").kv_cache
    assert (records["k_proj"].offset, records["v_proj"].offset) == ((0,), (-128,))


# --- the model -----------------------------------------------------------------------------------


def test_outputs_are_those_of_the_model_bit_for_bit(model):
    run = calibrated(model, batch_num=2)
    assert all(torch.equal(run(x), model(x)) for x in batches(4))


def test_gradients_are_those_of_the_model(model):
    x, y = (batches(1)[0].requires_grad_() for _ in range(2))
    calibrated(model)(x).sum().backward()
    model(y).sum().backward()
    assert torch.equal(x.grad, y.grad)


def test_the_users_model_is_not_changed(model):
    before = copy.deepcopy(model.state_dict())
    calibrated(model)(batches(1)[0])
    assert {type(m) for m in model.modules()} == {Attention, nn.Linear, nn.LayerNorm}
    assert not model._forward_hooks
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_subclasses_of_linear_are_layers_too():
    class Projection(nn.Linear):
        pass

    calibrated(Attention(Projection).eval())(batches(1)[0])
    assert list(Records.load("record.txt").kv_cache) == ["k_proj", "v_proj"]


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"]
)
def test_a_copy_goes_on_where_the_model_is(model, duplicate):
    first, second = batches(2)
    run = calibrated(model, batch_num=2)
    run(first)
    twin = duplicate(run)
    run(second)
    expected = Path("record.txt").read_bytes()
    Path("record.txt").unlink()
    twin(second)
    assert Path("record.txt").read_bytes() == expected


# --- the record file -----------------------------------------------------------------------------


def test_the_file_tells_how_far_calibration_is(model):
    run = calibrated(model, batch_num=2)
    line = '# calibration: "{}" has seen {} of 2 batches\n'
    for seen in (0, 1):
        expected = "".join(line.format(name, seen) for name in ("k_proj", "v_proj"))
        assert Path("record.txt").read_text() == expected
        run(batches(1)[0])
    assert Records.load("record.txt").progress == {}


def test_batches_after_the_last_one_are_ignored(model):
    run = calibrated(model)
    run(batches(1)[0])
    before = Path("record.txt").read_bytes()
    run(1000 * batches(1)[0])
    assert Path("record.txt").read_bytes() == before


def test_the_file_has_the_fields_of_the_format(model):
    set_output(model.k_proj, [-127.5, 0.0, 0.0, 127.5])
    set_output(model.v_proj, [0.0, 255.0, 510.0, 0.0])
    calibrated(model, act_algo="hfmg", quant_granularity=0)(batches(1)[0])
    assert Path("record.txt").read_text() == (
        'record {\n  key: "k_proj"\n  kv_cache_value {\n    scale: 1.0\n    offset: 0\n  }\n}\n'
        'record {\n  key: "v_proj"\n  kv_cache_value {\n    scale: 2.0\n    offset: -128\n  }\n}\n'
    )


def test_a_layer_that_never_runs_stays_unfinished(model):
    names = {"kv_cache_quant_layers": ["k_proj", "spare"]}
    model.spare = nn.Linear(2, 2)
    amct.create_quant_cali_config("config.json", model, names)
    amct.create_quant_cali_model("config.json", "record.txt", model)(batches(1)[0])
    records = Records.load("record.txt")
    assert list(records.kv_cache) == ["k_proj"]
    with pytest.raises(RuntimeError, match=r'"spare" has seen 0 of 1 batches'):
        records.check_finished()


def test_a_record_that_is_replaced_is_named(model, caplog):
    Path("record.txt").write_text("mine")
    calibrated(model)
    assert "record.txt exists and is replaced" in caplog.messages


# --- what cannot be calibrated -------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_layer_and_batch(model, value):
    run = calibrated(model, batch_num=3)
    run(batches(1)[0])
    with pytest.raises(RuntimeError, match=r"^k_proj: batch 2 of 3: .*finite"):
        run(torch.full((1, 2, 8), value))
    run(batches(1)[0])  # the batch that failed does not count
    assert '"k_proj" has seen 2 of 3' in Path("record.txt").read_text()


def test_float64_is_refused(model):
    run = calibrated(model).double()
    with pytest.raises(TypeError, match=r"^k_proj: expected dtype float32 or .* got float64"):
        run(batches(1)[0].double())


def test_a_number_of_channels_that_changes_is_refused(model):
    class Cut(nn.Linear):
        width = 4

        def forward(self, x):
            return super().forward(x)[..., : self.width]

    model.k_proj = Cut(8, 4)
    run = calibrated(model, batch_num=2, quant_granularity=1)
    x = batches(1)[0]
    run.k_proj(x)
    run.k_proj.sub_module.width = 3
    with pytest.raises(RuntimeError, match=r"^k_proj: batch 2 of 2: .*expected 4 channels"):
        run.k_proj(x)


def test_a_signal_too_small_for_a_scale_is_said(model, caplog):
    set_output(model.k_proj, [0.0, 1e-6, 1.0, 1e-9])
    set_output(model.v_proj, [0.0, 0.0, 0.0, 0.0])
    calibrated(model, quant_granularity=1)(batches(1)[0])
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert [w for w in warnings if "real but below" in w] == [
        "k_proj: the values of 2 of 4 channels are real but below what a scale can express: their "
        "scale is 1, which makes them 0"
    ]


def test_a_model_that_cannot_be_copied_is_refused(model):
    amct.create_quant_cali_config("config.json", model, {"kv_cache_quant_layers": ["k_proj"]})
    model.handle = (x for x in ())
    with pytest.raises(RuntimeError, match="cannot be copied"):
        amct.create_quant_cali_model("config.json", "record.txt", model)


def test_a_model_that_was_processed_is_refused(model):
    run = calibrated(model)
    with pytest.raises(RuntimeError, match=r"k_proj: KVCalibratedLayer"):
        amct.create_quant_cali_model("config.json", "other.txt", run)


def test_a_bare_linear_is_refused():
    with pytest.raises(RuntimeError, match="wrap it"):
        amct.create_quant_cali_config(
            "config.json", nn.Linear(2, 2), {"kv_cache_quant_layers": [""]}
        )


def test_a_missing_configuration_is_refused(model):
    with pytest.raises(FileNotFoundError, match="create_quant_cali_config"):
        amct.create_quant_cali_model("config.json", "record.txt", model)


def test_the_record_may_not_be_the_configuration(model):
    Path("config.json").write_text("{}")
    with pytest.raises(ValueError, match="record_file"):
        amct.create_quant_cali_model("config.json", "./config.json", model)
