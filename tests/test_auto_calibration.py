"""Automatic calibration from the user's side: search, files, work, all kinds of layers."""

import json
import math

import numpy as np
import onnx
import pytest
import torch
from auto_flow import Flow, same_state, state_of
from ptq_flow import run as run_onnx
from torch import nn

import amct_pytorch as amct
from amct_pytorch.common.auto_calibration import (
    AutoCalibrationEvaluatorBase,
    AutoCalibrationStrategyBase,
    BinarySearchStrategy,
    SensitivityBase,
)
from amct_pytorch.records import Records
from amct_pytorch.search import model_search

MODELS = ["net_deploy_model.onnx", "net_fake_quant_model.onnx"]


@pytest.fixture
def flow(tmp_path):
    return Flow(tmp_path)


# ---- the search ----

# Evaluations in the search of the reference, by the number of layers that must be float.
REFERENCE_EVALUATIONS = [0, 3, 4, 3, 4, 3, 4, 2]


@pytest.mark.parametrize("needed", range(8))
def test_seven_layers_end_as_the_reference_does_with_no_more_calls(flow, needed):
    result = flow.run(needed)
    ranked = [name for name, _ in flow.ranking]
    assert set(result.rolled_back_layers) == set(ranked[:needed])
    assert result.satisfied is (needed < 7)
    searched = [t for t in result.trials[1:] if not t.calibrated]
    assert len(searched) <= REFERENCE_EVALUATIONS[needed]
    final = 1 if 0 < needed < 7 else 0
    assert result.evaluations == len(flow.evaluator.evaluated) == 2 + len(searched) + final
    assert result.calibrations == flow.evaluator.calibrated == 1 + final
    assert result.evaluations <= 2 + 3 + 1
    # The float model, every subset once, the winner once more by its own factors.
    repeated = flow.evaluator.evaluated[1:]
    assert len(repeated) - len(set(repeated)) == final


@pytest.mark.parametrize("needed", [0, 1, 3, 7])
def test_greedy(flow, needed):
    result = flow.run(needed, strategy="Greedy")
    lengths = [
        len(t.rolled_back) for t in result.trials if len(t.quantized) == 7 or not t.calibrated
    ]
    assert lengths == list(range(min(needed, 6) + 1))
    assert result.satisfied is (needed < 7)


@pytest.mark.parametrize("recalibrate", ["final", "never", "always"])
def test_recalibrate_decides_how_often_factors_are_made(flow, recalibrate):
    result = flow.run(3, recalibrate=recalibrate)
    assert [len(t.rolled_back) for t in result.trials] == [0, 4, 2, 3, 3][: len(result.trials)]
    assert (len(result.trials), result.calibrations) == {
        "final": (5, 2),
        "never": (4, 1),
        "always": (4, 4),
    }[recalibrate]


