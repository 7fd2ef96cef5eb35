"""The search for the layers that must stay float, whatever runs the model.

    evaluate the float model -> calibrate with everything quantized, score each layer -> evaluate
    -> ask the strategy, evaluate, ask again ... -> calibrate once more for the winner, evaluate

What is done is in the journal at once; a run that was stopped goes on behind its last step.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ..suggest import did_you_mean
from .checked import CheckedEvaluator
from .evaluator import AutoCalibrationEvaluatorBase
from .journal import Journal
from .judgement import Judgement, plain, shown
from .options import LEAST_EVALUATIONS, SearchOptions
from .progress import Progress, duration
from .result import Trial
from .sensitivity import SensitivityBase, is_higher_better
from .strategy import AutoCalibrationStrategyBase
from .trials import Trials, restored, stored

logger = logging.getLogger(__name__)

IDLE_ANSWERS = 1000  # answers of a strategy that ask for nothing new before it is given up

Config = dict[str, bool]  # layer -> True: quantized, False: float


class AccuracyBasedAutoCalibrationBase:
    """Runs the search; a subclass says how a model is calibrated and evaluated."""

    def __init__(
        self,
        layers: Sequence[str],
        evaluator: AutoCalibrationEvaluatorBase,
        strategy: AutoCalibrationStrategyBase,
        sensitivity: SensitivityBase,
        journal: Journal,
        history_file: str,
        options: SearchOptions,
    ) -> None:
        self.layers = list(layers)  # that the configuration quantizes
        self.evaluator = CheckedEvaluator(evaluator)
        self.strategy = strategy
        self.sensitivity = sensitivity
        self.journal = journal
        self.options = options
        self.progress = Progress(options.progress)
        self.trials = Trials(journal, history_file)
        self.original_metric: Any = None
        self.scores: dict[str, float] = {}  # of the layers that can be switched
        self.higher_is_better = True
        self.evaluated = 0  # by this run and by those that it goes on from
        self.planned_evaluations: int | None = None
        self.stopped_by: str | None = None
        self.first_factors = ""
        self._started = time.monotonic()

    # ---- what a subclass supplies ----

    def get_original_accuracy(self) -> Any:
        """The metric of the float model."""
        raise NotImplementedError

    def calibrate(self, roll_back_config: Config) -> str:
        """The factors, as a text, with just these layers quantized."""
        raise NotImplementedError

    def use(self, factors: str) -> None:
        """Makes `factors` those that layers are quantized by."""
        raise NotImplementedError

    def get_ranking_info(self) -> dict[str, float]:
        """The score of each layer that can be quantized, in the order of the configuration."""
        raise NotImplementedError

    def ranking_details(self) -> Any:
        """What `restore_ranking` needs, as a JSON value."""
        return self.scores

    def restore_ranking(self, details: Any) -> dict[str, float]:
        """What `get_ranking_info` returned, from the `ranking_details` of an earlier run."""
        return dict(details)

    def roll_back_and_evaluate_model(self, roll_back_config: Config) -> Any:
        """The metric with these layers quantized, by the factors in use."""
        raise NotImplementedError

    def same_factors(self, one: str, other: str, roll_back_config: Config) -> bool:
        """Whether two factors quantize these layers alike."""
        return one == other

    # ---- the search ----

    def run(self) -> Trial | None:
        """The best model found, its factors in use; None if nothing satisfies."""
        try:
            winner = self._run()
        finally:
            self.progress.close()
        if winner is None:
            nothing = dict.fromkeys(self.scores, False)
            self.trials.write_history((nothing, self._judge(self.original_metric)))
        else:
            self.use(self.trials.factors_of(winner))
        return winner

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """(layer, score), the most sensitive layer first."""
        low = self._low_is_sensitive()
        return [(name, self.scores[name]) for name in sorted(low, key=lambda name: low[name])]

    def _run(self) -> Trial | None:
        self.planned_evaluations = self._evaluations_at_most()
        self.progress.plan(self.planned_evaluations)
        self.original_metric = self._original()
        judged = self._judge(self.original_metric)
        if not judged.satisfied:
            raise ValueError(
                f"{self.evaluator.name}.metric_eval(original, original): expected the float model "
                f"to satisfy beside itself, got {tuple(judged)} for {shown(self.original_metric)}; "
                "check metric_eval"
            )
        self.first_factors, self.scores = self._first_calibration()
        self.higher_is_better = is_higher_better(self.sensitivity)
        if not self.scores:
            return None
        self._tell_plan()
        full = self._trial(dict.fromkeys(self.scores, True))
        winner = full if full.satisfied else self._search(full)
        self._probe_noise(winner)
        return None if winner is None else self._confirmed(winner)

    def _original(self) -> Any:
        entry = self.journal.find("original")
        if entry is not None and "metric" in entry:
            return self._counted(restored(entry))
        self.progress.running("float model")
        metric = self._counted(self.get_original_accuracy())
        self.journal.append("original", **stored(metric))
        return metric

    def _counted(self, metric: Any) -> Any:
        self.evaluated += 1
        self.progress.done(self._seconds_each())
        return metric

    def _first_calibration(self) -> tuple[str, dict[str, float]]:
        factors = self._calibrated(dict.fromkeys(self.layers, True))
        if entry := self.journal.find("ranking"):
            return factors, self.restore_ranking(entry["details"])
        self.use(factors)
        scores = self.get_ranking_info()
        self.journal.append("ranking", details=self.ranking_details())
        return factors, scores

    def _calibrated(self, config: Config) -> str:
        """The factors by a calibration with just these layers quantized."""
        quantized = sorted(name for name, enabled in config.items() if enabled)
        if entry := self.journal.find("calibration", quantized=quantized):
            return str(entry["factors"])
        factors = self.calibrate(config)
        self.journal.append("calibration", quantized=quantized, factors=factors)
        return factors

    def _search(self, judged: Trial) -> Trial | None:
        """Asks the strategy until it stops or a budget ends; the best trial by then."""
        self.strategy.initialize(self._low_is_sensitive())
        idle = 0
        while idle < IDLE_ANSWERS:
            stop, config = self._ask(judged)
            if not any(config.values()):
                return self.trials.best()
            known = self.trials.find(config)
            if known is None and not self._may_evaluate():
                return self.trials.best(unsatisfying_too=True)
            idle = idle + 1 if known else 0
            judged = known or self._trial(config)
            if stop:
                return judged if judged.satisfied else self.trials.best()
        raise RuntimeError(
            f"{type(self.strategy).__name__}.update_quant_config: {IDLE_ANSWERS} answers in a row "
            "asked for nothing that was not evaluated before; set stop_flag to end the search"
        )

    def _confirmed(self, winner: Trial) -> Trial:
        """The winner by factors of its own, or the next longer prefix that satisfies so.

        If there is none, or no budget left to find it: the winner by the factors of the first
        calibration, by which it was judged.
        """
        if winner.calibrated or self.options.recalibrate == "never":
            return winner
        config = winner.config
        while any(config.values()) and self._may_evaluate(confirming=True):
            trial = self._trial(config, calibrated=True)
            if trial.satisfied or not winner.satisfied:
                return trial
            logger.warning(
                "%s, calibrated for just that model: the metric does not satisfy any more (loss "
                "%s); one more layer is put back",
                _words(config),
                trial.loss,
            )
            worst = next(name for name, _ in self.ranking if config[name])
            config = {**config, worst: False}
        logger.warning(
            "the factors of the first calibration are kept for the result: by them it was judged"
        )
        return winner

    def _trial(self, config: Config, calibrated: bool = False) -> Trial:
        """Evaluates the model with these layers quantized, unless the journal knows its metric."""
        first = set(self.layers) == {name for name, enabled in config.items() if enabled}
        calibrated = calibrated or first or self._calibrates_next()
        start = time.monotonic()
        factors = self.first_factors
        if calibrated and not first:
            factors = self._calibrated(config)
        judged = self.trials.find(config)
        if judged and self.same_factors(factors, self.first_factors, config):
            return self.trials.confirm(judged, factors)
        if resumed := self.trials.resumed(config, calibrated, self._judge):
            self._counted(None)
            return self.trials.add(resumed, factors)
        self.use(factors)
        self.progress.running(_words(config))
        metric = self._counted(self.roll_back_and_evaluate_model(config))
        seconds = time.monotonic() - start
        self.trials.note_metric(config, calibrated, metric, seconds)
        trial = Trial(dict(config), metric, *self._judge(metric), seconds, calibrated)
        verdict = "satisfies" if trial.satisfied else "does not satisfy"
        text = "%s: metric %s, loss %s: %s"
        logger.info(text, _words(config), shown(metric), trial.loss, verdict)
        return self.trials.add(trial, factors)

    def _judge(self, metric: Any) -> Judgement:
        return self.evaluator.judge(self.original_metric, metric)

    def _ask(self, judged: Trial) -> tuple[bool, Config]:
        """The strategy's answer to a judgement: whether it stops, and all layers' flags."""
        answer = self.strategy.update_quant_config((judged.satisfied, judged.loss))
        source = f"{type(self.strategy).__name__}.update_quant_config"
        config = answer.get("roll_back_config") if isinstance(answer, dict) else None
        if not isinstance(config, Mapping) or "stop_flag" not in answer:
            wanted = '{"stop_flag": bool, "roll_back_config": {layer: bool}}'
            raise TypeError(f"{source}: expected {wanted}, got {answer!r}")
        flags = {name: plain(flag) for name, flag in config.items()}
        stop = plain(answer["stop_flag"])
        for name, flag in {**flags, "stop_flag": stop}.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{source}: {name}: expected a bool, got {flag!r}")
        for name in flags:
            if name not in self.scores:
                hint = did_you_mean(name, self.scores)
                raise ValueError(f"{source}: no layer {name!r} can be switched here{hint}")
        return stop, {**dict.fromkeys(self.scores, True), **flags}

    def _low_is_sensitive(self) -> dict[str, float]:
        """The scores for a strategy: low where a layer suffers, lowest where its output is NaN."""
        sign = 1.0 if self.higher_is_better else -1.0
        return {
            name: -math.inf if math.isnan(score) else sign * score
            for name, score in self.scores.items()
        }

    # ---- the budget ----

    def _evaluations_at_most(self) -> int | None:
        searched = self.strategy.evaluations_at_most(len(self.layers))
        confirmed = 1 if self.options.recalibrate == "final" else 0
        planned = None if searched is None else LEAST_EVALUATIONS + searched + confirmed
        limits = [n for n in (planned, self.options.max_evaluations) if n is not None]
        return min(limits, default=None)

    def _tell_plan(self) -> None:
        at_most = self.planned_evaluations
        count = "evaluations" if at_most is None else f"at most {at_most} evaluations"
        left = (at_most or LEAST_EVALUATIONS) - self.evaluated
        time_left = f", about {duration(left * self._seconds_each())}" if at_most else ""
        strategy = type(self.strategy).__name__
        self.progress.say(f"plan: {len(self.scores)} layers, {strategy}: {count}{time_left}")

    def _seconds_each(self) -> float:
        """What an evaluation has taken in this run, on the average."""
        return self.evaluator.seconds["evaluate"] / max(self.evaluator.evaluations, 1)

    def _may_evaluate(self, confirming: bool = False) -> bool:
        """Whether the budget allows one more evaluation."""
        best = self.trials.best()
        # A trial that satisfies has a claim on the last evaluation, for its confirmation.
        claimed = best and not best.calibrated and self.options.recalibrate == "final"
        needed = 2 if claimed and not confirming else 1
        exceeded = self._exceeded(needed)
        self.stopped_by = self.stopped_by or exceeded
        return exceeded is None

    def _exceeded(self, needed: int) -> str | None:
        """The option that forbids `needed` more evaluations, if one does."""
        evaluations, seconds = self.options.max_evaluations, self.options.max_seconds
        elapsed = time.monotonic() - self._started
        if evaluations is not None and self.evaluated + needed > evaluations:
            return "max_evaluations"
        if seconds is not None and elapsed + needed * self._seconds_each() > seconds:
            return "max_seconds"
        return None

    def _calibrates_next(self) -> bool:
        """Whether the next trial is calibrated for its own layers at once."""
        last = self.evaluated + 1 == self.options.max_evaluations
        return self.options.recalibrate == "always" or (
            self.options.recalibrate == "final" and last
        )

    def _probe_noise(self, winner: Trial | None) -> None:
        """Evaluates the float model again if losses contradict each other and the plan has room.

        A model with more layers in float that loses more accuracy is odd: either the metric is
        not monotone, or it changes between calls on the same model.
        """
        odd = any(
            set(one.quantized) < set(other.quantized) and (one.loss or 0.0) > (other.loss or 0.0)
            for one in self.trials
            for other in self.trials
        )
        to_come = 0 if winner is None or winner.calibrated else 1
        plan = self.planned_evaluations
        if not odd or plan is None or self.evaluated + to_come + 1 > plan:
            return
        if self._exceeded(to_come + 1):
            return
        self.progress.running("float model, to compare with its first evaluation")
        again = self._counted(self.get_original_accuracy())
        if stored(again) != stored(self.original_metric):
            logger.warning(
                "%s.evaluate gave %s, then %s for the same float model: judgements of such a "
                "metric are a matter of luck; fix its seeds and its data",
                self.evaluator.name,
                shown(self.original_metric),
                shown(again),
            )


def _words(config: Config) -> str:
    quantized = sum(config.values())
    if quantized == len(config):
        return f"all {quantized} layers quantized"
    return f"{quantized} of {len(config)} layers quantized"
