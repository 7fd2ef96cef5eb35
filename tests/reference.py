"""Every formula of the package once more: slow, obvious, in numpy, for the tests to compare with.

Arithmetic is float32 where the package promises float32, one operation per line of the formula,
so that results can be compared bit for bit. Arrays come in and go out; `axis` None means one
factor for the array.
"""

from __future__ import annotations

import math

import numpy as np

FLT_EPS = np.float32(1.1920928955078125e-07)


def quant_range(num_bits):
    return -(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1


def broadcast(factor, ndim, axis):
    """`factor` shaped to multiply an array of `ndim` dimensions along `axis`."""
    shape = [1] * ndim
    if axis is not None:
        shape[axis] = -1
    return np.asarray(factor).reshape(shape)


# ---- quantization with given factors ----


def unclamped_codes(x, scale, offset, axis=None):
    x = np.asarray(x, np.float32)
    scale = broadcast(np.asarray(scale, np.float32), x.ndim, axis)
    offset = broadcast(np.asarray(offset, np.float32), x.ndim, axis)
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / scale
        return np.rint(x * inverse) + offset


def quantize(x, scale, offset, num_bits=8, axis=None):
    codes = np.clip(unclamped_codes(x, scale, offset, axis), *quant_range(num_bits))
    codes = np.where(np.isnan(codes), 0, codes)
    return codes.astype(np.int8 if num_bits <= 8 else np.int16)


def dequantize(q, scale, offset, axis=None):
    q = np.asarray(q, np.float32)
    offset = broadcast(np.asarray(offset, np.float32), q.ndim, axis)
    scale = broadcast(np.asarray(scale, np.float32), q.ndim, axis)
    return (q - offset) * scale


def fake_quantize(x, scale, offset, num_bits=8, axis=None):
    codes = np.clip(unclamped_codes(x, scale, offset, axis), *quant_range(num_bits))
    return dequantize(codes, scale, offset, axis)


def fake_quantize_grad(grad, x, scale, offset, num_bits=8, axis=None):
    qmin, qmax = quant_range(num_bits)
    codes = unclamped_codes(x, scale, offset, axis)
    return np.where((codes >= qmin) & (codes <= qmax), grad, np.float32(0))


# ---- factors of a range ----


def factors_of_range(lo, hi, num_bits, asymmetric):
    """One (scale, offset) as float32 and int."""
    qmin, qmax = (np.float32(q) for q in quant_range(num_bits))
    lo, hi = np.float32(lo), np.float32(hi)
    if asymmetric:
        lo, hi = min(lo, np.float32(0)), max(hi, np.float32(0))
        scale = (hi - lo) / (qmax - qmin)
        if scale < FLT_EPS:
            return np.float32(1), int(qmin)
        return scale, int(np.rint(qmin - lo / scale))
    scale = abs(lo) / -qmin if abs(hi) < abs(lo) else abs(hi) / qmax
    return (np.float32(1) if scale < FLT_EPS else scale), 0


def arq(weight, num_bits=8, axis=None, asymmetric=False):
    weight = np.asarray(weight, np.float32)
    if axis is None:
        rows = weight.reshape(1, -1)
    else:
        rows = np.moveaxis(weight, axis, 0)
        rows = rows.reshape(rows.shape[0], math.prod(rows.shape[1:]))
    factors = [
        factors_of_range(row.min(initial=0), row.max(initial=0), num_bits, asymmetric)
        for row in rows
    ]
    scale = np.array([s for s, _ in factors], np.float32)
    offset = np.array([o for _, o in factors], np.int32)
    return (scale[0], offset[0]) if axis is None else (scale, offset)


# ---- comparison of tensors ----


def similarity(a, b):
    """(cosine, mse, sqnr_db, max_abs) from extended precision, straight from the definitions."""
    a = np.asarray(a).astype(np.longdouble).ravel()
    b = np.asarray(b).astype(np.longdouble).ravel()
    error = a - b
    signal, noise = (a * a).sum(), (error * error).sum()
    if signal == 0:
        cosine = 1.0
    elif not b.any():
        cosine = 0.0
    else:
        cosine = 0.5 + 0.5 * (a * b).sum() / np.sqrt(signal * (b * b).sum())
    mse = noise / max(a.size, 1)
    if noise == 0:
        sqnr_db = math.inf
    elif signal == 0:
        sqnr_db = -math.inf
    else:
        sqnr_db = 10 * np.log10(signal / noise)
    return float(cosine), float(mse), float(sqnr_db), float(np.abs(error).max(initial=0))


# ---- DMQ balancing ----


def dmq_factor(act, weight, strength):
    """The factor of every channel, float32: a^s / w^(1-s), and what zeros get instead."""
    act, weight = np.asarray(act, np.float64), np.asarray(weight, np.float64)
    no_act, no_weight = act < FLT_EPS, weight < FLT_EPS
    both = ~no_act & ~no_weight
    factors = np.ones_like(act)
    if both.any():
        factors[both] = [
            math.pow(a, strength) / math.pow(w, 1 - strength)
            for a, w in zip(act[both], weight[both], strict=True)
        ]
        alone = no_act & ~no_weight
        factors[alone] = (weight * factors)[both].max() / weight[alone]
        alone = no_weight & ~no_act
        factors[alone] = act[alone] / (act / factors)[both].max()
    return factors.astype(np.float32)


def input_channel_ranges(weight, transposed, groups):
    """max |w| of every input channel of the whole layer, channel by channel."""
    weight = np.abs(np.asarray(weight, np.float64))
    if transposed:
        return np.array([channel.max() for channel in weight])
    out, per_group = weight.shape[0] // groups, weight.shape[1]
    return np.array(
        [
            weight[group * out : (group + 1) * out, j].max()
            for group in range(groups)
            for j in range(per_group)
        ]
    )
