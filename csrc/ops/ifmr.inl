// ifmr.inl - input feature map range: the clip range with the least quantization error.
//
// ifmr_search.h has the formula. Two ways to evaluate it, each a function of the values alone, not
// of their order, the split into batches, the device or the number of threads:
// - values in ascending order, whose losses are summed one by one;
// - for many values of a tensor, few bits and percentiles close to 1: a sketch (ifmr_sketch.h)
//   and its outermost values, from which the losses are bounded and estimated (ifmr_bounds.h).
#pragma once
#include <array>
#include <atomic>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../loops.h"
#include "../quant_math.h"
#include "../rows.h"
#include "ifmr_collect.inl"
#include "ifmr_search.h"
#include "ifmr_sketch.h"
#if !defined(USE_CUDA)
#include "ifmr_bounds.h"
#endif

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int64_t kMostSketchedBits = 8;  // more would blur the bounds

// The same rule as that of amct_pytorch/calibrators/ifmr.py, which must choose alike.
inline bool is_sketched(int64_t n, const IfmrOptions& options, std::optional<int64_t> axis) {
  constexpr int64_t kMostSorted = 65536;
  constexpr double kMostBeyond = 1.0 / 65536;  // fraction of the values beyond a percentile
  return n > kMostSorted && !axis.has_value() && options.num_bits <= kMostSketchedBits &&
         1 - options.max_percentile <= kMostBeyond && 1 - options.min_percentile <= kMostBeyond;
}

inline Tensor tensor_of(const std::vector<float>& values) {
  const int64_t n = values.size();
  Tensor t = torch::stable::empty({n}, ScalarType::Float);
  std::copy(values.begin(), values.end(), t.mutable_data_ptr<float>());
  return t;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ifmr_collect(const Tensor& x_, int64_t k_low,
                                                                int64_t k_high) {
  check_not_empty(x_);
  const Tensor x = dense(x_);
  const Sketch sketch = sketch_of(x);
  const Extremes found = extremes_of(x, sketch, k_low, k_high);
  return {sketch.pages, sketch.counts, sketch.sums, tensor_of(found.low), tensor_of(found.high)};
}

#if !defined(USE_CUDA)

std::tuple<Tensor, Tensor, bool> ifmr_search(const Tensor& pages, const Tensor& counts,
                                             const Tensor& sums, const Tensor& low,
                                             const Tensor& high, int64_t num_bits, bool asymmetric,
                                             double max_percentile, double min_percentile,
                                             std::vector<double> search_range, double search_step) {
  const IfmrOptions options =
      ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  if (num_bits > kMostSketchedBits)
    throw std::invalid_argument("num_bits must be at most 8 for a sketch, got " +
                                std::to_string(num_bits));
  const Sketch sketch(pages, counts, sums);
  const int64_t n = sketch.size();
  const auto end = [&](const char* name, double percentile, const Tensor& kept, bool negative) {
    const int64_t k = percentile_rank(percentile, n);
    if (k <= kept.numel()) return kept.const_data_ptr<float>()[k - 1];
    int64_t all = 0;  // values on this side of zero
    sketch.for_each_inwards(negative, [&](const Bucket& b) {
      all += is_zero(b) ? 0 : b.count;
      return true;
    });
    STD_TORCH_CHECK(kept.numel() == all, name, " asks for value ", k, " from the end of ", n,
                    " values, of which ", kept.numel(), " are kept");
    return 0.0f;
  };
  const float lo = end("min_percentile", min_percentile, low, true);
  const float hi = end("max_percentile", max_percentile, high, false);
  const std::vector<Candidate> candidates = ifmr_candidates(lo, hi, options);
  const Cells cells = cells_of(sketch, candidates);
  std::vector<Bounds> bounds(candidates.size());
  const int64_t grain = kGrain / (cells.size() + 1) + 1;
  torch::stable::parallel_for(0, bounds.size(), grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) bounds[i] = ifmr_bounds(cells, candidates[i]);
  });
  const Choice choice = least_loss(bounds, candidates);
  STD_TORCH_CHECK(std::isfinite(candidates[choice.index].scale),
                  "x spans a range that float32 cannot hold");
  const ScaleOffset factors = ifmr_factors(candidates[choice.index], options);
  Tensor scale = torch::stable::empty({}, ScalarType::Float);
  Tensor offset = torch::stable::empty({}, ScalarType::Int);
  *scale.mutable_data_ptr<float>() = factors.scale;
  *offset.mutable_data_ptr<int32_t>() = factors.offset;
  return {scale, offset, choice.certified};
}

