// ada_scale.inl - the symmetric scale of a weight that AdaRound starts from.
//
// With 8 bits or more by Kullback-Leibler divergence, as the Ascend toolkit does with 8:
//   512 bins over [-A, A], A = max |w|; window i = 0..19 leaves i bins off either end, its
//   threshold is A (1 - i / 256)
//   P = the window, what is left off added to its first and last bin
//   Q = the window in 2^b - 1 groups of bins, each group's sum spread over its bins with P > 0
//   scale = threshold / 2^(b-1) of the window with the least KL(P || Q), the widest of equals
// With fewer bits by the least squared error of nearest rounding, for the best scale clips far
// more than 7 percent then, and of short rows nothing:
//   scale = r k / 100, k = 100..30, r the scale of arq, the widest of equals
//
// A scale below 2^-23, that of zeros too, becomes 1. The search is on the host: a weight on
// CUDA is copied there.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "../rows.h"

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int kKlBins = 512, kKlWindows = 20;
constexpr double kKlSmoothing = 1e-4;  // stands for an empty bin, whose logarithm there is none of

using KlBins = std::array<double, kKlBins>;

inline KlBins kl_histogram(const float* x, int64_t n, double largest) {
  KlBins counts{};
  const double per_unit = kKlBins / (2 * largest);
  for (int64_t i = 0; i < n; ++i) {
    const auto bin = static_cast<int>((x[i] + largest) * per_unit);
    ++counts[std::clamp(bin, 0, kKlBins - 1)];
  }
  return counts;
}

// Replaces zeros; false if there is nothing but zeros.
inline bool kl_smooth(KlBins& bins, int width) {
  const auto zeros = std::count(bins.begin(), bins.begin() + width, 0.0);
  if (zeros == width) return false;
  const double added =
      kKlSmoothing * static_cast<double>(zeros) / static_cast<double>(width - zeros);
  if (added >= 1) return true;
  for (int k = 0; k < width; ++k) bins[k] += bins[k] == 0 ? kKlSmoothing : added;
  return true;
}

inline double kl_of_window(const KlBins& counts, int left_off, int64_t groups) {
  const int width = kKlBins - 2 * left_off;
  KlBins p{}, q{};
  std::copy_n(counts.begin() + left_off, width, p.begin());
  for (int k = 0; k < left_off; ++k) {
    p[0] += counts[k];
    p[width - 1] += counts[kKlBins - 1 - k];
  }
  for (int64_t j = 0; j < groups; ++j) {
    const int64_t begin = (j * width + groups - 1) / groups;
    const int64_t end = ((j + 1) * width + groups - 1) / groups;
    double total = 0;
    int64_t filled = 0;
    for (int64_t k = begin; k < end; ++k) {
      total += counts[left_off + k];
      filled += p[k] != 0;
    }
    for (int64_t k = begin; k < end; ++k) q[k] = p[k] != 0 ? total / filled : 0;
  }
  if (!kl_smooth(p, width) || !kl_smooth(q, width)) return HUGE_VAL;
  double p_total = 0, q_total = 0, divergence = 0;
  for (int k = 0; k < width; ++k) {
    p_total += p[k];
    q_total += q[k];
  }
  for (int k = 0; k < width; ++k)
    if (p[k] != 0) divergence += p[k] / p_total * std::log(p[k] / p_total / (q[k] / q_total));
  return divergence;
}

inline float kl_scale(const float* x, int64_t n, int64_t num_bits) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  if (largest == 0) return 1.0f;
  const KlBins counts = kl_histogram(x, n, largest);
  int best = 0;
  double least = HUGE_VAL;
  for (int window = 0; window < kKlWindows; ++window) {
    const double divergence = kl_of_window(counts, window, (int64_t{1} << num_bits) - 1);
    if (divergence < least) {
      least = divergence;
      best = window;
    }
  }
  const double threshold = largest - best * 2.0 * largest / kKlBins;
  const auto scale =
      static_cast<float>(threshold / static_cast<double>(int64_t{1} << (num_bits - 1)));
  return scale < kScaleFloor ? 1.0f : scale;
}

constexpr int kLeastBitsOfKl = 8;
constexpr int kWholeRange = 100, kNarrowest = 30;  // percent of the scale of arq

inline double squared_error(const float* x, int64_t n, float scale, const QuantRange& range) {
  const Factors factors = make_factors(scale, 0);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double error = static_cast<double>(fake_quantize(x[i], factors, range)) - x[i];
    total += error * error;
  }
  return total;
}

inline float least_error_scale(const float* x, int64_t n, int64_t num_bits) {
  float lo = 0, hi = 0;
  for (int64_t i = 0; i < n; ++i) {
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
  }
  const float whole = factors_of_range(lo, hi, num_bits, false).scale;
  float best = whole;
  double least = HUGE_VAL;
  for (int percent = kWholeRange; percent >= kNarrowest; --percent) {
    const float scale = whole * (static_cast<float>(percent) / kWholeRange);
    if (scale < kScaleFloor) break;
    const double error = squared_error(x, n, scale, quant_range(num_bits));
    if (error < least) {
      least = error;
      best = scale;
    }
  }
  return lo == 0 && hi == 0 ? 1.0f : best;
}

Tensor ada_scale(const Tensor& weight, int64_t num_bits, std::optional<int64_t> axis) {
  check_num_bits(num_bits);
  const std::vector<int64_t> sizes =
      axis.has_value() ? std::vector<int64_t>{weight.size(check_axis(weight, *axis))}
                       : std::vector<int64_t>{};
  const Tensor host = torch::stable::to(weight, torch::headeronly::DeviceType::CPU);
  Tensor found = torch::stable::new_empty(host, sizes, ScalarType::Float);
  float* scale = found.mutable_data_ptr<float>();
  if (weight.numel() == 0) {
    std::fill_n(scale, found.numel(), 1.0f);
  } else {
    const Rows rows = rows_of(host, axis);
    STD_TORCH_CHECK(all_finite(rows.row(0), rows.count * rows.length),
                    "weight must be finite, got NaN or infinity");
    torch::stable::parallel_for(0, rows.count, 1, [&](int64_t first, int64_t last) {
      for (int64_t c = first; c < last; ++c) {
        const auto search = num_bits < kLeastBitsOfKl ? least_error_scale : kl_scale;
        scale[c] = search(rows.row(c), rows.length, num_bits);
      }
    });
  }
  Tensor result = torch::stable::new_empty(weight, sizes, ScalarType::Float);
  torch::stable::copy_(result, found);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ada_scale", TORCH_BOX(&ada_scale));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
