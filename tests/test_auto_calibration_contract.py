"""What an evaluator and the arguments may be, and what is said when they are not."""

import logging
import os

import numpy as np
import pytest
import torch
from auto_flow import Flow, Scripted, same_state, state_of
from torch import nn

import amct_pytorch as amct
import amct_pytorch.common.auto_calibration
from amct_pytorch.common.auto_calibration import (
    AutoCalibrationEvaluatorBase,
    AutoCalibrationStrategyBase,
    SensitivityBase,
)


@pytest.fixture
def flow(tmp_path):
    return Flow(tmp_path)


def call(flow, **changes):
    arguments = {
        "model": flow.model,
        "model_evaluator": flow.scripted(0),
        "config_file": flow.config_file,
        "record_file": str(flow.folder / "record.txt"),
        "save_dir": str(flow.folder / "out/net"),
        "input_data": flow.batches[0],
        **changes,
    }
    return amct.accuracy_based_auto_calibration(**arguments)


# ---- arguments ----

ROWS = [
    ({"model": "net"}, TypeError, "model: expected Module, got str"),
    ({"config_file": None}, TypeError, "config_file: expected a str"),
    ({"record_file": 3}, TypeError, "record_file: expected a str"),
    ({"save_dir": None}, TypeError, "save_dir: expected a str"),
    ({"input_names": "image"}, TypeError, "input_names: expected list or None, got str"),
    ({"output_names": ("a",)}, TypeError, "output_names: expected list or None"),
    ({"dynamic_axes": [0]}, TypeError, "dynamic_axes: expected dict or None"),
    ({"strategy": "binarysearch"}, RuntimeError, 'did you mean "BinarySearch"'),
    ({"strategy": None}, RuntimeError, "AutoCalibrationStrategyBase"),
    ({"strategy": AutoCalibrationStrategyBase}, RuntimeError, "call it"),
    ({"sensitivity": "CosineSimilarty"}, RuntimeError, 'did you mean "CosineSimilarity"'),
    ({"sensitivity": max}, RuntimeError, "SensitivityBase"),
    ({"sensitivity": SensitivityBase}, RuntimeError, "call it"),
    ({"config_file": "nowhere.json"}, RuntimeError, "nowhere.json"),
    ({"model_evaluator": object()}, RuntimeError, "AutoCalibrationEvaluatorBase"),
    ({"model_evaluator": Scripted}, RuntimeError, "call it"),
    ({"max_evaluations": 1}, ValueError, "at least 2"),
    ({"max_evaluations": 2.5}, TypeError, "max_evaluations: expected int or None, got float"),
    ({"max_evaluations": True}, TypeError, "max_evaluations"),
    ({"max_seconds": 0}, ValueError, "max_seconds"),
    ({"max_seconds": float("nan")}, ValueError, "max_seconds"),
    ({"recalibrate": "finally"}, ValueError, 'did you mean "final"'),
    ({"resume": 1}, TypeError, "resume: expected bool, got int"),
    ({"progress": None}, TypeError, "progress: expected bool"),
    ({"report": "yes"}, TypeError, "report: expected bool, got str"),
    ({"opset_version": 8}, ValueError, "opset_version"),
    ({"input_data": [1]}, RuntimeError, "input_data"),
]


@pytest.mark.parametrize(("changes", "error", "message"), ROWS, ids=lambda x: str(x)[:40])
def test_a_wrong_argument_is_named_before_any_work(flow, changes, error, message):
    evaluator = flow.scripted(0)
    before = flow.files()
    with pytest.raises(error) as raised:
        call(flow, **{"model_evaluator": evaluator, **changes})
    assert message in str(raised.value)
    assert evaluator.evaluated == []
    assert flow.files() == before


def test_outputs_must_not_be_the_config(flow):
    with pytest.raises(ValueError, match="record_file: .* is config_file"):
        call(flow, record_file=flow.config_file)


def test_a_bad_config_is_told_as_everywhere(flow):
    with open(flow.config_file, "w") as file:
        file.write('{"batch_num": 0}')
    with pytest.raises(ValueError, match="batch_num"):
        call(flow)


# ---- what the evaluator returns ----


def test_scalars_of_every_kind_give_the_result_of_plain_values(tmp_path):
    results = []
    for index, wrap in enumerate(
        [
            lambda ok, loss: (ok, loss),
            lambda ok, loss: (np.bool_(ok), np.float32(loss)),
            lambda ok, loss: [torch.tensor(ok), torch.tensor([loss])],
            lambda ok, loss: (ok, None),
        ]
    ):
        (tmp_path / str(index)).mkdir()
        flow = Flow(tmp_path / str(index))

        class Evaluator(Scripted):
            def metric_eval(self, original, new, wrap=wrap):
                return wrap(*super().metric_eval(original, new))

        result = flow.run(Evaluator(flow.batches, 1))
        results.append(result.rolled_back_layers)
        assert all(type(t.satisfied) is bool for t in result.trials)
        assert all(type(t.loss) in (float, type(None)) for t in result.trials)
        assert len(flow.history) == len(result.trials)
    assert results[0] == results[1] == results[2] == results[3]