def test_the_result_is_what_quantize_model_and_save_model_give(tmp_path):
    (tmp_path / "auto").mkdir()
    flow = Flow(tmp_path / "auto")
    flow.run(2, input_names=["image"], dynamic_axes={"image": {0: "n"}})
    by_hand = [str(tmp_path / name) for name in ("modified.onnx", "record.txt", "net")]
    config = str(flow.folder / "out/accuracy_based_auto_calibration_final_config.json")
    calibrated = amct.quantize_model(
        config,
        *by_hand[:2],
        flow.model,
        flow.batches[0],
        input_names=["image"],
        dynamic_axes={"image": {0: "n"}},
    )
    for batch in flow.batches:
        calibrated(batch)
    amct.save_model(*by_hand)
    assert (flow.folder / "record.txt").read_bytes() == (tmp_path / "record.txt").read_bytes()
    for name in MODELS:
        assert (flow.folder / "out" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_the_simulation_that_was_judged_is_the_exported_model(flow):
    outputs = []

    class Evaluator(type(flow.scripted(3))):
        def evaluate(self, model):
            outputs.append(model(self.batches[1]))
            return super().evaluate(model)

    result = flow.run(Evaluator(flow.batches, 3))
    exported = onnx.load(flow.folder / "out/net_fake_quant_model.onnx")
    in_onnx = torch.from_numpy(run_onnx(exported, flow.batches[1]))
    torch.testing.assert_close(outputs[-1], in_onnx, rtol=1e-5, atol=1e-6)
    assert result.fidelity.checked
    assert result.fidelity.largest_difference < 1e-6
    assert flow.report["fidelity"]["largest_difference"] == result.fidelity.largest_difference


def test_one_capture_serves_everything(flow, monkeypatch):
    exports = []
    export = torch.onnx.export
    monkeypatch.setattr(torch.onnx, "export", lambda *a, **k: exports.append(1) or export(*a, **k))
    flow.run(3)
    assert len(exports) == 1


@pytest.mark.parametrize("mode", ["DEFAULT", "FORCE_FP16_QUANT"])
def test_the_records_in_use_are_those_of_their_text(tmp_path, monkeypatch, mode):
    made, make = [], model_search.records_so_far
    monkeypatch.setattr(
        model_search, "records_so_far", lambda *a: made.append(make(*a)) or made[-1]
    )
    flow = Flow(tmp_path, edit=lambda config: config.update(fakequant_precision_mode=mode))
    flow.run(3)
    assert len(made) == 2
    assert [Records.parse(records.dumps()) for records in made] == made


def test_scores_come_from_one_pass_without_another_calibration(flow):
    result = flow.run(0)
    assert result.calibrations == 1
    assert [name for name, _ in result.ranking] == [name for name, _ in flow.ranking]
    assert sorted(flow.layers) == sorted(name for name, _ in result.ranking)


def test_batches_beyond_batch_num_are_ignored_for_scores_too(tmp_path):
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    few, many = Flow(first), Flow(second)
    many.batches = [*many.batches, *(torch.randn(4, 1, 8, 8) * 100 for _ in range(3))]
    assert few.run(7).ranking == many.run(7).ranking


def test_an_evaluator_that_calls_parts_of_the_model_is_asked_for_its_data_again(flow):
    class Parts(type(flow.scripted(3))):
        def calibration(self, model):
            self.calibrated += 1
            for batch in self.batches:
                model.forward(batch)  # no hooks of the model run

    result = flow.run(Parts(flow.batches, 3))
    assert result.satisfied
    assert result.calibrations == 3


def test_a_winner_that_fails_by_its_own_factors_goes_on_with_the_next_longer_prefix(flow):
    class Fragile(type(flow.scripted(2))):
        def evaluate(self, model):
            metric = super().evaluate(model)
            # 2 satisfied in the search and does not after calibration
            return 1 if metric == 2 and self.evaluated.count(self.evaluated[-1]) == 2 else metric

    result = flow.run(Fragile(flow.batches, 2))
    assert result.satisfied
    assert [len(t.rolled_back) for t in result.trials] == [0, 4, 2, 1, 2, 3]
    assert set(result.rolled_back_layers) == {name for name, _ in flow.ranking[:3]}
    assert result.trials[-1].calibrated


# ---- files ----


def test_the_files_of_a_run(flow):
    result = flow.run(3)
    family = "accuracy_based_auto_calibration"
    assert set(flow.files()) == {
        "config.json",
        "record.txt",
        *(f"out/{name}" for name in MODELS),
        "out/net_quant.json",
        f"out/{family}_ranking_information.json",
        f"out/{family}_final_config.json",
        f"out/{family}_report.json",
        f"out/{family}_report.html",
        f"amct_log/{family}_record.json",
    }
    listed = {str(flow.folder / name) for name in flow.files()} - {flow.config_file}
    assert set(result.files.values()) == listed


def test_the_history_is_json_with_an_entry_for_each_trial(flow):
    result = flow.run(3)
    assert [set(entry) for entry in flow.history] == [{"roll_back_config", "metric_eval"}] * 5
    assert flow.history[0] == {
        "roll_back_config": dict.fromkeys(flow.layers, True),
        "metric_eval": [False, 3.0],
    }
    assert [e["metric_eval"] for e in flow.history] == [
        [t.satisfied, t.loss] for t in result.trials
    ]


def test_the_ranking_is_ascending_and_in_the_format_of_the_reference(flow):
    flow.run(3)
    assert flow.ranking == sorted(flow.ranking, key=lambda pair: pair[1])
    assert all(0 < score < 1 for _, score in flow.ranking)
    text = flow.files()["out/accuracy_based_auto_calibration_ranking_information.json"]
    assert text.startswith(b'[\n    [\n        "')


def test_the_final_config_is_the_users_with_other_flags(flow):
    config = flow.json("config.json")
    result = flow.run(3)
    for name in result.rolled_back_layers:
        config[name]["quant_enable"] = False
    assert flow.final_config == config
    assert list(flow.final_config) == list(flow.json("config.json"))


def test_the_quantization_information_file(flow):
    result = flow.run(3)
    info = flow.json("out/net_quant.json")
    nodes = {n.name: n for n in onnx.load(flow.folder / "out/net_deploy_model.onnx").graph.node}
    assert info["fused"] == {"stem.1": "stem.0"}
    by_layer = {layer["layer"]: layer for layer in info["layers"]}
    assert [n for n, layer in by_layer.items() if layer["quantized"]] != []
    for name, layer in by_layer.items():
        assert layer["quantized"] is (name in result.quantized_layers)
        if layer["quantized"]:
            assert nodes[layer["quant_node"]].op_type == "AscendQuant"
            assert nodes[layer["quant_node"]].output[0] == nodes[name].input[0]
            assert nodes[layer["dequant_node"]].op_type == "AscendDequant"
            assert nodes[layer["dequant_node"]].input[0] == nodes[name].output[0]
        else:
            assert "sensitivity rank" in layer["reason"]
    assert by_layer["stem.0"]["fused"] == ["stem.1"]


def test_layers_that_were_never_asked_for_are_told_from_those_put_back(tmp_path):
    flow = Flow(tmp_path, skip_layers=["fc"])
    flow.run(1)
    reasons = {x["layer"]: x["reason"] for x in flow.json("out/net_quant.json")["layers"]}
    assert reasons["fc"] == "the configuration does not enable it"
    states = {x["name"]: x["state"] for x in flow.report["layers"]}
    assert states["fc"] == "disabled"
    assert sorted(states.values()).count("rolled back") == 1


def test_the_report_has_a_row_for_each_layer_and_trial(flow):
    result = flow.run(3)
    report = flow.report
    assert [layer["name"] for layer in report["layers"]] == [
        name for name, m in flow.model.named_modules() if name in flow.layers
    ]
    stem = report["layers"][0]
    assert (stem["type"], stem["weight_shape"]) == ("Conv2d", [8, 1, 3, 3])
    assert stem["parameters"] == 8 * 9 + 8
    assert stem["macs"] == 8 * 8 * 8 * 9
    assert (stem["act_bits"], stem["wts_bits"], stem["channels"]) == (8, 8, 8)
    up = next(layer for layer in report["layers"] if layer["name"] == "up")
    assert up["macs"] == 8 * 8 * 8 * (6 // 2) * 2 * 2
    for layer in report["layers"]:
        assert 0.99 < layer["cosine"] <= 1
        assert 20 < layer["sqnr_db"] < 80
        assert layer["clipping_share"] + layer["rounding_share"] == 1
        assert layer["type"] == "AvgPool2d" or 20 < layer["weight_sqnr_db"] < 80
    assert [t["metric"] for t in report["trials"]] == [t.metric for t in result.trials]
    assert report["outcome"]["original_metric"] == 7
    html = (flow.folder / "out/accuracy_based_auto_calibration_report.html").read_text()
    assert "stem.0" in html


def test_without_a_report(flow):
    result = flow.run(3, report=False)
    assert not any("report" in name for name in flow.files())
    assert not any("report" in key for key in result.files)


def test_modes_of_files_and_folders(flow):
    flow.run(3)
    for path in (flow.folder / "out").iterdir():
        assert path.stat().st_mode & 0o777 == 0o640
    for folder in ("out", "amct_log"):
        assert (flow.folder / folder).stat().st_mode & 0o777 == 0o750


def test_a_prefix_may_be_empty(flow, monkeypatch):
    monkeypatch.chdir(flow.folder)
    amct.accuracy_based_auto_calibration(
        flow.model, flow.scripted(0), "config.json", "r.txt", "plain/", flow.batches[0]
    )
    assert (flow.folder / "plain/deploy_model.onnx").is_file()


# ---- strategies and sensitivities of the user ----


class OneByOne(AutoCalibrationStrategyBase):
    """Puts back one layer alone, each in turn."""

    def initialize(self, ranking_info):
        self.names = list(ranking_info)

    def update_quant_config(self, metric_eval):
        if metric_eval[0]:
            return {"stop_flag": True, "roll_back_config": self.config}
        self.config = {self.names.pop(0): np.bool_(False)}
        return {"stop_flag": False, "roll_back_config": self.config}


class Needs(AutoCalibrationEvaluatorBase):
    """Satisfied if one particular layer is float."""

    def __init__(self, batches, layer):
        self.batches, self.layer = batches, layer

    def calibration(self, model):
        for batch in self.batches:
            model(batch)

    def evaluate(self, model):
        module = model.get_submodule(self.layer)
        return not getattr(module, "enabled", False)

    def metric_eval(self, original, new):
        return new, None


def test_a_strategy_of_the_user(flow):
    result = flow.run(Needs(flow.batches, "right"), strategy=OneByOne())
    assert result.rolled_back_layers == ["right"]
    assert result.loss is None
    assert flow.history[-1]["metric_eval"] == [True, None]


class Fixed(AutoCalibrationStrategyBase):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def initialize(self, ranking_info):
        pass

    def update_quant_config(self, metric_eval):
        return self.answer


def test_a_first_answer_with_the_stop_flag_is_evaluated(flow):
    answer = {"stop_flag": True, "roll_back_config": {"right": False}}
    result = flow.run(Needs(flow.batches, "right"), strategy=Fixed(answer))
    assert result.satisfied
    assert result.rolled_back_layers == ["right"]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"stop_flag": True}, TypeError, "roll_back_config"),
        (None, TypeError, "got None"),
        ({"stop_flag": True, "roll_back_config": None}, TypeError, "roll_back_config"),
        ({"stop_flag": 1, "roll_back_config": {}}, TypeError, "stop_flag: expected a bool"),
        ({"stop_flag": False, "roll_back_config": {"fc": "no"}}, TypeError, "fc: expected a bool"),
        ({"stop_flag": False, "roll_back_config": {"rihgt": False}}, ValueError, "right"),
        ({"stop_flag": False, "roll_back_config": {}}, RuntimeError, "set stop_flag"),
    ],
)
def test_an_answer_that_does_not_fit_is_told_by_name(flow, answer, error, message):
    with pytest.raises(error, match="Fixed.update_quant_config") as raised:
        flow.run(3, strategy=Fixed(answer))
    assert message in str(raised.value)


