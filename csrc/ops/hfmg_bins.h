// hfmg_bins.h - the range of a row of values, and its bins.
#pragma once
#include <cstdint>
#include <limits>

#include "../quant_math.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct Extent {
  float lo, hi;
  bool empty() const { return lo > hi; }
};

constexpr Extent kNoValues{std::numeric_limits<float>::infinity(),
                           -std::numeric_limits<float>::infinity()};

// Bins of [lo, hi] as torch.histc numbers them; `unit` keeps the product within float32.
struct Binning {
  float lo, width, bins, unit;
  AMCT_HD Binning(Extent e, int64_t n) : bins(static_cast<float>(n)) {
    constexpr float kLarge = 1.0e30f;
    unit = e.hi - e.lo > kLarge ? 1.0f / (1 << 28) : 1.0f;
    lo = e.lo * unit;
    width = e.hi * unit - lo;
  }
  // A constant lies in the middle, for torch.histc widens its range by 1 on both sides.
  AMCT_HD int32_t bin(float x) const {
    const float place = width > 0 ? (x * unit - lo) * bins / width : bins / 2;
    return static_cast<int32_t>(place < bins - 1 ? place : bins - 1);
  }
};

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