@pytest.mark.parametrize("value", [True, (True,), (1, 0.5), ("yes", 0.5), None, (True, 0, 0)])
def test_anything_else_is_told_by_name(flow, value):
    class Odd(Scripted):
        def metric_eval(self, original, new):
            return value

    with pytest.raises(TypeError, match="Odd.metric_eval: expected a pair") as raised:
        flow.run(Odd(flow.batches, 0))
    assert str(raised.value).endswith(f"got {value!r}")


def test_the_float_model_must_satisfy_beside_itself(flow):
    class Never(Scripted):
        def metric_eval(self, original, new):
            return False, 1.0

    with pytest.raises(ValueError, match=r"Never.metric_eval\(original, original\)"):
        flow.run(Never(flow.batches, 0))
    assert flow.evaluator.calibrated == 0


@pytest.mark.parametrize("method", ["calibration", "evaluate", "metric_eval"])
def test_a_missing_method_is_named(flow, method):
    class Partial(Scripted):
        pass

    setattr(Partial, method, getattr(AutoCalibrationEvaluatorBase, method))
    with pytest.raises(NotImplementedError, match=rf"Partial.{method}\("):
        flow.run(Partial(flow.batches, 0))


# ---- what the evaluator does ----


@pytest.mark.parametrize("batches", [0, 1])
def test_too_few_batches_are_told_with_both_counts(flow, batches):
    class Lazy(Scripted):
        def calibration(self, model):
            for batch in self.batches[:batches]:
                model(batch)

    with pytest.raises(RuntimeError) as raised:
        flow.run(Lazy(flow.batches, 0))
    expected = "Lazy.calibration: expected at least 2 batches (batch_num of the configuration)"
    assert str(raised.value).startswith(f"{expected}, got {batches}")
    assert "stem.0" in str(raised.value)


@pytest.mark.parametrize("method", ["calibration", "evaluate"])
def test_training_mode_that_is_left_behind_is_told_and_undone(flow, method, caplog):
    class Trainer(Scripted):
        pass

    def method_that_trains(self, model):
        result = getattr(Scripted, method)(self, model)
        model.train()
        return result

    setattr(Trainer, method, method_that_trains)
    state = state_of(flow.model)
    flow.run(Trainer(flow.batches, 3))
    assert f"Trainer.{method} left the model in training mode" in caplog.text
    assert same_state(state_of(flow.model), state)


def test_training_mode_is_undone_after_an_exception_too(flow):
    class Trainer(Scripted):
        def evaluate(self, model):
            model.train()
            raise KeyboardInterrupt

    state = state_of(flow.model)
    with pytest.raises(KeyboardInterrupt):
        flow.run(Trainer(flow.batches, 3))
    assert same_state(state_of(flow.model), state)


def test_a_model_in_training_mode_is_told_of(flow, caplog):
    flow.model.train()
    flow.run(0)
    assert "the model is in training mode" in caplog.text


def test_data_that_change_between_calls_are_told_by_name(flow, caplog):
    class Sampler(Scripted):
        def evaluate(self, model):
            self.batches = [torch.randn(4, 1, 8, 8) for _ in self.batches]
            return super().evaluate(model)

    flow.run(Sampler(flow.batches, 0))
    assert "Sampler.evaluate ran the model on other data than at its first call" in caplog.text


def test_the_same_data_in_another_order_are_no_other_data(flow, caplog):
    class Shuffler(Scripted):
        def evaluate(self, model):
            metric = super().evaluate(model)
            for row in torch.randperm(4):
                model(self.batches[0][row : row + 1])
            return metric

    with caplog.at_level(logging.WARNING):
        flow.run(Shuffler(flow.batches, 3))
    assert "other data" not in caplog.text


def test_a_metric_that_changes_by_itself_is_told_by_name(flow, caplog):
    class Drifting(Scripted):
        def evaluate(self, model):
            super().evaluate(model)
            return 1.0 - 0.01 * len(self.evaluated)

        def metric_eval(self, original, new):
            return new >= original, original - new

    flow.run(Drifting(flow.batches, 0))
    assert "Drifting.evaluate gave 0.99, then" in caplog.text
    assert "for the same float model" in caplog.text


class Wandering(Scripted):
    """Changes the working directory."""

    def evaluate(self, model):
        os.makedirs("elsewhere", exist_ok=True)
        os.chdir("elsewhere")
        return super().evaluate(model)


def test_an_evaluator_may_change_the_working_directory(flow, monkeypatch):
    monkeypatch.chdir(flow.folder)
    result = call(
        flow,
        model_evaluator=Wandering(flow.batches, 3),
        config_file="config.json",
        record_file="record.txt",
        save_dir="out/net",
    )
    assert (flow.folder / "out/net_deploy_model.onnx").is_file()
    assert all(os.path.isfile(path) for path in result.files.values())
    assert not list(flow.folder.glob("elsewhere/**/*.*"))


