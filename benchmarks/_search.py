"""The rows of `ifmr`, `hfmg` and `similarity` in the table of ops.py."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from _case import Case, Row, Run, Target, hard_values, require_close, require_same
from torch import Tensor
from torch.ao.quantization import HistogramObserver

from amct_pytorch.calibrators import HFMG, IFMR
from amct_pytorch.ops import fake_quantize, ifmr, similarity

LEVELS = 255  # of 8 bits, without the lowest
_ops = torch.ops.amct_pytorch

# ---- IFMR ----


def candidates_of(x: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(least, largest value, scale) of the 61 candidates; asymmetric, 8 bits."""
    rank = x.numel() - int(0.999999 * x.numel())
    high = x.topk(rank).values[-1].clamp(min=0)
    low = x.topk(rank, largest=False).values[-1].clamp(max=0)
    # Not torch.arange, whose vectors round some of them differently.
    for ratio in torch.tensor([0.7 + k * 0.01 for k in range(61)]):
        yield low, ratio * high, (ratio * high - low) / LEVELS


def eager_ifmr(x: Tensor) -> Tensor:
    """The scale of the candidate with the least mean squared error, in torch operations."""
    x = x.float()
    if not torch.isfinite(x).all():
        raise RuntimeError("x must be finite")
    losses, scales = [], []
    for low, high, scale in candidates_of(x):
        levels = torch.round(torch.clamp(x, low, high) / scale) * scale
        losses.append(torch.nn.functional.mse_loss(levels, x))
        scales.append(scale)
    return scales[int(torch.stack(losses).argmin())]


def exact_ifmr(x: Tensor) -> Tensor:
    """The same with errors and sums in float64."""
    x = x.float()
    best = (math.inf, torch.tensor(0.0))
    for low, high, scale in candidates_of(x):
        levels = torch.round(torch.clamp(x, low, high) / scale) * scale
        loss = float((levels.double() - x.double()).square().sum())
        best = min(best, (loss, scale), key=lambda candidate: candidate[0])
    return best[1]


def check_ifmr(of: str, x: Tensor, scale: Tensor) -> None:
    """The scale of the least exact loss, bit for bit; of many values a part is looked at."""
    x = x.flatten()
    whole = x.numel() <= MOST_CHECKED
    expected = exact_ifmr(x if whole else x[:MOST_CHECKED])
    require_same(f"ifmr {of}", scale if whole else ifmr(x[:MOST_CHECKED])[0], expected)


MOST_CHECKED = 2**20
NS = Target("ns", 1.5, 0.75)
SEARCH = (NS, Target("eager", 150, 300))
SEARCH_16_BITS = (Target("ns", 0.5), Target("eager", 150, 300))
SAMPLES: dict[str, tuple[Callable[[int], Tensor], tuple[Target, ...]]] = {
    "normal": (torch.randn, SEARCH),
    "ReLU": (lambda n: torch.randn(n).relu(), SEARCH),
    "float16": (lambda n: torch.randn(n).half(), SEARCH_16_BITS),
    "hard": (lambda n: hard_values(n).clamp(-200, 200) * 0.02, SEARCH),
}
MOST_EAGER = 2**22  # values beyond which the eager search takes too long to be repeated
TAKES_TURNS = 16  # batches


KEPT_PAGES = "The target is for an eager search on fresh pages, as in the row of those."
FIXED_COST = "Candidates, bounds and calls cost the same for few values as for many."


def ifmr_rows(
    elements: int, sample: str, batches: int = 1, fresh: bool = False
) -> Callable[[Run], Iterator[Row]]:
    def rows(run: Run) -> Iterator[Row]:
        draw, targets = SAMPLES[sample]
        if elements > MOST_EAGER:
            targets = tuple(target for target in targets if target.figure != "eager")
        x = draw(run.size(elements))
        of = f"{x.numel()} {sample}" + (f", {batches} batches" if batches > 1 else "")

        def streamed() -> Tensor:
            calibrator = IFMR()
            for batch in x.chunk(batches):
                calibrator.update(batch)
            return calibrator.compute()[0]

        def whole() -> Tensor:
            return ifmr(x)[0]

        check_ifmr(of, x, whole())
        require_same(f"ifmr {of}, streamed", streamed(), whole())
        candidates = {
            "ours": whole if batches == 1 else streamed,
            "peer": (lambda: torch.aminmax(x)),
            "eager": (lambda: eager_ifmr(x)) if elements <= MOST_EAGER else None,
            "limit": x.sum,
        }
        name = ("ifmr" if batches == 1 else "calibrators.IFMR") + ", fresh pages" * fresh
        why = FIXED_COST if elements // batches < 2**18 else KEPT_PAGES
        yield run.row(
            Case(name, of, x.numel(), x.element_size(), candidates, "aminmax", "sum", targets, why)
        )

    return rows


