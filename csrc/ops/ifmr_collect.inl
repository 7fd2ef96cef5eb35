// ifmr_collect.inl - the sketch of a tensor, and its extreme values.
#pragma once
#include <cstdint>
#include <utility>

#include "ifmr_sketch.h"
#if defined(USE_CUDA)
#include "ifmr_collect_cuda.h"
#else
#include "ifmr_collect_cpu.h"
#endif

namespace amct {
namespace AMCT_DEVICE_NS {

// The k_low smallest negative and the k_high largest positive values, outermost first.
inline Extremes extremes_of(const Tensor& x, const Sketch& sketch, int64_t k_low, int64_t k_high) {
  const Tail low = tail_of(sketch, true, k_low), high = tail_of(sketch, false, k_high);
  Extremes found;
  if (low.gathered > 0 || high.gathered > 0) found = values_beyond(x, low, high);
  return {completed(low, std::move(found.low), k_low),
          completed(high, std::move(found.high), k_high)};
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
