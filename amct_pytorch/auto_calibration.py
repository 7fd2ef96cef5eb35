"""Accuracy-based automatic calibration: the most quantized model whose accuracy holds."""

from __future__ import annotations

import copy
import json
import logging
import os
import time
from typing import Any

from torch import nn

from .config.json_file import read_object
from .export.compare import Comparison, compare_to_onnx
from .export.graphs import graph_files
from .files import (
    Content,
    check_distinct,
    check_file_name,
    check_save_path,
    check_writable,
    write_files,
)
from .graph.options import DynamicAxes, ExportOptions
from .report.document import describe_run
from .report.html import render
from .report.quant_info import describe_graph
from .search.evaluator import AutoCalibrationEvaluatorBase
from .search.journal import Journal
from .search.judgement import finite
from .search.model_search import ModelSearch, digest, fingerprint
from .search.options import SearchOptions, check_evaluator, chosen_sensitivity, chosen_strategy
from .search.output_paths import OutputPaths
from .search.result import AutoCalibrationResult, Trial
from .search.sensitivity import SensitivityBase
from .search.strategy import AutoCalibrationStrategyBase
from .steps import (
    balance_and_quantize,
    check_types,
    copy_model,
    modified_graph,
    prepare,
)
from .transforms.dmq import balance_of

logger = logging.getLogger(__name__)


def accuracy_based_auto_calibration(
    model: nn.Module,
    model_evaluator: AutoCalibrationEvaluatorBase,
    config_file: str,
    record_file: str,
    save_dir: str,
    input_data: Any,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    strategy: str | AutoCalibrationStrategyBase = "BinarySearch",
    sensitivity: str | SensitivityBase = "CosineSimilarity",
    *,
    max_evaluations: int | None = None,
    max_seconds: float | None = None,
    resume: bool = True,
    progress: bool = True,
    recalibrate: str = "final",
    report: bool = True,
    opset_version: int = 13,
) -> AutoCalibrationResult:
    """Finds the layers that must stay float for the accuracy to hold, and exports that model.

    The float model is evaluated, then the one with every layer of the configuration quantized. If
    that does not satisfy, the layers are ranked by what quantization does to their output, and the
    strategy puts the most sensitive ones back to float. One calibration serves all of this; a
    second one makes the factors of the winner, which is evaluated once more. With
    `dmq_balancer_param` in the configuration one before all others finds the balance factors.

    Args:
        model: the trained float model; it is not changed.
        model_evaluator: the user's `AutoCalibrationEvaluatorBase`.
        config_file: the configuration from `create_quant_config`: which layers may be quantized,
            and how. It is not changed.
        record_file: the file of factors to write.
        save_dir: `folder/prefix` of the ONNX models; the reports go to the same folder.
        input_data: as for `create_quant_config`.
        input_names, output_names, dynamic_axes, opset_version: as for `quantize_model`.
        strategy: "BinarySearch" (at most 2 + ceil(log2 N) evaluations for N layers, and one for
            the winner), "Greedy" (the worst layer, then the next), or an instance.
        sensitivity: "CosineSimilarity", "Mse", "Sqnr" or an instance.
        max_evaluations, max_seconds: the search ends there; the best model so far is exported,
            and `satisfied` of the result tells whether it is good enough. Seconds count
            from the end of the capture; an evaluation that has begun is not cut off.
        resume: go on where an interrupted call with the same model, configuration, evaluator and
            sensitivity has stopped. `False` starts anew.
        progress: a bar on stderr, if that is a terminal.
        recalibrate: "final": see above; "always": a calibration for each trial; "never": the
            factors of the one calibration are kept.
        report: write the report as HTML and JSON.

    Files, beside the two models and the record (`files` of the result has all paths):
    accuracy_based_auto_calibration_ranking_information.json (layers and scores, the most sensitive
    first), ..._final_config.json (`config_file` with `quant_enable` as found), ..._report.json and
    ..._report.html, `<prefix>_quant.json` (where quantization stands in the graph, what was fused,
    what is float and why) and amct_log/accuracy_based_auto_calibration_record.json in the working
    directory (each trial). If nothing satisfies, there is no new model, record or configuration.

    Raises TypeError for arguments of a wrong type and for what the evaluator must not return;
    RuntimeError for an unknown strategy or sensitivity, a missing `config_file`, an evaluator that
    is no subclass of the base or calibrates with fewer than `batch_num` batches; ValueError if
    `metric_eval(original, original)` does not satisfy; what `create_quant_config` and
    `quantize_model` raise. Nothing but the journal and the history is written then.

    Example::

        result = amct.accuracy_based_auto_calibration(
            model, Evaluator(), "config.json", "record.txt", "result/net", images
        )
        print(result.satisfied, result.rolled_back_layers)
    """
    check_types(
        "accuracy_based_auto_calibration",
        model=(model, nn.Module),
        input_names=(input_names, list, None),
        output_names=(output_names, list, None),
        dynamic_axes=(dynamic_axes, dict, None),
        report=(report, bool),
    )
    check_file_name(config_file, "config_file", empty=IsADirectoryError)
    check_file_name(record_file, "record_file")
    check_save_path(save_dir, "save_dir")
    search_by, score_by = chosen_strategy(strategy), chosen_sensitivity(sensitivity)
    if not os.path.isfile(config_file):
        raise RuntimeError(
            f"config_file {config_file!r} is missing; write it with create_quant_config"
        )
    evaluator = check_evaluator(model_evaluator)
    options = SearchOptions(max_evaluations, max_seconds, resume, progress, recalibrate)
    export = ExportOptions(input_names, output_names, dynamic_axes, opset_version)
    paths = OutputPaths.of(save_dir, record_file)
    check_distinct(config_file=config_file, **paths.all())
    for path in paths.all().values():
        check_writable(path)

    started = time.monotonic()
    copied = copy_model(model)
    if copied.training:
        logger.warning(
            "the model is in training mode: its copy is calibrated and evaluated in evaluation "
            "mode; call model.eval() first, so that the float model is evaluated alike"
        )
        copied.eval()
    weights = digest(copied)
    prepared = prepare(config_file, copied, input_data, export)
    config = read_object(config_file)
    prepared.model.requires_grad_(False)
    identity = fingerprint(weights, prepared.config, evaluator, score_by)
    journal = Journal(paths.journal, identity, resume)
    search = ModelSearch(
        model, prepared, evaluator, search_by, score_by, journal, paths.history, options
    )
    winner = search.run()

    files = {"ranking": paths.ranking, "history": paths.history}
    contents: dict[str, Content] = {paths.ranking: _ranking(search)}
    if winner is not None:
        models = _models(search, winner, paths)
        contents |= models
        contents[paths.record_file] = search.records_of(winner).dumps()
        contents[paths.final_config] = _final_config(config, winner, search)
        contents[paths.quant_info] = _dumps(describe_graph(search, winner, models, paths))
        files |= {
            **{f"{form}_model": path for form, path in paths.models.items()},
            "record_file": paths.record_file,
            "final_config": paths.final_config,
            "quant_info": paths.quant_info,
        }
    write_files(contents)
    comparison = Comparison(False, "no model was exported")
    if winner is not None:
        comparison = _compare(search, winner, input_data, paths)
    if report:
        files |= {"report_json": paths.report_json, "report_html": paths.report_html}
    if search.stopped_by:
        files["journal"] = paths.journal
    result = _result(search, winner, files, comparison, time.monotonic() - started)
    if report:
        document = describe_run(search, winner, result)
        write_files({paths.report_json: _dumps(document), paths.report_html: render(document)})
    if not search.stopped_by:
        journal.remove()
    search.progress.say(f"{result.summary}; {result.evaluations} evaluations in this run")
    return result


