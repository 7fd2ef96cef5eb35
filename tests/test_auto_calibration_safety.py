"""Stops and starts: budgets, exceptions, kills; what is left on disk, what is done again."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from auto_flow import Flow, Scripted, same_state, state_of

from amct_pytorch.common.auto_calibration import MseSensitivity

JOURNAL = "out/net_auto_calibration_journal.jsonl"
HISTORY = "amct_log/accuracy_based_auto_calibration_record.json"


@pytest.fixture
def flow(tmp_path):
    return Flow(tmp_path)


class Stop(BaseException):
    """Like a KeyboardInterrupt."""


class Failing(Scripted):
    """Raises at one call of one method."""

    def __init__(self, batches, needed, method, call):
        super().__init__(batches, needed)
        self.method, self.call = method, call

    def _count(self, method):
        if method == self.method:
            self.call -= 1
            if self.call == 0:
                raise Stop(method)

    def calibration(self, model):
        self._count("calibration")
        super().calibration(model)

    def evaluate(self, model):
        self._count("evaluate")
        return super().evaluate(model)

    def metric_eval(self, original, new):
        self._count("metric_eval")
        return super().metric_eval(original, new)


CALLS = (
    [("evaluate", n) for n in range(1, 7)]
    + [("calibration", n) for n in range(1, 3)]
    + [("metric_eval", n) for n in range(1, 7)]
)


@pytest.mark.parametrize(("method", "call"), CALLS)
def test_an_exception_at_any_call_leaves_nothing_but_journal_and_history(flow, method, call):
    before = {**flow.files(), "record.txt": b"of an earlier run"}
    (flow.folder / "record.txt").write_bytes(b"of an earlier run")
    state = state_of(flow.model)
    with pytest.raises(Stop):
        flow.run(Failing(flow.batches, 3, method, call))
    left = flow.files()
    assert {name: left[name] for name in before} == before
    assert set(left) - set(before) <= {JOURNAL, HISTORY}
    assert same_state(state_of(flow.model), state)
    if HISTORY in left:
        assert all(set(entry) == {"roll_back_config", "metric_eval"} for entry in flow.history)


@pytest.mark.parametrize(("method", "call"), CALLS)
def test_after_an_exception_only_what_is_left_is_done(flow, method, call):
    with pytest.raises(Stop):
        flow.run(Failing(flow.batches, 3, method, call))
    done = flow.evaluator
    # The class is part of the fingerprint.
    second = Failing(flow.batches, 3, None, 0)
    resumed = flow.run(second)
    assert JOURNAL not in flow.files()
    files = flow.files()
    fresh = flow.run(Failing(flow.batches, 3, None, 0), resume=False)
    for name in ("record.txt", "out/net_deploy_model.onnx", "out/net_fake_quant_model.onnx"):
        assert files[name] == flow.files()[name]
    assert resumed.rolled_back_layers == fresh.rolled_back_layers
    assert len(done.evaluated) + len(second.evaluated) == fresh.evaluations
    assert done.calibrated + second.calibrated == fresh.calibrations


def test_a_journal_of_another_model_config_or_evaluator_says_what_changed(flow, caplog):
    def interrupted():
        with pytest.raises(Stop):
            flow.run(Failing(flow.batches, 3, "evaluate", 4), resume=False)
        caplog.clear()

    interrupted()
    flow.model.fc.bias.data[0] += 1
    assert flow.run(Failing(flow.batches, 3, None, 0)).evaluations == 6
    assert "changed: model weights (was" in caplog.text

    interrupted()
    config = Path(flow.config_file)
    config.write_text(config.read_text().replace('"search_step":0.01', '"search_step":0.02', 1))
    assert flow.run(Failing(flow.batches, 3, None, 0)).evaluations == 6
    assert "activation_quant_params.search_step (was 0.01, is 0.02)" in caplog.text

    interrupted()
    assert flow.run(3).evaluations == 6
    assert "evaluator (was" in caplog.text

    interrupted()
    newer = Failing(flow.batches, 3, None, 0)
    newer.version = 2
    assert flow.run(newer).evaluations == 6
    assert "evaluator version (was None, is 2)" in caplog.text


def test_a_journal_of_other_settings_says_what_changed(flow, caplog):
    def interrupted():
        with pytest.raises(Stop):
            flow.run(Failing(flow.batches, 3, "evaluate", 4), resume=False, sensitivity="Mse")
        caplog.clear()

    interrupted()
    normalized = MseSensitivity(do_normalization=True)
    flow.run(Failing(flow.batches, 3, None, 0), sensitivity=normalized)
    assert "sensitivity of normalized data (was False, is True)" in caplog.text

    interrupted()
    flow.model.stem[1].eps = 0.1
    flow.run(Failing(flow.batches, 3, None, 0), sensitivity="Mse")
    assert "changed: model weights (was" in caplog.text


def test_resume_false_starts_anew(flow):
    with pytest.raises(Stop):
        flow.run(Failing(flow.batches, 3, "evaluate", 4))
    assert flow.run(Failing(flow.batches, 3, None, 0), resume=False).evaluations == 6


def test_a_finished_run_is_not_resumed(flow):
    assert flow.run(3).evaluations == 6
    assert flow.run(1).evaluations == 6


def test_a_tolerance_that_changed_judges_the_kept_metrics_anew(flow):
    with pytest.raises(Stop):
        flow.run(Failing(flow.batches, 3, "evaluate", 5))
    result = flow.run(Failing(flow.batches, 2, None, 0))
    assert len(result.rolled_back_layers) == 2


def test_metrics_without_a_form_in_json_are_evaluated_again(flow):
    class Opaque(Failing):
        def evaluate(self, model):
            return [object(), super().evaluate(model)]

        def metric_eval(self, original, new):
            return super().metric_eval(original[1], new[1])

    with pytest.raises(Stop):
        flow.run(Opaque(flow.batches, 3, "evaluate", 5))
    resumed = flow.run(Opaque(flow.batches, 3, None, 0))
    assert len(resumed.rolled_back_layers) == 3
    assert resumed.evaluations == 3  # the float model, and the two that were left


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from auto_flow import Flow, Scripted

    class Evaluator(Scripted):
        def evaluate(self, model):
            metric = super().evaluate(model)
            with open("evaluations.txt", "a") as file:
                file.write("x")
            if len(self.evaluated) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            return metric

    flow = Flow(Path(sys.argv[1])) if not Path("config.json").exists() else None
    if flow is None:
        flow = Flow.__new__(Flow)
        from models import example
        flow.folder, flow.config_file = Path(sys.argv[1]), str(Path(sys.argv[1]) / "config.json")
        flow.model, flow.batches = example("digits")
    result = flow.run(Evaluator(flow.batches, 3))
    print(result.evaluations, sorted(result.rolled_back_layers))
"""