inline std::tuple<Tensor, Tensor> ifmr_sorted(const Tensor& x, const IfmrOptions& options,
                                              std::optional<int64_t> axis) {
  const Rows rows = rows_of(x, axis);
  const int64_t n = rows.length, count = options.ratios.size();
  std::vector<float> sorted(rows.count * n);
  std::atomic<bool> finite{true};
  const int64_t grain = (kGrain + n - 1) / n;
  torch::stable::parallel_for(0, rows.count, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      if (!amct::all_finite(rows.row(c), n)) finite = false;
      if (!finite) return;
      sort_row(rows.row(c), n, sorted.data() + c * n);
    }
  });
  STD_TORCH_CHECK(finite, "x must be finite, got NaN or infinity");

  std::vector<Candidate> candidates;
  for (int64_t c = 0; c < rows.count; ++c) {
    const float* row = sorted.data() + c * n;
    const float lo = row[percentile_rank(options.min_percentile, n) - 1];
    const float hi = row[n - percentile_rank(options.max_percentile, n)];
    const auto own = ifmr_candidates(std::min(lo, 0.0f), std::max(hi, 0.0f), options);
    candidates.insert(candidates.end(), own.begin(), own.end());
  }
  std::vector<double> losses(candidates.size());
  torch::stable::parallel_for(0, losses.size(), grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      losses[i] = ifmr_loss_or_inf(sorted.data() + i / count * n, n, candidates[i]);
  });

  const std::vector<int64_t> size =
      axis.has_value() ? std::vector<int64_t>{rows.count} : std::vector<int64_t>{};
  Tensor scale = torch::stable::empty(size, ScalarType::Float);
  Tensor offset = torch::stable::empty(size, ScalarType::Int);
  for (int64_t c = 0; c < rows.count; ++c) {
    const auto own = losses.begin() + c * count;
    const auto least = std::min_element(own, own + count);
    STD_TORCH_CHECK(std::isfinite(*least), "x spans a range that float32 cannot hold");
    const ScaleOffset factors = ifmr_factors(candidates[least - losses.begin()], options);
    scale.mutable_data_ptr<float>()[c] = factors.scale;
    offset.mutable_data_ptr<int32_t>()[c] = factors.offset;
  }
  return {scale, offset};
}

#else

// The searches are host code, registered once. What they would refuse is refused before the call,
// for an error from an inner call loses its text.
inline std::tuple<Tensor, Tensor> ifmr_sorted(const Tensor& x, const IfmrOptions& options,
                                              std::optional<int64_t> axis) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  const Tensor host = torch::stable::to(x, torch::headeronly::DeviceType::CPU);
  const Rows rows = rows_of(host, std::nullopt);
  STD_TORCH_CHECK(amct::all_finite(rows.row(0), rows.length),
                  "x must be finite, got NaN or infinity");
  std::array<StableIValue, 8> stack{from(host),
                                    from(options.num_bits),
                                    from(options.asymmetric),
                                    from(options.max_percentile),
                                    from(options.min_percentile),
                                    from(options.search_range),
                                    from(options.search_step),
                                    from(axis)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("amct_pytorch::ifmr", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}

inline std::tuple<Tensor, Tensor, bool> ifmr_search(
    const Tensor& pages, const Tensor& counts, const Tensor& sums, const Tensor& low,
    const Tensor& high, int64_t num_bits, bool asymmetric, double max_percentile,
    double min_percentile, const std::vector<double>& search_range, double search_step) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 11> stack{from(pages),        from(counts),         from(sums),
                                     from(low),          from(high),           from(num_bits),
                                     from(asymmetric),   from(max_percentile), from(min_percentile),
                                     from(search_range), from(search_step)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("amct_pytorch::ifmr_search", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1]), to<bool>(stack[2])};
}
#endif

std::tuple<Tensor, Tensor> ifmr(const Tensor& x, int64_t num_bits, bool asymmetric,
                                double max_percentile, double min_percentile,
                                std::vector<double> search_range, double search_step,
                                std::optional<int64_t> axis) {
  const IfmrOptions options =
      ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  check_not_empty(x);
  if (axis.has_value()) check_axis(x, *axis);
  const int64_t n = x.numel();
  Tensor scale, offset;
  if (is_sketched(n, options, axis)) {
    const auto [pages, counts, sums, low, high] =
        ifmr_collect(x, percentile_rank(min_percentile, n), percentile_rank(max_percentile, n));
    std::tie(scale, offset, std::ignore) =
        ifmr_search(pages, counts, sums, low, high, num_bits, asymmetric, max_percentile,
                    min_percentile, search_range, search_step);
  } else {
    std::tie(scale, offset) = ifmr_sorted(x, options, axis);
  }
  return {torch::stable::to(scale, x.device()), torch::stable::to(offset, x.device())};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ifmr", TORCH_BOX(&ifmr));
  m.impl("ifmr_collect", TORCH_BOX(&ifmr_collect));
#if !defined(USE_CUDA)
  m.impl("ifmr_search", TORCH_BOX(&ifmr_search));
#endif
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
