"""IFMR and HFMG transcribed slowly and plainly, to compare the ops against."""

import math

import torch

FLT_EPS = torch.finfo(torch.float32).eps

# ---- IFMR ----


def ifmr_range(x, max_percentile=0.999999, min_percentile=0.999999):
    """[lo, hi] of all values of x, as 0-d float32 tensors."""
    x, n = x.float().flatten(), x.numel()
    zero = torch.tensor(0.0)

    def rank(percentile):
        return 1 if 1 - percentile < FLT_EPS else n - int(percentile * n)

    hi = torch.max(zero, x.topk(rank(max_percentile)).values[-1])
    lo = torch.min(zero, x.topk(rank(min_percentile), largest=False).values[-1])
    return lo, hi


def ifmr_candidates(lo, hi, num_bits=8, asymmetric=True, search_range=(0.7, 1.3), search_step=0.01):
    """(clip_min, clip_max, scale) of every candidate, 0-d float32 tensors."""
    start, end = search_range
    count = math.ceil((end - start) / search_step)
    ratios = [torch.tensor(start + i * search_step, dtype=torch.float32) for i in range(count)]
    candidates = []
    for ratio in ratios:
        if asymmetric:
            clip_min, clip_max = lo, ratio * hi
            scale = (clip_max - clip_min) / (2**num_bits - 1)
        else:
            clip_max = ratio * torch.max(hi.abs(), lo.abs())
            clip_min = -clip_max
            levels = 2 ** (num_bits - 1) - (0 if hi.abs() < lo.abs() else 1)
            scale = clip_max / levels
        candidates.append((clip_min, clip_max, scale if scale >= FLT_EPS else torch.tensor(1.0)))
    return candidates


def ifmr_losses(x, candidates):
    """The loss of every candidate: levels in float32, errors and their sum in float64.

    A candidate whose range overflows float32 is out of the race.
    """
    x = x.float().flatten()
    losses = []
    for clip_min, clip_max, scale in candidates:
        if torch.isinf(scale):
            losses.append(torch.tensor(math.inf, dtype=torch.float64))
            continue
        level = torch.round(torch.clamp(x, clip_min, clip_max) / scale) * scale
        losses.append(((level.double() - x.double()) ** 2).sum())
    return torch.stack(losses)


def ifmr_factors(candidate, num_bits, asymmetric):
    """(scale, offset) of a candidate as Python numbers."""
    clip_min, _, scale = candidate
    offset = -torch.round(clip_min / scale) - 2 ** (num_bits - 1) if asymmetric else 0
    return scale.item(), int(offset)


def ifmr(x, num_bits=8, *, asymmetric=True, max_percentile=0.999999, min_percentile=0.999999,
         search_range=(0.7, 1.3), search_step=0.01):  # fmt: skip
    """(scale, offset) of the least float64 loss."""
    lo, hi = ifmr_range(x, max_percentile, min_percentile)
    candidates = ifmr_candidates(lo, hi, num_bits, asymmetric, search_range, search_step)
    best = int(torch.argmin(ifmr_losses(x, candidates)))
    return ifmr_factors(candidates[best], num_bits, asymmetric)


def ifmr_eager(x, num_bits=8, asymmetric=True):
    """The search as published, in float32 torch operations throughout; default options."""
    x = x.float().flatten()
    lo, hi = ifmr_range(x)
    best_loss, best_scale = None, None
    for ratio in torch.arange(0.7, 1.3, 0.01):
        if asymmetric:
            clip_min, clip_max = lo, ratio * hi
            scale = (clip_max - clip_min) / (2**num_bits - 1)
        else:
            clip_max = ratio * torch.max(hi.abs(), lo.abs())
            clip_min = -clip_max
            scale = clip_max / (2 ** (num_bits - 1) - (0 if hi.abs() < lo.abs() else 1))
        if scale < FLT_EPS:
            scale = torch.tensor(1.0)
        quantized = torch.round(torch.clamp(x, clip_min, clip_max) / scale) * scale
        loss = torch.nn.functional.mse_loss(quantized, x)
        if best_loss is None or loss < best_loss:
            best_loss, best_scale = loss, scale
    return ifmr_factors((lo, None, best_scale), num_bits, asymmetric)


# ---- examples ----


def _student_t3(n, random):
    z = torch.randn(4, n, generator=random)
    return z[0] / ((z[1:] ** 2).sum(0) / 3).sqrt()


DISTRIBUTIONS = {
    "normal": lambda n, random: torch.randn(n, generator=random),
    "shifted": lambda n, random: torch.randn(n, generator=random) * 0.3 - 1.5,
    "laplace": lambda n, random: (
        torch.randn(n, generator=random) * torch.empty(n).exponential_(generator=random).sqrt()
    ),
    "relu": lambda n, random: torch.randn(n, generator=random).relu(),
    "student_t3": _student_t3,
    "atoms": lambda n, random: torch.randint(-90, 120, (n,), generator=random) / 37,
    "binary": lambda n, random: torch.randint(0, 2, (n,), generator=random).float(),
    "outlier": lambda n, random: torch.cat(
        [torch.randn(n - 1, generator=random), torch.tensor([50.0])]
    ),
    "tiny": lambda n, random: torch.randn(n, generator=random) * 1e-8,
    "small": lambda n, random: torch.randn(n, generator=random) * 1e-5,
    "huge": lambda n, random: torch.randn(n, generator=random) * 1e36,
}


def example(name, n, seed=0):
    """n float32 values of a distribution, the same for the same seed."""
    return DISTRIBUTIONS[name](n, torch.Generator().manual_seed(seed))