def test_a_strategy_that_gives_up_leaves_no_model(flow):
    answer = {"stop_flag": True, "roll_back_config": {"right": False}}
    result = flow.run(7, strategy=Fixed(answer))
    assert not result.satisfied
    assert not any(name.endswith(".onnx") for name in flow.files())


class LargestError(SensitivityBase):
    def compare(self, data, other):
        assert data.dtype == other.dtype == np.float32
        assert data.ndim == other.ndim == 1
        return abs(data - other).max()


def test_an_error_like_score_is_not_read_backwards(flow):
    ranking = flow.run(3, sensitivity=LargestError()).ranking
    assert [s for _, s in ranking] == sorted((s for _, s in ranking), reverse=True)
    rolled_back = flow.run(3, sensitivity=LargestError()).rolled_back_layers
    assert set(rolled_back) == {name for name, _ in ranking[:3]}


@pytest.mark.parametrize(("name", "falling"), [("Mse", True), ("Sqnr", False)])
def test_other_sensitivities(flow, name, falling):
    result = flow.run(3, sensitivity=name)
    scores = [score for _, score in result.ranking]
    assert scores == sorted(scores, reverse=falling)
    assert set(result.rolled_back_layers) == {name for name, _ in result.ranking[:3]}


def test_mse_and_largest_error_do_not_put_back_the_best_layers(flow):
    mse = [name for name, _ in flow.run(3, sensitivity="Mse").ranking]
    error = [name for name, _ in flow.run(3, sensitivity=LargestError()).ranking]
    assert len(set(mse[:3]) & set(error[:3])) >= 2


