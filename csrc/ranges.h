// ranges.h - the range of every channel of a tensor, for CPU and CUDA.
//
//   ranges(x, shape, in, f)   f(c, lo, hi) once for every channel c
//
// lo = min(0, elements of c) and hi = max(0, elements of c): zero is always part of a
// range to be quantized, and an empty channel has the range [0, 0].
//
// Values are compared as integers (order_key), which makes the result independent of the
// order of the elements and gives NaN a place: beyond the infinities. A channel with a
// non-finite element therefore has a non-finite lo or hi.
#pragma once
#include <cstring>

#include "loops.h"

namespace amct {

// Orders the bit patterns of float32 as the values: -NaN < -inf < ... < -0 < +0 < ... < NaN.
AMCT_HD int32_t order_key(float v) {
  int32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

AMCT_HD float value_of_key(int32_t key) {
  const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
  float v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

constexpr int32_t kZeroKey = 0;  // order_key(0.0f), which lets a memory of zeros start a range

#if !defined(USE_CUDA)

// Extends [lo, hi] by n elements of one channel.
inline AMCT_CLONES void extend_range(const float* x, int64_t n, int32_t& lo, int32_t& hi) {
  int32_t least = lo, greatest = hi;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = order_key(x[i]);
    least = std::min(least, key);
    greatest = std::max(greatest, key);
  }
  lo = least;
  hi = greatest;
}

// Extends the ranges of n consecutive channels by one element each.
inline AMCT_CLONES void extend_ranges(const float* x, int64_t n, int32_t* lo, int32_t* hi) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = order_key(x[i]);
    lo[i] = std::min(lo[i], key);
    hi[i] = std::max(hi[i], key);
  }
}

template <class In, class F>
void ranges(const Tensor&, const Shape s, const In* in, const F& f) {
  const int64_t jobs =
      std::clamp<int64_t>((s.numel() + kGrain - 1) / kGrain, 1, torch::stable::get_num_threads());
  std::vector<int32_t> keys(static_cast<size_t>(jobs * 2 * s.channels), kZeroKey);
  torch::stable::parallel_for(0, jobs, 1, [&](int64_t first, int64_t last) {
    for (int64_t job = first; job < last; ++job) {
      int32_t* lo = keys.data() + job * 2 * s.channels;
      int32_t* hi = lo + s.channels;
      const int64_t end = s.numel() * (job + 1) / jobs;
      for (int64_t i = s.numel() * job / jobs, n; i < end; i += n) {
        const int64_t row = i / s.inner, c = s.channel_of(row), width = s.width();
        n = std::min(end, s.inner == 1 ? i + width - i % width : (row + 1) * s.inner) - i;
        const float* values;
        float read[std::is_same_v<In, float> ? 1 : kBlock];
        if constexpr (std::is_same_v<In, float>) {
          values = in + i;
        } else {
          n = std::min<int64_t>(n, kBlock);
          widen(in + i, read, static_cast<int>(n));
          values = read;
        }
        if (s.inner == 1 && width > 1) {
          extend_ranges(values, n, lo + c, hi + c);
        } else {
          extend_range(values, n, lo[c], hi[c]);
        }
      }
    }
  });
  for (int64_t c = 0; c < s.channels; ++c) {
    int32_t lo = kZeroKey, hi = kZeroKey;
    for (int64_t job = 0; job < jobs; ++job) {
      lo = std::min(lo, keys[static_cast<size_t>(job * 2 * s.channels + c)]);
      hi = std::max(hi, keys[static_cast<size_t>((job * 2 + 1) * s.channels + c)]);
    }
    f(c, value_of_key(lo), value_of_key(hi));
  }
}

#endif
}  // namespace amct

#if defined(USE_CUDA)
#include "ranges_cuda.h"
#endif
