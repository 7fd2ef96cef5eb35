"""Documents of the report: a small search, one of three hundred layers, and one without values."""

import math


def layer(
    name, kind, rank, cosine, *, state="quantized", reason="the metric holds with it", **more
):
    """A layer of eight channels; its SQNR is what the cosine amounts to."""
    weight = [8, 1, 3, 3] if kind == "Conv2d" else [10, 486]
    sqnr = -10 * math.log10(2 * (1 - cosine)) if cosine < 1 else None
    return {
        "name": name,
        "type": kind,
        "state": state,
        "reason": reason,
        "rank": rank,
        "score": cosine,
        "weight_shape": weight,
        "output_shape": [32, 8, 8, 8],
        "parameters": math.prod(weight) + weight[0],
        "macs": 64 * math.prod(weight),
        "act_bits": 8,
        "wts_bits": 8,
        "scale_d": 0.0123456,
        "offset_d": -128,
        "scale_w": [0.00112, 0.00431],
        "channels": weight[0],
        "cosine": cosine,
        "sqnr_db": sqnr,
        "mse": 2.5e-5,
        "max_abs": 0.0213,
        "clipping_share": 0.125,
        "rounding_share": 0.875,
        "weight_sqnr_db": 44.71,
        **more,
    }


def trial(index, kind, rolled_back, quantized, metric, satisfied, loss, **more):
    return {
        "index": index,
        "kind": kind,
        "rolled_back": rolled_back,
        "quantized": quantized,
        "metric": metric,
        "satisfied": satisfied,
        "loss": loss,
        "seconds": 1.3,
        "recalibrated": kind != "search",
        "resumed": False,
        **more,
    }


def digits():
    """Seven layers; the search rolls one of them back."""
    return {
        "format": 1,
        "tool": {"name": "amct_pytorch", "version": "0.1.0", "torch": "2.13.0"},
        "created": "2026-11-21T06:00:00+00:00",
        "model": {"class": "DigitsNet", "parameters": 12345, "quantizable_layers": 7},
        "outcome": {
            "satisfied": True,
            "stopped_by": None,
            "summary": "6 of 7 layers are quantized; 1 is rolled back to float, "
            "because the metric falls too far with it.",
            "original_metric": 0.98,
            "final_metric": 0.975,
            "loss": 0.005,
            "quantized": 6,
            "rolled_back": 1,
            "left_float": 0,
            "macs": {"total": 1_000_000, "quantized": 900_000},
            "weight_bytes": {"float": 49_380, "deploy": 13_020},
        },
        "settings": {
            "evaluator": "digits.accuracy.Evaluator",
            "strategy": "BinarySearchStrategy",
            "sensitivity": "CosineSimilaritySensitivity",
            "higher_score_is_better": True,
            "recalibrate": "final",
            "max_evaluations": None,
            "max_seconds": None,
            "batch_num": 2,
        },
        "work": {
            "evaluations": 5,
            "planned_evaluations": 6,
            "calibrations": 2,
            "resumed": 1,
            "seconds": {"total": 12.0, "evaluate": 8.0, "calibration": 1.0, "own": 3.0},
        },
        "fidelity": {
            "checked": True,
            "largest_difference": 0.0,
            "note": "torch simulation against ONNX Runtime on input_data",
        },
        "layers": [
            layer("stem.0", "Conv2d", 3, 0.99981234),
            layer("left", "Conv2d", 4, 0.99995),
            layer("right", "Conv2d", 6, 0.999991),
            layer(
                "depthwise",
                "Conv2d",
                1,
                0.9713,
                state="rolled back",
                reason="without it in float the metric is 0.9, a loss of 0.08",
                clipping_share=0.7,
                rounding_share=0.3,
            ),
            layer("up", "ConvTranspose2d", 2, 0.9988),
            layer("pool", "AvgPool2d", 7, 0.9999992, weight_shape=None, scale_w=None),
            layer("fc", "Linear", 5, 0.99997),
        ],
        "trials": [
            trial(1, "full", [], 7, 0.90, False, 0.08),
            trial(2, "search", ["depthwise", "up", "stem.0"], 4, 0.979, True, 0.001),
            trial(3, "search", ["depthwise", "up"], 5, 0.9775, True, 0.0025, resumed=True),
            trial(4, "search", ["depthwise"], 6, 0.9755, True, 0.0045),
            trial(5, "final", ["depthwise"], 6, 0.975, True, 0.005),
        ],
        "files": {
            "fake_quant_model": "outputs/digits_fake_quant_model.onnx",
            "deploy_model": "outputs/digits_deploy_model.onnx",
            "report": "outputs/digits_report.html",
        },
    }


def deep(count=300):
    """A deep model whose metric is a dict, and whose search hit its limit."""
    document = digits()
    states = ["rolled back"] * 40 + ["quantized"] * (count - 60) + ["left float"] * 15
    states += ["disabled"] * 5
    document["layers"] = [
        layer(
            f"backbone.stages.{i % 4}.blocks.{i // 4}.mlp.projection",
            "Conv2d" if i % 3 else "Linear",
            rank + 1 if rank < count - 20 else None,
            1 - 10 ** (-1.2 - 6 * rank / count) if rank < count - 20 else 1.0,
            state=states[rank],
        )
        for i in range(count)
        for rank in [i * 7 % count]
    ]
    for item in document["layers"]:
        if item["rank"] is None:
            item["score"] = None
    harmful = [item["name"] for item in document["layers"] if item["state"] == "rolled back"]
    document["trials"] = [
        trial(
            i,
            "full" if i == 1 else "final" if i == 30 else "search",
            harmful[: 40 * (i - 1) // 29],
            count - 20 - 40 * (i - 1) // 29,
            {"top1": 0.7612 - 0.05 / i, "top5": 0.93, "per_class": [0.5] * 10},
            i % 3 == 0,
            0.05 / i,
        )
        for i in range(1, 31)
    ]
    document["model"] = {"class": "Deep", "parameters": 86_567_656, "quantizable_layers": count}
    document["outcome"] |= {
        "satisfied": False,
        "stopped_by": "max_evaluations",
        "summary": "240 of 300 layers are quantized; the metric does not hold yet.",
        "original_metric": {"top1": 0.7612, "top5": 0.9312, "per_class": [0.5] * 10},
        "final_metric": document["trials"][-1]["metric"],
        "quantized": count - 60,
        "rolled_back": 40,
        "left_float": 20,
        "macs": {"total": 17_600_000_000, "quantized": 13_100_000_000},
        "weight_bytes": {"float": 346_270_624, "deploy": 121_400_000},
    }
    document["work"]["seconds"] = {
        "total": 7384.2,
        "evaluate": 7000.0,
        "calibration": 300.1,
        "own": 84.1,
    }
    return document


def nothing(document):
    """`document` with None for every value; its dicts stay, and its lists of dicts."""
    match document:
        case dict():
            return {key: nothing(value) for key, value in document.items()}
        case [dict(), *_]:
            return [nothing(value) for value in document]
        case _:
            return None


def empty():
    """A document of which every section is unknown."""
    return dict.fromkeys(digits())
