"""The row of ops.py that says whether results have the same bits for any number of threads."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from _case import Row, Run, Target, hard_values
from torch import Tensor

from amct_pytorch.calibrators import HFMG, IFMR
from amct_pytorch.ops import arq_fake_quantize_scale, fake_quantize, quantize, ulq, ulq_scale
from amct_pytorch.ops.similarity import similarity_sums

THREADS = (1, 2, 3)
ELEMENTS = 3 * 5 * 7 * 9973  # a multiple of no chunk of a loop
_backward = torch.ops.amct_pytorch.ulq_backward
_scale_backward = torch.ops.amct_pytorch.ulq_scale_backward


def results(x: Tensor, grad: Tensor) -> dict[str, tuple[Tensor, ...]]:
    """What every op makes of x [channels, values]."""
    scale, offset = torch.tensor(0.02), torch.tensor(3, dtype=torch.int32)
    scales = torch.linspace(0.01, 0.05, len(x))
    clips = torch.tensor(2.5), torch.tensor(-1.5)
    calibrators = {"ifmr": IFMR(), "hfmg": HFMG()}
    for calibrator in calibrators.values():
        for batch in x.flatten().chunk(2):
            calibrator.update(batch)
    return {
        "fake_quantize": (fake_quantize(x, scale, offset),),
        "quantize": (quantize(x, scale, offset),),
        "ulq": ulq(x, *clips),
        "ulq_backward": _backward(grad, x, *clips, 8, False, True),
        "ulq_scale": (ulq_scale(x, scales, 8, 0),),
        "ulq_scale_backward": (_scale_backward(grad, x, scales, 8, 0, False, 1),),
        "arq": arq_fake_quantize_scale(x, 8, 0),
        "similarity": (similarity_sums(x, grad),),
        **{name: calibrator.compute() for name, calibrator in calibrators.items()},
    }


def determinism(run: Run) -> Iterator[Row]:
    x = (hard_values(run.size(ELEMENTS) // 15 * 15) * 0.02).view(15, -1)
    grad, threads = torch.randn(x.shape), torch.get_num_threads()
    found = []
    for count in THREADS:
        torch.set_num_threads(count)
        found.append(results(x, grad))
    torch.set_num_threads(threads)
    differing = [
        name
        for name, expected in found[0].items()
        if not all(same(expected, others[name]) for others in found[1:])
    ]
    of = f"{len(found[0])} results, {THREADS} threads"
    figures, why = {"differing": float(len(differing))}, f"They are {', '.join(differing)}."
    yield Row("same bits", of, figures, targets=(Target("differing", 0),), why=why)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    pairs = zip(a, b, strict=True)
    return all(
        torch.equal(s.flatten().view(torch.uint8), t.flatten().view(torch.uint8)) for s, t in pairs
    )


GROUPS = [determinism]