class LargestErrorInPlace(SensitivityBase):
    higher_is_better = False

    def compare(self, data, other):
        data -= other
        largest = abs(data).max()
        data[:] = 0
        return largest


def test_what_compare_does_to_its_arguments_harms_nobody(flow):
    in_place = flow.run(2, sensitivity=LargestErrorInPlace())
    assert in_place.ranking == flow.run(2, sensitivity=LargestError()).ranking


def test_a_sensitivity_that_returns_no_number_is_told_by_name(flow):
    class Vague(SensitivityBase):
        higher_is_better = True

        def compare(self, data, other):
            return data - other

    with pytest.raises(TypeError, match="Vague.compare: expected a number"):
        flow.run(3, sensitivity=Vague())


# ---- every kind of layer ----


@pytest.mark.parametrize("name", ["digits", "sequence", "volume"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_every_kind_of_layer_is_scored_and_put_back(tmp_path, name, share):
    flow = Flow(tmp_path, name)
    result = flow.run(math.ceil(share * len(flow.layers)))
    assert result.satisfied
    assert all(score > 0.99 for _, score in result.ranking)
    assert result.fidelity.largest_difference <= 1e-5 * result.fidelity.largest_output


def set_bits(activation=None, weight=None, only=None):
    def edit(config):
        for key, value in config.items():
            if isinstance(value, dict) and (only is None or key in only):
                if activation:
                    value["activation_quant_params"]["num_bits"] = activation
                if weight:
                    value["weight_quant_params"]["num_bits"] = weight

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        set_bits(weight=4, only=["left", "right", "fc"]),
        set_bits(activation=16, only=["left", "right", "up", "fc"]),
        set_bits(activation=16, only=["left"]),
    ],
    ids=["A8W4", "A16W8", "mixed"],
)
def test_bit_widths(tmp_path, edit):
    flow = Flow(tmp_path, edit=edit)
    result = flow.run(2)
    assert result.satisfied
    assert result.fidelity.largest_difference <= 1e-4 * result.fidelity.largest_output


