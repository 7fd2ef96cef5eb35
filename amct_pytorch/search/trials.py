"""The models that a search has evaluated: each once, on disk when it is judged."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ..files import write_files
from .journal import Journal
from .judgement import Judgement, finite
from .metric_json import NotStorable, decode, encode
from .result import Trial

Config = Mapping[str, bool]  # layer -> True: quantized, False: float


class Trials:
    """Trials by the set of quantized layers and whether calibration ran with just these.

    Each new trial goes to the journal, to resume from, and to the history file, to read: a JSON
    array of {"roll_back_config": {layer: bool}, "metric_eval": [satisfied, loss]}.
    """

    def __init__(self, journal: Journal, history_file: str) -> None:
        self.journal = journal
        self.history_file = history_file
        self.all: list[Trial] = []
        self.factors: list[str] = []  # of each trial, by which its layers were quantized

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def find(self, config: Config, calibrated: bool | None = None) -> Trial | None:
        """The trial of this set of layers; the calibrated one if there are two."""
        found = [
            trial
            for trial in self.all
            if trial.config.items() == config.items() and calibrated in (None, trial.calibrated)
        ]
        return max(found, key=lambda trial: trial.calibrated, default=None)

    def add(self, trial: Trial, factors: str) -> Trial:
        """Keeps a trial that was judged."""
        self.all.append(trial)
        self.factors.append(factors)
        if not trial.resumed:
            verdict = {"satisfied": trial.satisfied, "loss": trial.loss}
            self.journal.append("judgement", **_key(trial.config, trial.calibrated), **verdict)
        self.write_history()
        return trial

    def note_metric(self, config: Config, calibrated: bool, metric: Any, seconds: float) -> None:
        """Puts an evaluation into the journal before anything can go wrong with its judgement."""
        key = _key(config, calibrated)
        self.journal.append("evaluation", **key, seconds=seconds, **stored(metric))

    def confirm(self, trial: Trial, factors: str) -> Trial:
        """Notes that calibration for just these layers gave the factors of the trial again."""
        index = next(i for i, known in enumerate(self.all) if known is trial)
        self.all[index] = replace(trial, calibrated=True)
        self.factors[index] = factors
        return self.all[index]

    def factors_of(self, trial: Trial) -> str:
        """The factors by which the layers of a trial were quantized."""
        return next(f for t, f in zip(self.all, self.factors, strict=True) if t is trial)

    def resumed(
        self, config: Config, calibrated: bool, judge: Callable[[Any], Judgement]
    ) -> Trial | None:
        """The trial that an earlier run has left in the journal, judged anew if that can be."""
        key = _key(config, calibrated)
        evaluation = self.journal.find("evaluation", **key)
        if evaluation is None:
            return None
        metric, seconds = restored(evaluation), evaluation["seconds"]
        if "metric" in evaluation:
            judged = judge(metric)
        elif verdict := self.journal.find("judgement", **key):
            judged = Judgement(verdict["satisfied"], verdict["loss"])
        else:
            return None
        return Trial(dict(config), metric, *judged, seconds, calibrated, resumed=True)

    def best(self, unsatisfying_too: bool = False) -> Trial | None:
        """Of the trials that satisfy the one with most layers quantized, then the least loss.

        If none does and `unsatisfying_too`: the one with the least loss, then fewest quantized.
        """
        good = [trial for trial in self.all if trial.satisfied]
        if good:
            return min(good, key=lambda t: (-len(t.quantized), not t.calibrated, _loss(t)))
        if unsatisfying_too:
            return min(self.all, key=lambda t: (_loss(t), len(t.quantized)), default=None)
        return None

    def write_history(self, last: tuple[Config, Judgement] | None = None) -> None:
        """Writes the history file; `last` is an entry that no trial stands for."""
        judged = [(trial.config, Judgement(trial.satisfied, trial.loss)) for trial in self.all]
        entries = [
            {"roll_back_config": dict(config), "metric_eval": [good, finite(loss)]}
            for config, (good, loss) in [*judged, *([last] if last else [])]
        ]
        text = json.dumps(entries, indent=4, separators=(",", ":"), ensure_ascii=False)
        write_files({self.history_file: text}, warn_replaced=False)


def stored(metric: Any) -> dict[str, Any]:
    """The `metric` of a journal entry; without the key if it has no exact form in JSON."""
    try:
        return {"metric": encode(metric)}
    except NotStorable:
        return {}


def restored(entry: Mapping[str, Any]) -> Any:
    """The metric of a journal entry; None if it was not stored."""
    return decode(entry["metric"]) if "metric" in entry else None


def _key(config: Config, calibrated: bool) -> dict[str, Any]:
    quantized = sorted(name for name, enabled in config.items() if enabled)
    return {"quantized": quantized, "calibrated": calibrated}


def _loss(trial: Trial) -> float:
    return math.inf if trial.loss is None or math.isnan(trial.loss) else trial.loss