# ---- the memory of IFMR ----

STREAMED, STREAMED_BATCH = 10**8, 2**20
MEMORY = (Target("MB", 64),)


def memory_of_ifmr(elements: int) -> float:
    """By how many MB the resident memory grows at most while so many values are streamed."""

    def status(key: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1])

    batch = torch.randn(min(STREAMED_BATCH, elements))
    ifmr(batch[:1000])
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present
    before = status("VmRSS")
    calibrator = IFMR()
    for _ in range(math.ceil(elements / len(batch))):
        calibrator.update(batch.normal_())
    calibrator.compute()
    return (status("VmHWM") - before) / 1024


def memory_row(run: Run) -> Iterator[Row]:
    """In a process of its own, for memory that was used before hides what is used now."""
    elements = run.size(STREAMED)
    program = f"import json, _search; print(json.dumps(_search.memory_of_ifmr({elements})))"
    folder = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {program}"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    megabytes = json.loads(done.stdout.splitlines()[-1])
    of = f"{elements} normal, streamed"
    yield Row("calibrators.IFMR, peak memory", of, {"MB": megabytes}, targets=MEMORY)


# ---- HFMG ----

BINS, CELLS = 4096, 256
UPDATE = (Target("eager", 2, 3),)
FINISH = (Target("ms", 5, 1), Target("eager", 100))

Histogram = tuple[Tensor, Tensor, Tensor]  # least and largest value, counts


def eager_histogram(x: Tensor) -> Histogram:
    """min, max, histc."""
    low, high = x.min(), x.max()
    return low, high, torch.histc(x, BINS, float(low), float(high))


