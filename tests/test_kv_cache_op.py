"""QuantCalibrationOp: a module that records factors for a cache and changes nothing."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import amct_pytorch as amct
from amct_pytorch.nn.module.quantization.quant_calibration_op import QuantCalibrationOp
from amct_pytorch.records import KVCacheRecord, LayerRecord, Records


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def caches():
    return Records.load("record.txt").kv_cache


# From 0 to 255 and from -127.5 to 127.5: scale 1.
POSITIVE, BOTH = torch.tensor([0.0, 255.0]), torch.tensor([-127.5, 127.5])


def test_it_returns_what_it_is_called_on():
    x = torch.randn(2, 3)
    assert amct.QuantCalibrationOp("record.txt")("k", x) is x


def test_factors_of_a_name_are_those_of_its_tensors():
    op = QuantCalibrationOp("record.txt", {"batch_num": 2, "act_algo": "hfmg"})
    op("k", POSITIVE)
    op("v", BOTH)
    assert not Path("record.txt").exists()
    op("k", POSITIVE)
    assert caches() == {"k": KVCacheRecord((1.0,), (-128,))}
    op("v", BOTH)
    op("v", 100 * BOTH)  # beyond batch_num
    assert caches() == {"k": KVCacheRecord((1.0,), (-128,)), "v": KVCacheRecord((1.0,), (0,))}


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_per_channel_is_along_the_last_dimension(algorithm):
    x = torch.randn(5, 3, 4)
    params = {"act_algo": algorithm, "quant_granularity": "per_channel"}
    QuantCalibrationOp("record.txt", params)("k", x)
    scale, offset = {"ifmr": amct.ops.ifmr, "hfmg": amct.ops.hfmg}[algorithm](x, axis=-1)
    assert caches()["k"] == KVCacheRecord(tuple(scale.tolist()), tuple(offset.tolist()))


@pytest.mark.parametrize(
    ("params", "offset"),
    [
        ({}, -128),
        ({"asymmetric": False}, 0),
        ({"with_offset": False}, 0),
        ({"with_offset": False, "asymmetric": True}, -128),
        ({"num_bits": 8}, -128),
    ],
    ids=str,
)
def test_asymmetric_decides_and_with_offset_stands_in_for_it(params, offset):
    QuantCalibrationOp("record.txt", params)("k", POSITIVE)
    assert caches()["k"].offset == (offset,)


def test_options_of_the_algorithm_arrive():
    x = torch.linspace(-1, 2, 1000)
    options = {"max_percentile": 0.9, "search_range": [0.9, 1.1], "search_step": 0.05}
    QuantCalibrationOp("record.txt", options)("k", x)
    assert caches()["k"].scale == (amct.ops.ifmr(x, **options)[0].item(),)


# --- the record file -----------------------------------------------------------------------------


def test_what_the_file_holds_stays(caplog):
    Records({"conv": LayerRecord(0.1)}, kv_cache={"v": KVCacheRecord((3.0,), (1,))}).save(
        "record.txt"
    )
    QuantCalibrationOp("record.txt")("k", POSITIVE)
    records = Records.load("record.txt")
    assert records.layers == {"conv": LayerRecord(0.1)}
    assert list(records.kv_cache) == ["v", "k"]
    assert not caplog.messages


def test_factors_that_are_replaced_are_named(caplog):
    Records({}, kv_cache={"k": KVCacheRecord((3.0,), (1,))}).save("record.txt")
    QuantCalibrationOp("record.txt")("k", POSITIVE)
    assert caches() == {"k": KVCacheRecord((1.0,), (-128,))}
    assert ['"k": kv_cache_value is there already and is replaced' in m for m in caplog.messages]


def test_making_one_leaves_the_file_alone():
    Records({}, kv_cache={"k": KVCacheRecord((3.0,), (1,))}).save("record.txt")
    before = Path("record.txt").read_bytes()
    QuantCalibrationOp("record.txt", {"batch_num": 2})("k", POSITIVE)
    assert Path("record.txt").read_bytes() == before


def test_factors_that_could_not_be_written_are_written_with_the_next_call():
    op = QuantCalibrationOp("folder/record.txt")
    Path("folder").write_text("")
    with pytest.raises(NotADirectoryError):
        op("k", POSITIVE)
    Path("folder").unlink()
    op("k", POSITIVE)
    assert list(Records.load("folder/record.txt").kv_cache) == ["k"]


# --- as a part of a model ------------------------------------------------------------------------


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.k_proj = nn.Linear(4, 4)
        self.op = QuantCalibrationOp("record.txt", {"batch_num": 2})

    def forward(self, x):
        return self.op("k", self.k_proj(x))


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_counts_for_itself(duplicate):
    model, x = Model(), torch.randn(3, 4)
    model(x)
    twin = duplicate(model)
    twin(x)
    assert list(caches()) == ["k"]
    Path("record.txt").unlink()
    model(x)
    assert list(caches()) == ["k"]


def test_gradients_pass():
    x = torch.randn(3, 4, requires_grad=True)
    QuantCalibrationOp("record.txt")("k", 2 * x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))


def test_it_works_without_gradients():
    with torch.inference_mode():
        QuantCalibrationOp("record.txt")("k", POSITIVE)
    assert list(caches()) == ["k"]


def test_it_works_in_a_compiled_model():
    model, x = Model(), torch.randn(3, 4)
    compiled = torch.compile(model, backend="eager")
    for _ in range(3):
        assert torch.equal(compiled(x), model.k_proj(x))
    assert list(caches()) == ["k"]


def test_it_has_no_state_of_its_own_in_the_models_state():
    assert set(Model().state_dict()) == {"k_proj.weight", "k_proj.bias"}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([], TypeError, "quant_algo_params: expected a dict or None, got list"),
        ({"act_algo": 1}, TypeError, 'act_algo: expected "ifmr" or "hfmg"'),
        ({"act_algo": "kl"}, RuntimeError, 'act_algo: expected "ifmr" or "hfmg", got "kl"'),
        ({"batch_num": 1.5}, TypeError, "batch_num: expected an integer, got 1.5"),
        ({"batch_num": True}, TypeError, "batch_num: expected an integer, got true"),
        ({"batch_num": 0}, RuntimeError, "batch_num: expected an integer above 0, got 0"),
        ({"asymmetric": 1}, TypeError, "asymmetric: expected true or false, got 1"),
        ({"quant_granularity": 1}, TypeError, 'expected "per_tensor" or "per_channel", got 1'),
        ({"quant_granularity": "1"}, RuntimeError, '"per_tensor" or "per_channel", got "1"'),
        ({1: 2}, RuntimeError, "expected a string for a key, got 1"),
        ({"num_bits": 4}, RuntimeError, "num_bits: expected 8, got 4"),
        ({"max_percentile": 0.5}, RuntimeError, "max_percentile: expected a number above 0.5"),
        ({"min_percentile": 2.0}, RuntimeError, "min_percentile: expected a number above 0.5"),
        ({"search_range": [1, 0.5]}, RuntimeError, "search_range: expected .*start < end"),
        ({"search_step": 0.7}, RuntimeError, "search_step: expected at most 0.6"),
        ({"num_of_bins": 4096}, RuntimeError, 'got "num_of_bins", a key of act_algo "hfmg"'),
        (
            {"act_algo": "hfmg", "search_step": 0.1},
            RuntimeError,
            'got "search_step", a key of act_algo "ifmr"',
        ),
        ({"batchnum": 1}, RuntimeError, 'got "batchnum"; did you mean "batch_num"'),
    ],
    ids=str,
)
def test_options_are_refused(params, error, message):
    with pytest.raises(error, match=message):
        QuantCalibrationOp("record.txt", params)


@pytest.mark.parametrize(("method", "error"), [("kv", RuntimeError), (None, TypeError)])
def test_other_methods_are_refused(method, error):
    with pytest.raises(error, match="quant_method: expected"):
        QuantCalibrationOp("record.txt", quant_method=method)


@pytest.mark.parametrize(
    ("path", "error"), [(1, TypeError), ("", ValueError), (".", IsADirectoryError)]
)
def test_paths_are_refused(path, error):
    with pytest.raises(error):
        QuantCalibrationOp(path)


def test_a_damaged_record_is_found_at_once():
    Path("record.txt").write_text("record {")
    with pytest.raises(RuntimeError, match=r"record\.txt:1:"):
        QuantCalibrationOp("record.txt")
    assert Path("record.txt").read_text() == "record {"


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (
            torch.zeros(2, dtype=torch.float64),
            TypeError,
            "k: expected dtype float32 .* got float64",
        ),
        ([1.0], TypeError, r"k: expected a torch\.Tensor, got list"),
        (torch.tensor([1.0, float("nan")]), RuntimeError, "k: batch 2 of 2: .*finite"),
        (torch.zeros(0, 2), RuntimeError, "k: batch 2 of 2: .*at least one element"),
        (torch.zeros(()), RuntimeError, "k: batch 2 of 2: .*got a scalar"),
        (torch.zeros(1, 3), RuntimeError, "k: batch 2 of 2: .*expected 2 channels"),
    ],
    ids=["float64", "list", "nan", "empty", "scalar", "channels"],
)
@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
def test_tensors_are_refused_and_do_not_count(algorithm, x, error, message):
    params = {"act_algo": algorithm, "batch_num": 2, "quant_granularity": "per_channel"}
    op = QuantCalibrationOp("record.txt", params)
    op("k", POSITIVE)
    with pytest.raises(error, match=message):
        op("k", x)
    assert not Path("record.txt").exists()
    op("k", POSITIVE)
    assert list(caches()) == ["k"]


def test_a_layer_has_a_name():
    with pytest.raises(TypeError, match="layer_name: expected a name, got"):
        QuantCalibrationOp("record.txt")(POSITIVE, "k")


class Cached(nn.Module):
    def __init__(self, record_file):
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.observe = amct.QuantCalibrationOp(record_file)

    def forward(self, x):
        return torch.relu(self.observe("k", self.proj(x)))


@pytest.mark.parametrize("opset", [13, 18])
def test_a_capture_is_no_batch(tmp_path, opset):
    record, config = tmp_path / "kv.txt", tmp_path / "config.json"
    model, x = Cached(str(record)).eval(), torch.randn(2, 4)
    amct.create_quant_config(str(config), model, x, opset_version=opset)
    assert config.exists()
    assert not record.exists()
    model(x)
    assert list(Records.load(str(record)).kv_cache) == ["k"]