# ---- steps ----


def _models(search: ModelSearch, winner: Trial, paths: OutputPaths) -> dict[str, Content]:
    """The contents of the two models, from the one graph that was captured at the start."""
    prepared, records = search.prepared, search.records_of(winner)
    layers = {name: prepared.layers[name] for name in records}
    model = copy.deepcopy(prepared.model)
    balance = balance_of(records)
    balance_and_quantize(model, prepared, layers, balance)
    for name, weight in search.rounded.items():
        if name in layers:
            model.get_submodule(name).weight.copy_(weight)  # type: ignore[operator]
    return graph_files(modified_graph(prepared, model, layers, balance), records, paths.models)


def _ranking(search: ModelSearch) -> str:
    return _dumps([[name, finite(score)] for name, score in search.ranking])


def _final_config(config: dict[str, Any], winner: Trial, search: ModelSearch) -> str:
    flags = {
        name: {**config[name], "quant_enable": name in winner.quantized} for name in search.layers
    }
    return _dumps(config | flags)


def _compare(search: ModelSearch, winner: Trial, input_data: Any, paths: OutputPaths) -> Comparison:
    assert search.simulation is not None
    search.switch(winner.config)
    comparison = compare_to_onnx(search.simulation, input_data, paths.models["fake_quant"])
    if comparison.differs:
        logger.warning(
            "the model that was evaluated and %s differ by %.3g at outputs up to %.3g",
            paths.models["fake_quant"],
            comparison.largest_difference,
            comparison.largest_output,
        )
    return comparison


def _result(
    search: ModelSearch,
    winner: Trial | None,
    files: dict[str, str],
    comparison: Comparison,
    seconds: float,
) -> AutoCalibrationResult:
    evaluator = search.evaluator
    own = seconds - sum(evaluator.seconds.values())
    return AutoCalibrationResult(
        satisfied=winner is not None and winner.satisfied,
        original_metric=search.original_metric,
        final_metric=None if winner is None else winner.metric,
        loss=None if winner is None else winner.loss,
        quantized_layers=[] if winner is None else winner.quantized,
        rolled_back_layers=list(search.scores) if winner is None else winner.rolled_back,
        left_float=search.left_float,
        trials=search.trials.all,
        ranking=search.ranking,
        files=files,
        calibrations=evaluator.calibrations,
        evaluations=evaluator.evaluations,
        stopped_by=search.stopped_by,
        seconds={"total": seconds, **evaluator.seconds, "own": own},
        fidelity=comparison,
    )


def _dumps(document: Any) -> str:
    return json.dumps(document, indent=4, separators=(",", ":"), ensure_ascii=False)
