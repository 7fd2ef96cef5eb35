// ifmr_search.h - the candidates of IFMR and their losses. Host code.
//
// Of N values with percentiles p+ and p-:
//   k = 1 when 1 - p < 2^-23, else N - floor(p N)
//   hi = max(0, k+-th largest),  lo = min(0, k--th smallest)
// Candidate i has the ratio r_i = start + i step (in double, rounded to float32 once; torch.arange
// rounds some twice, depending on the width of its vectors), i < ceil((end - start) / step), and
// in float32
//   asymmetric  [lo, r_i hi],   s_i = (r_i hi - lo) / (2^b - 1)
//   symmetric   [-c_i, c_i],    c_i = r_i max(hi, -lo),   s_i = c_i / (2^(b-1) - 1),
//               or c_i / 2^(b-1) when -lo > hi
// with s_i = 1 when s_i < 2^-23, and the loss
//   L_i = sum over x of (level_i(x) - x)^2,   level_i(x) = rint(clamp(x) / s_i) * s_i
// where level_i is taken in float32 and the sum in double. The first least loss wins:
//   s = s_i,   o = -rint(lo / s) - 2^(b-1) (asymmetric) or 0
// Kept from the published search: asymmetric mode scales the upper end only, and where the
// negative side dominates symmetric mode, +c_i counts as a level though its code 2^(b-1) is not
// representable.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../checks.h"
#include "../loops.h"
#include "../quant_math.h"

namespace amct {

struct IfmrOptions {
  int64_t num_bits;
  bool asymmetric;
  double max_percentile, min_percentile;
  std::vector<double> search_range;
  double search_step;
  std::vector<float> ratios;
};

inline IfmrOptions ifmr_options(int64_t num_bits, bool asymmetric, double max_percentile,
                                double min_percentile, const std::vector<double>& search_range,
                                double search_step) {
  constexpr double kMostCandidates = 1 << 20;  // more could not differ in float32
  check_num_bits(num_bits);
  const auto check_percentile = [](const char* name, double p) {
    if (!(p > 0.5 && p <= 1))
      throw std::invalid_argument(std::string(name) + " must be in (0.5, 1], got " + shown(p));
  };
  check_percentile("max_percentile", max_percentile);
  check_percentile("min_percentile", min_percentile);
  if (search_range.size() != 2)
    throw std::invalid_argument("search_range must have 2 elements, got " +
                                std::to_string(search_range.size()));
  const double start = search_range[0], end = search_range[1];
  if (!(start > 0 && start < end && std::isfinite(end)))
    throw std::invalid_argument("search_range must be (start, end) with 0 < start < end, got (" +
                                shown(start) + ", " + shown(end) + ")");
  const double count = std::ceil((end - start) / search_step);
  if (!(search_step > 0 && count <= kMostCandidates))
    throw std::invalid_argument(
        "search_step must be positive and give at most 2^20 candidates, got " + shown(search_step));
  IfmrOptions options{num_bits,    asymmetric, max_percentile, min_percentile, search_range,
                      search_step, {}};
  for (double i = 0; i < count; ++i)
    options.ratios.push_back(static_cast<float>(start + i * search_step));
  return options;
}

// k of the k-th largest (or smallest) of n values.
inline int64_t percentile_rank(double percentile, int64_t n) {
  if (1 - percentile < kScaleFloor) return 1;
  return n - static_cast<int64_t>(percentile * static_cast<double>(n));
}

struct Candidate {
  float lo, hi, scale;
};

inline std::vector<Candidate> ifmr_candidates(float lo, float hi, const IfmrOptions& options) {
  const QuantRange range = quant_range(options.num_bits);
  std::vector<Candidate> candidates;
  candidates.reserve(options.ratios.size());
  for (const float ratio : options.ratios) {
    Candidate c;
    if (options.asymmetric) {
      c.lo = lo;
      c.hi = ratio * hi;
      c.scale = (c.hi - c.lo) / (range.max - range.min);
    } else {
      c.hi = ratio * std::max(hi, -lo);
      c.lo = -c.hi;
      c.scale = c.hi / (hi < -lo ? -range.min : range.max);
    }
    if (c.scale < kScaleFloor) c.scale = 1.0f;
    candidates.push_back(c);
  }
  return candidates;
}

inline ScaleOffset ifmr_factors(const Candidate& c, const IfmrOptions& options) {
  if (!options.asymmetric) return {c.scale, 0};
  const float code = -rint_even(c.lo / c.scale) + quant_range(options.num_bits).min;
  return {c.scale, static_cast<int32_t>(code)};
}

AMCT_HD float level(float x, const Candidate& c) {
  return rint_even(clamp(x, c.lo, c.hi) / c.scale) * c.scale;
}

#if !defined(USE_CUDA)
// L of one candidate, in a fixed order of additions.
inline AMCT_CLONES double ifmr_loss(const float* x, int64_t n, const Candidate c) {
  double lanes[kLanes] = {};
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < whole; i += kLanes)
    for (int j = 0; j < kLanes; ++j) {
      const double error = static_cast<double>(level(x[i + j], c)) - x[i + j];
      lanes[j] += error * error;
    }
  for (int64_t i = whole; i < n; ++i) {
    const double error = static_cast<double>(level(x[i], c)) - x[i];
    lanes[i - whole] += error * error;
  }
  double total = 0;
  for (const double lane : lanes) total += lane;
  return total;
}

// A candidate whose range overflows float32 is out of the race.
inline double ifmr_loss_or_inf(const float* x, int64_t n, const Candidate& c) {
  return std::isfinite(c.scale) ? ifmr_loss(x, n, c) : std::numeric_limits<double>::infinity();
}
#endif

}  // namespace amct
