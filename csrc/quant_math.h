// quant_math.h - the scalar formulas of quantization, for host and device.
//
// No torch header is included here: the file is the core that a plain C++
// program, the CPU kernels and the CUDA kernels share, so that a formula is
// written once. Build with -ffp-contract=off (nvcc: --fmad=false): every
// operation below is meant to be rounded on its own.
//
// Symbols: b = num_bits, qmin = -2^(b-1), qmax = 2^(b-1) - 1.
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define AMCT_HD __host__ __device__ __forceinline__
#else
#define AMCT_HD inline __attribute__((always_inline))
#endif

namespace amct {

// Scales below the float32 epsilon are taken for those of an empty range.
constexpr float kScaleFloor = 1.1920928955078125e-07f;

struct QuantRange {
  float min, max;
};

AMCT_HD QuantRange quant_range(int64_t num_bits) {
  const float half = static_cast<float>(int64_t{1} << (num_bits - 1));
  return {-half, half - 1.0f};
}

// Round half to even.
AMCT_HD float rint_even(float v) {
#if defined(__CUDA_ARCH__)
  return rintf(v);
#else
  return __builtin_rintf(v);
#endif
}

AMCT_HD double rint_even(double v) {
#if defined(__CUDA_ARCH__)
  return rint(v);
#else
  return __builtin_rint(v);
#endif
}

// A NaN passes through: both comparisons are false.
template <class T>
AMCT_HD T clamp(T v, T lo, T hi) {
  v = v < lo ? lo : v;
  return v > hi ? hi : v;
}

// Factors of one channel as kernels use them.
struct Factors {
  float scale, inverse, offset;
};

AMCT_HD Factors make_factors(float scale, int32_t offset) {
  return {scale, 1.0f / scale, static_cast<float>(offset)};
}

// rint(x * fl(1/scale)) + offset, not clamped: what AscendQuant computes before saturation.
AMCT_HD float unclamped_code(float x, const Factors& f) {
  return rint_even(x * f.inverse) + f.offset;
}

AMCT_HD float quantize(float x, const Factors& f, const QuantRange& r) {
  return clamp(unclamped_code(x, f), r.min, r.max);
}

AMCT_HD float dequantize(float q, const Factors& f) { return (q - f.offset) * f.scale; }

AMCT_HD float fake_quantize(float x, const Factors& f, const QuantRange& r) {
  return dequantize(quantize(x, f, r), f);
}

// Straight-through estimator: the gradient passes where the code did not saturate.
AMCT_HD float fake_quantize_grad(float x, float grad, const Factors& f, const QuantRange& r) {
  const float q = unclamped_code(x, f);
  return (q >= r.min && q <= r.max) ? grad : 0.0f;
}

struct ScaleOffset {
  float scale;
  int32_t offset;
};

// Factors of the range [lo, hi], which is widened to contain zero.
//   asymmetric: s = (hi - lo) / (2^b - 1),  o = rint(-2^(b-1) - lo / s)
//   symmetric : s = |lo| / 2^(b-1) when |lo| > |hi|, else |hi| / (2^(b-1) - 1);  o = 0
// A scale under kScaleFloor becomes 1, with offset -2^(b-1) (asymmetric) or 0.
AMCT_HD ScaleOffset factors_of_range(float lo, float hi, int64_t num_bits, bool asymmetric) {
  const QuantRange r = quant_range(num_bits);
  if (asymmetric) {
    hi = hi > 0.0f ? hi : 0.0f;
    lo = lo < 0.0f ? lo : 0.0f;
    const float scale = (hi - lo) / (r.max - r.min);
    if (scale < kScaleFloor) return {1.0f, static_cast<int32_t>(r.min)};
    return {scale, static_cast<int32_t>(rint_even(r.min - lo / scale))};
  }
  const float abs_lo = lo < 0.0f ? -lo : lo;
  const float abs_hi = hi < 0.0f ? -hi : hi;
  const float scale = abs_hi < abs_lo ? abs_lo / -r.min : abs_hi / r.max;
  return {scale < kScaleFloor ? 1.0f : scale, 0};
}

// ---- training: ranges and scales that are learnt ----

// What training computes: division where AscendQuant multiplies, the offset before rounding.
AMCT_HD float divide_quantize(float x, float scale, float offset, const QuantRange& r) {
  return (clamp(rint_even(x / scale + offset), r.min, r.max) - offset) * scale;
}

// What rounding to a multiple of the scale adds, in scales: |..| <= 1/2.
AMCT_HD float rounding_error(float x, float scale) {
  const float t = x / scale;
  return rint_even(t) - t;
}

struct Clips {
  float max, min;
  AMCT_HD float width() const { return max - min; }  // NaN or infinite where an end is
};

// The pair to quantize with: max >= 0 >= min. A pair that is not finite, inverted or narrower
// than kScaleFloor * max(1, |max|, |min|) gives way to the previous one, or to (0, 0).
AMCT_HD Clips guard_clips(Clips clips, Clips previous, bool fixed_min) {
  if (fixed_min) clips.min = previous.min = 0.0f;
  const float width = clips.width();
  const float above = clips.max < 0.0f ? -clips.max : clips.max;
  const float below = clips.min < 0.0f ? -clips.min : clips.min;
  float largest = above > below ? above : below;
  largest = largest > 1.0f ? largest : 1.0f;
  if (!(width > kScaleFloor * largest && width < HUGE_VALF)) {
    const float w = previous.width();
    clips = -HUGE_VALF < w && w < HUGE_VALF ? previous : Clips{0.0f, 0.0f};
  }
  return {clips.max > 0.0f ? clips.max : 0.0f, clips.min < 0.0f ? clips.min : 0.0f};
}

// The gradients of divide_quantize with the factors of a pair of clips, straight through the
// rounding. e = rounding_error of an element inside the range, of the clip for one that is not.
//   asymmetric: dmax = sum g (e / N + [above]),  dmin = sum g ([below] - e / N),  N = qmax - qmin
//   symmetric : the end that makes the scale has sum g d / its code,
//               d = qmax above, qmin below, e inside; the other end has none
struct UlqRange {
  float scale, low, high;  // an element is inside from low to high
};

AMCT_HD UlqRange ulq_range(const ScaleOffset& f, const QuantRange& r) {
  const float offset = static_cast<float>(f.offset);
  return {f.scale, f.scale * (r.min - offset), f.scale * (r.max - offset)};
}

// The sums that the gradients of the clips are made of: g e inside, g above, g below.
constexpr int kUlqSums = 3;

// What x adds to the sums; returns its own gradient. Selects, not branches, so that a loop
// becomes vectors; an infinite x has no rounding error and is outside.
AMCT_HD float ulq_terms(float x, float grad, const UlqRange& range, double (&terms)[kUlqSums]) {
  const bool above = x > range.high, below = x < range.low, inside = !(above | below);
  const float error = rounding_error(x, range.scale);
  const float passed = inside ? grad : 0.0f, e = inside ? error : 0.0f;
  terms[0] = static_cast<double>(passed) * e;
  terms[1] = above ? grad : 0.0f;
  terms[2] = below ? grad : 0.0f;
  return passed;
}

struct ClipGradients {
  double max, min;
};

AMCT_HD ClipGradients ulq_clip_gradients(const double (&sums)[kUlqSums], Clips clips,
                                         const ScaleOffset& f, const QuantRange& r,
                                         bool asymmetric) {
  const double inside = sums[0], above = sums[1], below = sums[2];
  if (!asymmetric) {
    const double all = inside + above * r.max + below * r.min;
    return clips.max < -clips.min ? ClipGradients{0.0, all / r.min}
                                  : ClipGradients{all / r.max, 0.0};
  }
  const double errors = inside + above * rounding_error(clips.max, f.scale) +
                        below * rounding_error(clips.min, f.scale);
  const double steps = r.max - r.min;
  return {errors / steps + above, below - errors / steps};
}

// A learnt scale, or its reciprocal, kept positive; a NaN stays.
AMCT_HD float positive_scale(float scale, bool reciprocal) {
  const float s = reciprocal ? 1.0f / scale : scale;
  return s < kScaleFloor ? kScaleFloor : s;
}

// d divide_quantize(x, scale, 0) / d scale, straight through the rounding.
AMCT_HD float scale_slope(float x, float scale, const QuantRange& r) {
  if (x > scale * r.max) return r.max;
  if (x < scale * r.min) return r.min;
  return rounding_error(x, scale);
}

// ---- AdaRound: up or down is learnt for each weight ----

// A sigmoid, stretched beyond 0 and 1 so that it reaches both (Louizos et al., ICLR 2018).
constexpr float kStretch = 1.2f, kStretchBelow = 0.1f;

// How much of a step is added to a weight rounded down, and the slope of that in `a`.
struct Rounding {
  float up, slope;
};

AMCT_HD Rounding ada_rounding(float a) {
  const float sigmoid = 1.0f / (1.0f + expf(-a));
  const float up = sigmoid * kStretch - kStretchBelow;
  const bool learns = up > 0.0f && up < 1.0f;
  return {clamp(up, 0.0f, 1.0f), learns ? kStretch * sigmoid * (1.0f - sigmoid) : 0.0f};
}

// The `a` with which the soft rounding of a weight is the weight itself.
AMCT_HD float ada_start(float x, float scale) {
  const float t = x / scale;
  return -logf(kStretch / (t - floorf(t) + kStretchBelow) - 1.0f);
}

AMCT_HD float ada_code(float x, float scale, float up) { return floorf(x / scale) + up; }

// 1 - |2 up - 1|^beta: 0 where a weight is decided, 1 where it is halfway.
AMCT_HD float ada_undecided(float a, float beta) {
  return 1.0f - powf(fabsf(2.0f * ada_rounding(a).up - 1.0f), beta);
}

AMCT_HD float ada_undecided_slope(float a, float beta) {
  const Rounding rounding = ada_rounding(a);
  const float side = 2.0f * rounding.up - 1.0f;
  if (side == 0.0f || rounding.slope == 0.0f) return 0.0f;
  const float steep = 2.0f * beta * powf(fabsf(side), beta - 1.0f) * rounding.slope;
  return side > 0.0f ? -steep : steep;
}

// ---- the 16-bit shift of an accumulator ----

constexpr int kShifts = 16;  // shifts by 1..16 bits

// The int32 that an accumulator holds for the value x, as the number it is.
AMCT_HD double accumulator_of(float x, float deq_scale) {
  return clamp(rint_even(static_cast<double>(x) / deq_scale), -2147483648.0, 2147483647.0);
}

// The square of what is lost where `accumulator` is stored as an int16, shifted by n bits.
AMCT_HD double shift_error(double accumulator, int n) {
  const double unit = static_cast<double>(int64_t{1} << n);
  const double kept = clamp(floor(accumulator * (1.0 / unit)), -32768.0, 32767.0);
  const double lost = accumulator - kept * unit;
  return lost * lost;
}

// ---- DMQ: range moved from the channels of an activation into the weight ----

// Strengths: more than these leave the range where it was, or move all of it.
constexpr double kDmqWeakest = 0.2, kDmqStrongest = 0.8;

AMCT_HD bool is_zero_range(double largest) { return largest < kScaleFloor; }

// a^s / w^(1-s), for magnitudes that are not zero.
AMCT_HD double dmq_balance(double act, double weight, double strength) {
  return pow(act, strength) / pow(weight, 1.0 - strength);
}

// The largest magnitudes that are left when the channels with both have been balanced.
struct DmqPeaks {
  double act = 0.0, weight = 0.0;
  AMCT_HD void extend(double a, double w, double strength) {
    if (is_zero_range(a) || is_zero_range(w)) return;
    const double f = dmq_balance(a, w, strength);
    act = act < a / f ? a / f : act;
    weight = weight < w * f ? w * f : weight;
  }
};

// By what a channel of the weight is multiplied and one of the activation divided. Where one of
// the two is zero the other is brought to the peak; 1 where both are, and where no channel has
// both: there is nothing to balance.
AMCT_HD double dmq_factor_of(double act, double weight, double strength, const DmqPeaks& peaks) {
  if (peaks.act == 0.0) return 1.0;
  if (is_zero_range(weight)) return is_zero_range(act) ? 1.0 : act / peaks.act;
  if (is_zero_range(act)) return peaks.weight / weight;
  return dmq_balance(act, weight, strength);
}

}  // namespace amct