def process(folder, kill_at):
    code = textwrap.dedent(KILLED)
    tests = str(Path(__file__).parent)
    path = os.pathsep.join([tests, str(Path(tests).parent), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", code, str(folder), str(kill_at)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("kill_at", [2, 4])
def test_a_killed_run_ends_with_the_same_answer_and_only_the_evaluations_that_were_left(
    tmp_path, kill_at
):
    assert process(tmp_path, kill_at).returncode == -9
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert left <= {"config.json", "evaluations.txt", JOURNAL, HISTORY}
    second = process(tmp_path, 0)
    assert second.returncode == 0, second.stderr
    evaluations, *layers = second.stdout.split(" ", 1)
    # The one that was cut off is done again.
    assert int(evaluations) == 6 - (kill_at - 1)
    assert (tmp_path / "evaluations.txt").read_text() == "x" * (6 + 1)
    (tmp_path / "whole").mkdir()
    assert process(tmp_path / "whole", 0).stdout.split(" ", 1)[1:] == layers


# ---- nothing satisfies ----


def test_total_failure_leaves_no_model_and_keeps_what_was_there(flow):
    (flow.folder / "out").mkdir()
    kept = {
        "record.txt": b"an old record",
        "out/my_deploy_notes.txt": b"notes",
        "out/other_fake_quant_model.onnx": b"another model",
        "out/net_deploy_model.onnx": b"of an earlier run",
    }
    for name, content in kept.items():
        (flow.folder / name).write_bytes(content)
    (flow.folder / "out/deploy").mkdir()
    before = flow.files()
    result = flow.run(7)
    assert not result.satisfied
    assert result.stopped_by is None
    assert result.final_metric is None
    assert result.quantized_layers == []
    left = flow.files()
    assert {name: left[name] for name in before} == before
    family = "accuracy_based_auto_calibration"
    assert set(left) - set(before) == {
        f"out/{family}_ranking_information.json",
        f"out/{family}_report.json",
        f"out/{family}_report.html",
        HISTORY,
    }
    # As the reference has it: the last entry is the float model beside itself.
    nothing = dict.fromkeys(flow.history[-1]["roll_back_config"], False)
    assert flow.history[-1] == {"roll_back_config": nothing, "metric_eval": [True, 0.0]}
    assert flow.report["outcome"]["satisfied"] is False


# ---- budgets ----


@pytest.mark.parametrize("limit", range(2, 8))
@pytest.mark.parametrize("needed", range(8))
def test_evaluations_are_bounded_and_the_best_so_far_is_exported(tmp_path, limit, needed):
    flow = Flow(tmp_path)
    result = flow.run(needed, max_evaluations=limit)
    assert result.evaluations <= limit
    best = [t for t in result.trials if t.satisfied]
    assert result.satisfied is bool(best)
    if result.satisfied:
        assert len(result.quantized_layers) == max(len(t.quantized) for t in best)
        assert result.final_metric >= needed
    if result.satisfied or result.stopped_by:
        assert (tmp_path / "out/net_deploy_model.onnx").is_file()
        assert result.fidelity.largest_difference < 1e-6
    else:
        assert needed == 7
    if limit >= 6:
        assert result.stopped_by is None
        assert len(result.rolled_back_layers) == needed


@pytest.mark.parametrize("limit", range(2, 7))
@pytest.mark.parametrize("needed", range(1, 7))
def test_the_last_evaluation_confirms_what_satisfies(tmp_path, limit, needed):
    result = Flow(tmp_path).run(needed, max_evaluations=limit)
    winner = [t for t in result.trials if t.quantized == result.quantized_layers]
    assert winner[-1].calibrated  # so that the record is what quantize_model gives
    assert result.evaluations == limit or result.stopped_by is None


def test_a_bounded_search_can_be_gone_on_with(flow):
    assert flow.run(2, max_evaluations=4).stopped_by == "max_evaluations"
    assert flow.run(2, max_evaluations=4).evaluations == 0
    result = flow.run(2)
    assert result.stopped_by is None
    assert len(result.rolled_back_layers) == 2
    assert JOURNAL not in flow.files()


def test_seconds_are_bounded(flow):
    result = flow.run(6, max_seconds=1e-6)
    assert result.stopped_by == "max_seconds"
    assert result.evaluations == 2
    assert not result.satisfied
    assert result.quantized_layers == flow.layers
    assert (flow.folder / "out/net_deploy_model.onnx").is_file()


class Contradicting(Scripted):
    """Loses the more, the more layers are float; takes its time."""

    def evaluate(self, model):
        time.sleep(0.1)
        return super().evaluate(model)

    def metric_eval(self, original, new):
        return new == original, float(new)


def test_a_doubt_about_the_metric_is_not_looked_into_when_time_is_up(flow):
    evaluator = Contradicting(flow.batches, 7)
    result = flow.run(evaluator, max_seconds=0.35)
    assert result.stopped_by == "max_seconds"
    assert evaluator.evaluated.count(frozenset()) == 1


def test_ample_seconds_bound_nothing(flow):
    assert flow.run(3, max_seconds=600).stopped_by is None


# ---- progress ----


class Terminal:
    """A stderr that says it is a terminal."""

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("progress", [True, False])
def test_a_terminal_shows_plan_and_bar_unless_it_shall_not(flow, monkeypatch, progress):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    flow.run(3, progress=progress)
    if not progress:
        assert terminal.text == ""
        return
    assert "plan: 7 layers, BinarySearchStrategy: at most 6 evaluations, about" in terminal.text
    assert "3 of 7 layers quantized: 2 of at most 6 evaluations" in terminal.text
    assert "left" in terminal.text
    assert "6 of at most 6 evaluations" in terminal.text


def test_off_a_terminal_there_is_only_the_log(flow, capfd, caplog):
    caplog.set_level("INFO")
    flow.run(3)
    assert "evaluations" not in capfd.readouterr().err
    assert "plan: 7 layers, BinarySearchStrategy: at most 6 evaluations, about" in caplog.text
    assert "evaluation 3 of at most 6: 3 of 7 layers quantized" in caplog.text
    assert "3 of at most 6 evaluations done, at most" in caplog.text