def eager_merge(old: Histogram, new: Histogram) -> Histogram:
    """`new`, whose range contains that of `old`, with the counts of `old` moved to its bins."""
    low, high, merged = new[0], new[1], new[2].clone()
    old_low, old_width, width = old[0], (old[1] - old[0]) / BINS, (high - low) / BINS
    for k, count in enumerate(old[2]):
        lower, upper = old_low + k * old_width, old_low + (k + 1) * old_width
        i = min(int((lower - low) // width), BINS - 1)
        j = min(int((upper - low) // width), BINS - 1)
        below = count
        if i != j:
            edge = low + (i + 1) * width
            below = torch.floor(count * ((edge - lower) / (upper - lower)))
        merged[i] += below
        merged[j] += count - below
    return low, high, merged


def ranges_of(counts: list[float]) -> list[tuple[int, int]]:
    """What is left of the bins, the ends with the fewest values dropped first."""
    step = max(math.ceil(sum(counts) / 100000), 1)
    left, right, found = 0, len(counts) - 1, []
    while right - left > math.ceil(len(counts) / 4):
        l, r, below, above = left, right, 0.0, 0.0  # noqa: E741
        while l < r and below < step:
            below, l = below + counts[l], l + 1  # noqa: E741
        while l < r and above < step:
            above, r = above + counts[r], r - 1
        left, right = (left, r) if right - r >= l - left else (l, right)
        found.append((left, right))
    return found


def eager_hfmg_search(counts: Tensor) -> tuple[int, int]:
    """The range with the least error of its division into CELLS, all ranges and bins at once."""
    ranges = ranges_of(counts.tolist())
    ends = torch.tensor([*ranges, (0, BINS - 1)], dtype=torch.float32)
    left, right = ends[:, :1], ends[:, 1:]
    cell = (right - left + 1) / CELLS
    begin = torch.arange(BINS) - left
    end = begin + 1
    first = torch.floor(begin / cell).clamp(0, CELLS - 1)
    last = torch.floor(end / cell).clamp(0, CELLS - 1)

    def integral(lower: Tensor, upper: Tensor) -> Tensor:
        return (upper**3 - lower**3) / 3

    in_one = integral(begin - (first + 0.5) * cell, end - (first + 0.5) * cell)
    in_two = (
        integral(begin - (first + 0.5) * cell, cell / 2)
        + (last - first - 1) * integral(-cell / 2, cell / 2)
        + integral(-cell / 2, end - (last + 0.5) * cell)
    )
    losses = (counts * torch.where(first == last, in_one, in_two)).sum(1)
    return [*ranges, (0, BINS - 1)][int(losses.argmin())]


def hfmg_rows(run: Run) -> Iterator[Row]:
    x = torch.randn(run.size(2**24))
    low, high, counts = eager_histogram(x)
    calibrator = HFMG()
    calibrator.update(x)
    state = calibrator.state_dict()
    require_same("range of hfmg", state["ranges"], torch.stack([low, high]).unsqueeze(0))
    require_same("histogram of hfmg", state["counts"], counts.long().unsqueeze(0))
    observer = HistogramObserver(bins=BINS)
    observer(x)
    candidates = {
        "ours": lambda: calibrator.update(x),
        "peer": lambda: observer(x),
        "eager": lambda: eager_histogram(x),
        "limit": lambda: (x.sum(), x.sum()),
    }
    of = f"{x.numel()} normal, {BINS} bins"
    yield run.row(
        Case("hfmg, update", of, x.numel(), 8, candidates, "HistogramObserver", "2 sums", UPDATE)
    )


def hfmg_finish(run: Run) -> Iterator[Row]:
    """The merge of two histograms and the search, whatever the number of values in them."""
    x = torch.randn(run.size(2**22))
    old, new = eager_histogram(x), eager_histogram(x * 1.1)
    states = [(torch.stack(h[:2]).unsqueeze(0), h[2].long().unsqueeze(0)) for h in (old, new)]

    def ours() -> Tensor:
        return _ops.hfmg_search(*_ops.hfmg_merge(*states[0], *states[1]), 8, True)[0]

    def eager() -> Tensor:
        low, high, counts = eager_merge(old, new)
        left, right = eager_hfmg_search(counts)
        width = (high - low) / BINS
        return ((low + (right + 1) * width).clamp(min=0) - (low + left * width).clamp(max=0)) / 255

    merged = _ops.hfmg_merge(*states[0], *states[1])[1][0]
    require_same("hfmg, merge", merged, eager_merge(old, new)[2].long())
    # The eager losses are float32 sums: near the least, a neighbour may win.
    require_close("hfmg, search", ours(), eager(), 0.01 * eager())
    candidates = {"ours": ours, "eager": eager}
    of = f"{BINS} bins, 8 bits"
    yield run.row(Case("hfmg, merge and search", of, 0, 0, candidates, targets=FINISH))


# ---- similarity ----

READ = (Target("limit", 0.85), Target("peer", 3))


def numpy_cosine(a: np.ndarray, b: np.ndarray) -> float:
    if np.all(a == 0) or np.all(b == 0):
        return float(np.all(a == 0))
    return 0.5 + 0.5 * float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))


def similarity_rows(run: Run) -> Iterator[Row]:
    a = torch.randn(run.size(2**24))
    b = fake_quantize(a, torch.tensor(0.03), torch.tensor(0, dtype=torch.int32))
    exact, ours = numpy_cosine(a.double().numpy(), b.double().numpy()), similarity(a, b)
    if abs(ours.cosine - exact) > 1e-12:
        raise SystemExit(f"similarity: cosine {ours.cosine}, numpy finds {exact}")
    candidates = {
        "ours": lambda: similarity(a, b),
        "peer": lambda: numpy_cosine(a.numpy(), b.numpy()),
        "eager": lambda: float(torch.nn.functional.cosine_similarity(a, b, 0)),
        "limit": lambda: (a.sum(), b.sum()),
    }
    of = f"{a.numel()} float32"
    yield run.row(Case("similarity", of, a.numel(), 8, candidates, "numpy", "2 sums", READ))


FRESH = [ifmr_rows(2**22, "normal", fresh=True)]
GROUPS = [
    *(ifmr_rows(elements, "normal") for elements in (10**5, 10**6, 2**22, 2**24)),
    *(ifmr_rows(2**22, sample) for sample in ("ReLU", "float16", "hard")),
    *(ifmr_rows(2**24, sample) for sample in ("ReLU", "float16")),
    ifmr_rows(10**6, "normal", TAKES_TURNS),
    ifmr_rows(2**24, "normal", TAKES_TURNS),
    memory_row,
    hfmg_rows,
    hfmg_finish,
    similarity_rows,
]