# ---- HFMG ----


def hfmg_histogram(x, num_of_bins):
    """(lo, hi, counts) of one batch: float32 ends, a list of integers."""
    x = x.float().flatten()
    lo, hi = x.min(), x.max()
    return lo, hi, torch.histc(x, num_of_bins, lo.item(), hi.item()).long().tolist()


def hfmg_merged(old, x):
    """The histogram `old` after another batch."""
    lo, hi, counts = old
    x, n = x.float().flatten(), len(counts)
    new_lo, new_hi = torch.min(lo, x.min()), torch.max(hi, x.max())
    merged = torch.histc(x, n, new_lo.item(), new_hi.item()).long().tolist()
    if abs(new_lo - lo) <= FLT_EPS and abs(new_hi - hi) <= FLT_EPS:
        return new_lo, new_hi, [a + b for a, b in zip(counts, merged, strict=True)]
    width, new_width = (hi - lo) / n, (new_hi - new_lo) / n
    for k, count in enumerate(counts):
        lower, upper = lo + k * width, lo + (k + 1) * width
        i = min(int((lower - new_lo) // new_width), n - 1)
        j = min(int((upper - new_lo) // new_width), n - 1)
        low = count
        if i != j:
            edge = new_lo + (i + 1) * new_width
            low = int(count * ((edge - lower) / (upper - lower)))
        merged[i] += low
        merged[j] += count - low
    return new_lo, new_hi, merged


def hfmg_ranges(counts):
    """The published candidates (L, R)."""
    n = len(counts)
    step = max(math.ceil(sum(counts) / 100000), 1)
    left, right, ranges = 0, n - 1, []
    while right - left > math.ceil(n / 4):
        l, r, left_sum, right_sum = left, right, 0, 0  # noqa: E741
        while l < r and left_sum < step:
            left_sum += counts[l]
            l += 1  # noqa: E741
        while l < r and right_sum < step:
            right_sum += counts[r]
            r -= 1
        if right - r >= l - left:
            right = r
        else:
            left = l
        ranges.append((left, right))
    return ranges


def hfmg_losses(counts, ranges, num_bits, dtype=torch.float64):
    """The published loss of every range, bin by bin, in units of the bin width."""
    n, cells = len(counts), 2**num_bits
    density = torch.tensor(counts, dtype=dtype)
    bins = torch.arange(n, dtype=dtype)
    losses = []
    for left, right in ranges:
        cell = torch.tensor((right - left + 1) / cells, dtype=dtype)
        begin, end = bins - left, bins - left + 1
        p = torch.floor(begin / cell).clamp(0, cells - 1)
        q = torch.floor(end / cell).clamp(0, cells - 1)
        first, last = p * cell + cell / 2, q * cell + cell / 2

        def norm(a, b):
            return (b * b * b - a * a * a) / 3

        same = norm(begin - first, end - first)
        split = (
            norm(begin - first, cell / 2)
            + (q - p - 1) * norm(-cell / 2, cell / 2)
            + norm(-cell / 2, end - last)
        )
        losses.append((density * torch.where(p == q, same, split)).sum())
    return torch.stack(losses)


def hfmg_factors(lo, hi, num_bits, asymmetric):
    """(scale, offset) of the range [lo, hi], widened to contain zero, as Python numbers."""
    zero = torch.tensor(0.0)
    qmin = -(2 ** (num_bits - 1))
    if not asymmetric:
        scale = lo.abs() / -qmin if hi.abs() < lo.abs() else hi.abs() / (-qmin - 1)
        return (1.0 if scale < FLT_EPS else scale.item()), 0
    lo, hi = torch.min(lo, zero), torch.max(hi, zero)
    scale = (hi - lo) / (2**num_bits - 1)
    return (1.0, qmin) if scale < FLT_EPS else (scale.item(), int(torch.round(qmin - lo / scale)))


def _hfmg_factors_of_bins(histogram, left, right, num_bits, asymmetric):
    lo, hi, counts = histogram
    end = lo + len(counts) * ((hi - lo) / len(counts))
    width = (end - lo) / len(counts)
    return hfmg_factors(lo + left * width, lo + (right + 1) * width, num_bits, asymmetric)


def hfmg_search(histogram, num_bits=8, asymmetric=True):
    """(scale, offset) of the least float64 loss, the full range being the last candidate."""
    lo, hi, counts = histogram
    if lo == hi:
        return hfmg_factors(lo, hi, num_bits, asymmetric)
    ranges = [*hfmg_ranges(counts), (0, len(counts) - 1)]
    left, right = ranges[int(torch.argmin(hfmg_losses(counts, ranges, num_bits)))]
    return _hfmg_factors_of_bins(histogram, left, right, num_bits, asymmetric)


def hfmg(x, num_bits=8, *, asymmetric=True, num_of_bins=4096):
    """(scale, offset) of one batch."""
    return hfmg_search(hfmg_histogram(x, num_of_bins), num_bits, asymmetric)


def hfmg_published(x, num_bits=8, asymmetric=True, num_of_bins=4096):
    """The search as published: float32 losses, and the full range is no candidate."""
    histogram = hfmg_histogram(x, num_of_bins)
    ranges = hfmg_ranges(histogram[2])
    losses = hfmg_losses(histogram[2], ranges, num_bits, torch.float32)
    left, right = ranges[int(torch.argmin(losses))]
    return _hfmg_factors_of_bins(histogram, left, right, num_bits, asymmetric)
