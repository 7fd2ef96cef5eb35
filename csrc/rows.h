// rows.h - a tensor as contiguous float32 rows, on its device.
//
// Calibration looks at values, not at places: [C, R] holds one row per channel (one row in
// all without an axis), and the order of the values within a row is that of no promise.
#pragma once
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>

#include "checks.h"
#include "layout.h"
#include "quant_math.h"
#include "ranges.h"

namespace amct {

inline void check_not_empty(const Tensor& x) {
  if (x.numel() == 0) throw std::invalid_argument("x must have at least one element, got none");
}

struct Rows {
  Tensor data;  // owns the values; contiguous float32
  int64_t count, length;
  const float* row(int64_t c) const { return data.const_data_ptr<float>() + c * length; }
};

inline Rows rows_of(const Tensor& x, std::optional<int64_t> axis) {
  const int64_t a = axis.has_value() ? check_axis(x, *axis) : 0;
  const int64_t count = axis.has_value() ? x.size(a) : 1;
  const Tensor ordered =
      count == 1 ? dense(x) : torch::stable::contiguous(torch::stable::transpose(x, 0, a));
  return {torch::stable::to(ordered, ScalarType::Float), count, x.numel() / count};
}

inline bool all_finite(const float* x, int64_t n) {
  uint32_t bad = 0;
  for (int64_t i = 0; i < n; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof bits);
    bad |= (bits & 0x7F800000u) == 0x7F800000u;
  }
  return bad == 0;
}

// order_key of ranges.h as an unsigned number.
constexpr uint32_t kSignBit = 0x80000000u;
AMCT_HD uint32_t sort_key(float v) { return static_cast<uint32_t>(order_key(v)) ^ kSignBit; }
AMCT_HD float value_of_sort_key(uint32_t key) {
  return value_of_key(static_cast<int32_t>(key ^ kSignBit));
}

}  // namespace amct
