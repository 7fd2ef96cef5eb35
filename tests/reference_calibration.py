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