class Branches(nn.Module):
    """Calibration data may take another way than the traced input."""

    def __init__(self):
        super().__init__()
        self.always = nn.Conv2d(1, 4, 3)
        self.sometimes = nn.Conv2d(4, 4, 3)
        self.last = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.always(x)
        if x.flatten()[0] > 0:
            y = self.sometimes(y)
        return self.last(y)


@pytest.mark.parametrize(
    ("signs", "evaluations"),
    # Once reached, its rounded weights are in the data behind it, and in the factors there.
    [((-1, -1), 2), ((1, -1), 3)],
    ids=["never", "once"],
)
def test_a_layer_that_calibration_does_not_reach_is_listed_and_kept_float(
    tmp_path, signs, evaluations, caplog
):
    flow = Flow.__new__(Flow)
    torch.manual_seed(0)
    flow.folder, flow.model = tmp_path, Branches().eval()
    flow.config_file = str(tmp_path / "config.json")
    positive = torch.rand(2, 1, 8, 8)
    flow.batches = [positive]
    amct.create_quant_config(flow.config_file, flow.model, positive, batch_num=2)

    class Evaluator(Needs):
        def evaluate(self, model):
            return 1.0

        def metric_eval(self, original, new):
            return True, 0.0

    result = flow.run(Evaluator([sign * positive for sign in signs], None))
    assert result.quantized_layers == ["always", "last"]
    assert list(result.left_float) == ["sometimes"]
    assert "sometimes is left float: calibration" in caplog.text
    assert flow.final_config["sometimes"]["quant_enable"] is False
    assert (result.evaluations, result.calibrations) == (evaluations, 2)


def test_a_layer_whose_output_is_nan_is_the_worst(tmp_path):
    flow = Flow(tmp_path)

    class Broken(SensitivityBase):
        higher_is_better = True

        def compare(self, data, other):
            return math.nan if len(data) == 4 * 10 else 0.5  # the output of fc

    result = flow.run(1, sensitivity=Broken())
    assert result.rolled_back_layers == ["fc"]
    assert flow.ranking[0] == ["fc", None]


def test_a_layer_of_zeros_loses_nothing(tmp_path):
    flow = Flow(tmp_path)
    with torch.no_grad():
        flow.model.fc.weight.zero_()
        flow.model.fc.bias.zero_()
    assert flow.run(1).ranking[-1] == ("fc", 1.0)


def test_float16(tmp_path):
    flow = Flow(tmp_path)
    flow.model.half()
    flow.batches = [batch.half() for batch in flow.batches]
    amct.create_quant_config(flow.config_file, flow.model, flow.batches[0], batch_num=2)
    assert flow.run(2).satisfied


# ---- the user's things ----


def test_the_users_model_and_config_stay_as_they_are(flow):
    state, config = state_of(flow.model), flow.files()["config.json"]
    flow.run(3)
    assert same_state(state_of(flow.model), state)
    assert flow.files()["config.json"] == config


def test_the_float_model_that_is_evaluated_is_the_users_own_object(flow):
    seen = []

    class Evaluator(type(flow.scripted(0))):
        def evaluate(self, model):
            seen.append(model is flow.model)
            return super().evaluate(model)

    flow.run(Evaluator(flow.batches, 0))
    assert seen == [True, False]


def test_the_result_as_json(flow):
    """Everything a script may want to log."""
    result = flow.run(3)
    json.dumps([result.satisfied, result.loss, result.ranking, result.files, result.seconds])
    assert result.original_metric == 7
    assert result.final_metric == 3
    assert sorted(result.quantized_layers + result.rolled_back_layers) == sorted(flow.layers)
    assert result.seconds["total"] >= result.seconds["evaluate"] + result.seconds["calibration"]


def test_binary_search_may_be_given_as_an_instance(flow):
    assert len(flow.run(5, strategy=BinarySearchStrategy()).rolled_back_layers) == 5
