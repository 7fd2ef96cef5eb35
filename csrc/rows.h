// rows.h - a tensor as float32 rows in host memory, and rows in ascending order.
//
// Calibration looks at values, not at places: [C, R] holds one row per channel (one row in
// all without an axis), and the order of the values within a row is that of no promise.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

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

// order_key of ranges.h as an unsigned number, by whose digits values are sorted.
constexpr uint32_t kSignBit = 0x80000000u;
AMCT_HD uint32_t sort_key(float v) { return static_cast<uint32_t>(order_key(v)) ^ kSignBit; }
AMCT_HD float value_of_sort_key(uint32_t key) {
  return value_of_key(static_cast<int32_t>(key ^ kSignBit));
}

// The n values of x in ascending order: least significant digit first, three digits of 11 bits.
inline void sort_row(const float* x, int64_t n, float* sorted) {
  constexpr int kDigits = 3, kBits = 11, kValues = 1 << kBits;
  constexpr int64_t kWorthwhile = 1024;  // below it the digit tables cost more than a sort
  if (n < kWorthwhile) {
    std::copy(x, x + n, sorted);
    std::sort(sorted, sorted + n);
    return;
  }
  std::vector<std::array<int64_t, kValues>> place(kDigits);
  for (auto& digit : place) digit.fill(0);
  for (int64_t i = 0; i < n; ++i)
    for (int d = 0; d < kDigits; ++d) ++place[d][sort_key(x[i]) >> (d * kBits) & (kValues - 1)];
  for (auto& digit : place) {
    int64_t sum = 0;
    for (int64_t& entry : digit) entry = std::exchange(sum, sum + entry);
  }
  std::vector<uint32_t> a(n), b(n);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = sort_key(x[i]);
    a[place[0][key & (kValues - 1)]++] = key;
  }
  for (const uint32_t key : a) b[place[1][key >> kBits & (kValues - 1)]++] = key;
  for (const uint32_t key : b) sorted[place[2][key >> 2 * kBits]++] = value_of_sort_key(key);
}

}  // namespace amct
