// ifmr.inl - input feature map range: the clip range with the least quantization error.
//
// ifmr_search.h has the formula. The op finds the first least loss in double precision: a sketch
// (ifmr_sketch.h) bounds the losses (ifmr_bounds.h), and where the bounds leave several candidates,
// the losses of those are summed over the values. 16-bit values are counted instead. Over batches,
// the state of amct_pytorch/calibrators/ifmr.py is a sketch with its outermost values, or counts.
#pragma once
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../loops.h"
#include "../quant_math.h"
#include "../rows.h"
#include "ifmr_bounds.h"
#include "ifmr_ranks.h"
#include "ifmr_search.h"
#include "ifmr_sketch.h"
#if defined(USE_CUDA)
#include "ifmr_collect_cuda.h"
#else
#include "ifmr_collect_cpu.h"
#endif

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int64_t kMostSketchedBits = 12;  // more would leave all candidates

// Resolution of the sketch of a tensor at hand: more bits leave fewer survivors, fewer bits are
// less memory to go through.
inline int sketch_bits(int64_t n, int64_t num_bits) {
  constexpr int64_t kMany = int64_t{1} << 23;
  return std::max(n < kMany ? 13 : 14, static_cast<int>(num_bits) + 4);
}

// What a search found, or why it found nothing. Errors are raised where no thread is at work.
struct Found {
  Candidate candidate{};
  bool finite = true;

  void check() const {
    STD_TORCH_CHECK(finite, "x must be finite, got NaN or infinity");
    STD_TORCH_CHECK(candidate.scale > 0, "x spans a range that float32 cannot hold");
  }
};

inline Candidate first_least(const Values& x, const std::vector<Candidate>& survivors) {
  if (survivors.empty()) return {};
  if (survivors.size() == 1) return survivors[0];
  return least_of(losses_of(x, survivors), survivors);
}

// The ends of the range, from one pass and a look at what it left open.
inline Ends ends_of(const Values& x, const Collected& seen, int64_t k_low, int64_t k_high) {
  const Sketch& sketch = seen.sketch.view();
  const Peak peak = seen.peak();
  Largest high = place_of(sketch, false, k_high), low = place_of(sketch, true, k_low);
  if (k_high == 1) high.span = {peak.high, peak.high};
  if (k_low == 1) low.span = {peak.low, peak.low};
  Ends ends{-float_of_bits(low.span.first), float_of_bits(high.span.first)};
  if (high.span.is_one() && low.span.is_one()) return ends;
  Extremes open = values_in(x, seen.peaks, high.span.is_one() ? Largest{} : high,
                            low.span.is_one() ? Largest{} : low);
  if (!high.span.is_one()) ends.hi = kth_largest(open.high, high.count);
  if (!low.span.is_one()) ends.lo = -kth_largest(open.low, low.count);
  return ends;
}

// Values too few to be worth a sketch; on CUDA, where reading them is what costs, none are.
inline Found found_in_few(const Values& x, const IfmrOptions& options) {
  const std::vector<Peak> peaks = peaks_of(x);
  for (const Peak& p : peaks)
    if (!p.is_finite()) return {{}, false};
  const int64_t k_low = percentile_rank(options.min_percentile, x.size);
  const int64_t k_high = percentile_rank(options.max_percentile, x.size);
  Extremes all = values_in(x, peaks, {{1, ~kSign}, k_high}, {{1, ~kSign}, k_low});
  const float lo = -kth_largest(all.low, k_low), hi = kth_largest(all.high, k_high);
  return {first_least(x, distinct(ifmr_candidates(lo, hi, options)))};
}

inline Found found_in(const Values& x, const IfmrOptions& options) {
  if (x.size <= kFew) return found_in_few(x, options);
  const Collected seen =
      collect(x, sketch_bits(x.size, std::min(options.num_bits, kMostSketchedBits)), 0);
  if (!seen.peak().is_finite()) return {{}, false};
  const auto [lo, hi] = ends_of(x, seen, percentile_rank(options.min_percentile, x.size),
                                percentile_rank(options.max_percentile, x.size));
  const std::vector<Candidate> candidates = ifmr_candidates(lo, hi, options);
  if (options.num_bits > kMostSketchedBits) return {first_least(x, distinct(candidates))};
  return {first_least(x, survivors_of(bounds_of(seen.sketch.view(), candidates), candidates))};
}

// Of counted values, in ascending order.
inline Found found_in(const Counted& x, const IfmrOptions& options) {
  const double n = std::accumulate(x.weight.begin(), x.weight.end(), 0.0);
  const auto end = [&](auto value, auto weight, double percentile) {
    const int64_t k = percentile_rank(percentile, static_cast<int64_t>(n));
    for (double seen = *weight; seen < static_cast<double>(k); seen += *weight) ++value, ++weight;
    return *value;
  };
  const float lo = end(x.value.begin(), x.weight.begin(), options.min_percentile);
  const float hi = end(x.value.rbegin(), x.weight.rbegin(), options.max_percentile);
  const std::vector<Candidate> candidates =
      distinct(ifmr_candidates(std::min(lo, 0.0f), std::max(hi, 0.0f), options));
  if (candidates.empty()) return {};
  return {least_of(losses_of(x, candidates), candidates)};
}

inline Found found_in_counts(const int64_t* counts, bool is_bfloat16, const IfmrOptions& options) {
  const Counted x = counted(counts, is_bfloat16);
  return x.value.empty() ? Found{{}, false} : found_in(x, options);
}

// Scales and offsets of C searches.
struct FoundFactors {
  Tensor scale, offset;

  explicit FoundFactors(int64_t channels)
      : scale(torch::stable::empty({channels}, ScalarType::Float)),
        offset(torch::stable::empty({channels}, ScalarType::Int)) {}
  void set(int64_t c, const Candidate& candidate, const IfmrOptions& options) {
    const ScaleOffset f = ifmr_factors(candidate, options);
    scale.mutable_data_ptr<float>()[c] = f.scale;
    offset.mutable_data_ptr<int32_t>()[c] = f.offset;
  }
};

inline bool is_half(const Tensor& x) {
  return x.scalar_type() == ScalarType::Half || x.scalar_type() == ScalarType::BFloat16;
}

std::tuple<Tensor, Tensor> ifmr(const Tensor& x_, int64_t num_bits, bool asymmetric,
                                double max_percentile, double min_percentile,
                                std::vector<double> search_range, double search_step,
                                std::optional<int64_t> axis) {
  const IfmrOptions options =
      ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  check_not_empty(x_);
  if (axis.has_value()) check_axis(x_, *axis);
  std::vector<Found> found(axis.has_value() ? x_.size(check_axis(x_, *axis)) : 1);
  if (!axis.has_value() && is_half(x_) && x_.numel() > kFew) {
    const Tensor x = dense(x_);
    found[0] =
        found_in_counts(counts_of(x).data(), x.scalar_type() == ScalarType::BFloat16, options);
  } else {
    const Rows rows = rows_of(x_, axis);
    for_each_row(rows, [&](int64_t c, const Values& x) { found[c] = found_in(x, options); });
  }
  for (const Found& f : found) f.check();
  FoundFactors factors(found.size());
  for (size_t c = 0; c < found.size(); ++c) factors.set(c, found[c].candidate, options);
  const auto shaped = [&](const Tensor& t) {
    return torch::stable::to(axis.has_value() ? t : torch::stable::reshape(t, {}), x_.device());
  };
  return {shaped(factors.scale), shaped(factors.offset)};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) { m.impl("ifmr", TORCH_BOX(&ifmr)); }

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