class Keeping(Scripted):
    """Keeps the outputs of what it evaluates; subclasses say how they run the model."""

    def __init__(self, batches):
        super().__init__(batches, 0)
        self.outputs = []

    def evaluate(self, model):
        self.outputs.append(self.outputs_of(model))
        return super().evaluate(model)


class UnderAutocast(Keeping):
    def outputs_of(self, model):
        with torch.no_grad(), torch.autocast("cpu", torch.float16):
            return model(self.batches[0])


class InHalf(Keeping):
    def outputs_of(self, model):
        with torch.no_grad():
            output = model.half()(self.batches[0].half())
        model.float()
        return output


@pytest.mark.parametrize("evaluator", [UnderAutocast, InHalf])
def test_the_simulation_computes_in_float32_however_the_evaluator_runs_it(tmp_path, evaluator):
    flow = Flow(tmp_path)
    with torch.no_grad():  # sums of about 144 * 127 * 127, where float16 ends at 65504
        flow.model.left.weight.fill_(0.5)
    evaluator = evaluator(flow.batches)
    result = flow.run(evaluator)
    original, quantized = evaluator.outputs
    assert (original - quantized).abs().max() < 0.05 * original.abs().max()
    assert result.fidelity.largest_difference < 1e-5 * result.fidelity.largest_output


@pytest.mark.parametrize(
    "metric",
    [torch.eye(3).to_sparse(), "\ud800", {"\ud800": b"\xff"}],
    ids=lambda m: type(m).__name__,
)
def test_a_metric_that_no_file_can_hold_costs_nothing(flow, metric):
    class Odd(Scripted):
        def evaluate(self, model):
            self.float_layers = super().evaluate(model)
            return metric

        def metric_eval(self, original, new):
            return self.float_layers >= self.needed, None

    assert len(flow.run(Odd(flow.batches, 3)).rolled_back_layers) == 3
    assert flow.report["outcome"]["satisfied"]


def test_a_metric_of_whole_tensors_is_one_short_line_of_the_log(flow, caplog):
    class Images(Scripted):
        def evaluate(self, model):
            self.float_layers = super().evaluate(model)
            return [torch.rand(20, 20) for _ in range(20)]

        def metric_eval(self, original, new):
            return self.float_layers >= self.needed, None

    with caplog.at_level(logging.INFO):
        flow.run(Images(flow.batches, 3))
    assert max(len(r.getMessage()) for r in caplog.records) < 400
    assert not any("\n" in r.getMessage() for r in caplog.records)


def test_metrics_may_be_any_object(flow):
    class Metric:
        def __init__(self, value):
            self.value = value

    class Evaluator(Scripted):
        def evaluate(self, model):
            return Metric(super().evaluate(model))

        def metric_eval(self, original, new):
            return super().metric_eval(original.value, new.value)

    result = flow.run(Evaluator(flow.batches, 3))
    assert result.satisfied
    assert isinstance(result.final_metric, Metric)
    assert "Metric object" in flow.report["outcome"]["final_metric"]


# ---- the ready-made evaluator ----


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Conv2d(1, 4, 3)
        self.code = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, image, code):
        return self.head(torch.relu(self.image(image).mean((2, 3)) + self.code(code)))


def test_model_evaluator_can_be_passed_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = TwoInputs().eval()
    for folder, shape in (("image", (2, 1, 8, 8)), ("code", (2, 6))):
        (tmp_path / folder).mkdir()
        for index in range(3):
            torch.randn(shape).numpy().tofile(tmp_path / folder / f"{index}.bin")
    evaluator = amct.ModelEvaluator(
        f"{tmp_path / 'image'};{tmp_path / 'code'}",
        "image:2,1,8,8;code:2,6",
        "float32;float32",
        tolerance=0.001,
    )
    flow = Flow.__new__(Flow)
    flow.folder, flow.model, flow.config_file = tmp_path, model, str(tmp_path / "config.json")
    flow.batches = [(torch.randn(2, 1, 8, 8), torch.randn(2, 6))]
    amct.create_quant_config(flow.config_file, model, flow.batches[0], batch_num=3)
    result = flow.run(evaluator)
    assert result.satisfied
    assert 0 < result.loss < 0.001
    assert result.quantized_layers == ["code", "head", "image"]
    assert "tensor of shape" in str(flow.report["trials"][0]["metric"])


@pytest.mark.parametrize(
    "name",
    [
        "AccuracyBasedAutoCalibrationBase",
        "AutoCalibrationEvaluatorBase",
        "AutoCalibrationStrategyBase",
        "SensitivityBase",
        "BinarySearchStrategy",
        "GreedyStrategy",
        "CosineSimilaritySensitivity",
        "MseSensitivity",
        "SqnrSensitivity",
    ],
)
def test_documented_import_path(name):
    assert isinstance(getattr(amct_pytorch.common.auto_calibration, name), type)
