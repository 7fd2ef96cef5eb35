// loops_common.h - what the loops of both devices share.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "layout.h"
#include "quant_math.h"

namespace amct {
using half = c10::Half;
using bfloat16 = c10::BFloat16;

// Conversions of one element; bfloat16 in plain integer arithmetic, which becomes vectors.
template <class T>
AMCT_HD float widened(T v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    const uint32_t bits = static_cast<uint32_t>(v.x) << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
  } else {
    return static_cast<float>(v);
  }
}

// Rounds half to even; a bfloat16 NaN is the one that torch makes.
template <class T>
AMCT_HD T narrowed(float v) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return bfloat16(static_cast<unsigned short>(v == v ? rounded : 0x7fc0u), bfloat16::from_bits());
  } else {
    return static_cast<T>(v);
  }
}

// The inputs of a loop; a plain array, for std::array does not work in device code.
template <class In, int N>
struct Inputs {
  const In* p[N];
  AMCT_HD const In* const& operator[](int k) const { return p[k]; }
  AMCT_HD const In*& operator[](int k) { return p[k]; }
};

// The inputs from element i on.
template <class In, int N>
AMCT_HD Inputs<In, N> advanced(Inputs<In, N> in, int64_t i) {
  for (int k = 0; k < N; ++k) in[k] += i;
  return in;
}

// Adds result k of K to a running total, of which the last M are maxima.
template <int K, int M>
AMCT_HD void accumulate(double& total, double value, int k) {
  if (k < K - M)
    total += value;
  else
    total = total < value ? value : total;
}

// Calls fn with a value of the C++ type of a floating tensor.
template <class Fn>
void dispatch_floating(const Tensor& x, const char* name, Fn&& fn) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return fn(float{});
    case ScalarType::Half:
      return fn(half{});
    case ScalarType::BFloat16:
      return fn(bfloat16{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float16 or bfloat16, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

// Calls fn with a value of the C++ type of a tensor of codes.
template <class Fn>
void dispatch_codes(const Tensor& q, const char* name, Fn&& fn) {
  switch (q.scalar_type()) {
    case ScalarType::Char:
      return fn(int8_t{});
    case ScalarType::Short:
      return fn(int16_t{});
    default:
      STD_TORCH_CHECK(false, name, " must be int8 or int16, got ",
                      torch::headeronly::toString(q.scalar_type()));
  }
}

// What a functor takes for the constants of a channel.
template <class F>
using ChannelOf = std::decay_t<decltype(std::declval<F>().channel(0))>;

// Whether a loop of K results maps: a functor of a plain sum returns nothing.
template <int K, int N, class F>
constexpr bool kMaps =
    !std::is_void_v<std::invoke_result_t<F, ChannelOf<F>, const float (&)[N], double (&)[K]>>;
template <int N, class F>
constexpr bool kMaps<0, N, F> = true;

// What f returns for one element, 0 in a sum.
template <int K, int N, class F>
AMCT_HD float apply(const F& f, const ChannelOf<F>& channel, const float (&in)[N],
                    double (&terms)[K]) {
  if constexpr (kMaps<K, N, F>) {
    return f(channel, in, terms);
  } else {
    f(channel, in, terms);
    return 0.0f;
  }
}
}  // namespace amct
