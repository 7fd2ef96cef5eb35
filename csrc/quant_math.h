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

// A NaN passes through: both comparisons are false.
AMCT_HD float clamp(float v, float lo, float hi) {
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

}  // namespace amct
