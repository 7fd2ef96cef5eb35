"""AdaRound in numpy, written from its formulas: the scale by divergence, and soft rounding."""

import numpy as np

BINS, WINDOWS, SMOOTHING = 512, 20, 1e-4


def kl_scale(values, num_bits):
    """The scale of one row of weights."""
    values = np.asarray(values, np.float32).ravel()
    largest = float(np.abs(values).max())
    if largest == 0:
        return np.float32(1)
    positions = np.floor((values.astype(np.float64) + largest) * (BINS / (2 * largest)))
    counts = np.bincount(np.clip(positions, 0, BINS - 1).astype(int), minlength=BINS)
    divergences = [_divergence(counts.astype(float), i, 2**num_bits - 1) for i in range(WINDOWS)]
    threshold = largest - int(np.argmin(divergences)) * 2 * largest / BINS
    return np.float32(threshold / 2 ** (num_bits - 1))


def _divergence(counts, left_off, groups):
    window = counts[left_off : BINS - left_off]
    p = window.copy()
    p[0] += counts[:left_off].sum()
    p[-1] += counts[BINS - left_off :].sum()
    q = np.zeros_like(p)
    for j in range(groups):
        begin, end = (-(-k * len(window) // groups) for k in (j, j + 1))
        filled = p[begin:end] != 0
        if filled.any():
            q[begin:end][filled] = window[begin:end].sum() / filled.sum()
    p, q = _smoothed(p), _smoothed(q)
    if q is None:
        return np.inf
    p, q = p / p.sum(), q / q.sum()
    some = p > 0
    return (p[some] * np.log(p[some] / q[some])).sum()


def _smoothed(bins):
    zeros = bins == 0
    if zeros.all():
        return None
    added = SMOOTHING * zeros.sum() / (~zeros).sum()
    return bins if added >= 1 else bins + np.where(zeros, SMOOTHING, added)


def up(alpha):
    """h(alpha)"""
    return np.clip(1.2 / (1 + np.exp(-np.asarray(alpha, np.float64))) - 0.1, 0, 1)


def soft(weight, alpha, scale, num_bits):
    """Arrays of one shape, or to be broadcast."""
    half = 2 ** (num_bits - 1)
    return np.clip(np.floor(weight / scale) + up(alpha), -half, half - 1) * scale


def undecided(alpha, beta):
    return (1 - np.abs(2 * up(alpha) - 1) ** beta).sum()
