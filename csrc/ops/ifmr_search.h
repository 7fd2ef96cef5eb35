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

// How many levels lie between zero and the end of a range: rint as in level().
inline int64_t steps_of(float end, float scale) {
  return static_cast<int64_t>(rint_even(end / scale));
}

// Candidates that quantize alike, once, and none whose range float32 cannot hold.
inline std::vector<Candidate> distinct(const std::vector<Candidate>& candidates) {
  const auto alike = [](const Candidate& a, const Candidate& b) {
    return a.scale == b.scale && steps_of(a.lo, a.scale) == steps_of(b.lo, b.scale) &&
           steps_of(a.hi, a.scale) == steps_of(b.hi, b.scale);
  };
  std::vector<Candidate> kept;
  for (const Candidate& c : candidates)
    if (std::isfinite(c.scale) && (kept.empty() || !alike(kept.back(), c))) kept.push_back(c);
  return kept;
}

// ---- losses ----

// Losses are summed in chunks, each over kLossLanes running sums, the same on every device.
constexpr int kLossLanes = 32;
constexpr int64_t kLossChunk = 16384;

// The squared error of one value, which may count for several.
AMCT_HD double squared_error(float x, const Candidate& c) {
  const double error = static_cast<double>(level(x, c)) - static_cast<double>(x);
  return error * error;
}

#if defined(USE_CUDA)
#define AMCT_HOST_CLONES
#else
#define AMCT_HOST_CLONES AMCT_CLONES
#endif

// L over at most kLossChunk values, times their weights where there are any.
template <bool kWeighted>
AMCT_HOST_CLONES double chunk_loss(const float* x, const double* weight, int64_t n,
                                   const Candidate c) {
  double lanes[kLossLanes] = {};
  const int64_t whole = n - n % kLossLanes;
  for (int64_t i = 0; i < whole; i += kLossLanes)
    for (int j = 0; j < kLossLanes; ++j)
      lanes[j] +=
          kWeighted ? weight[i + j] * squared_error(x[i + j], c) : squared_error(x[i + j], c);
  for (int64_t i = whole; i < n; ++i)
    lanes[i - whole] += kWeighted ? weight[i] * squared_error(x[i], c) : squared_error(x[i], c);
  double total = 0;
  for (const double lane : lanes) total += lane;
  return total;
}

// Distinct values and how often each occurs.
struct Counted {
  std::vector<float> value;
  std::vector<double> weight;
};

// The values of a 16-bit type that occur, ascending, given how often its bits do. Empty where one
// is not finite.
inline Counted counted(const int64_t* counts, bool is_bfloat16) {
  constexpr int kSign16 = 0x8000, kValues = 0x10000;
  Counted found;
  const auto take = [&](int bits) {
    if (counts[bits] == 0) return true;
    const auto word = static_cast<uint16_t>(bits);
    const float value = is_bfloat16 ? static_cast<float>(bfloat16(word, bfloat16::from_bits()))
                                    : static_cast<float>(half(word, half::from_bits()));
    found.value.push_back(value);
    found.weight.push_back(static_cast<double>(counts[bits]));
    return std::isfinite(value);
  };
  bool finite = true;
  for (int bits = kValues - 1; bits >= kSign16; --bits) finite = take(bits) && finite;
  for (int bits = 0; bits < kSign16; ++bits) finite = take(bits) && finite;
  return finite ? found : Counted{};
}

inline std::vector<double> losses_of(const Counted& x, const std::vector<Candidate>& candidates) {
  const int64_t n = x.value.size();
  std::vector<double> losses(candidates.size());
  torch::stable::parallel_for(0, losses.size(), 1, [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k)
      for (int64_t i = 0; i < n; i += kLossChunk)
        losses[k] += chunk_loss<true>(x.value.data() + i, x.weight.data() + i,
                                      std::min(kLossChunk, n - i), candidates[k]);
  });
  return losses;
}

inline Candidate least_of(const std::vector<double>& losses,
                          const std::vector<Candidate>& candidates) {
  return candidates[std::min_element(losses.begin(), losses.end()) - losses.begin()];
}

}  // namespace amct
