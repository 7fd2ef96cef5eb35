// ifmr.inl - input feature map range: the clip range with the least quantization error.
//
// ifmr_search.h has the formula. The values of each row are sorted first, so that the sums, and
// with them the choice, depend on the values alone: not on their order, the split into
// batches, or the number of threads.
#pragma once
#include <atomic>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../loops.h"
#include "../quant_math.h"
#include "../rows.h"
#include "ifmr_search.h"

namespace amct {
namespace AMCT_DEVICE_NS {

#if !defined(__CUDACC__)
std::tuple<Tensor, Tensor> ifmr(const Tensor& x, int64_t num_bits, bool asymmetric,
                                double max_percentile, double min_percentile,
                                std::vector<double> search_range, double search_step,
                                std::optional<int64_t> axis) {
  const IfmrOptions options =
      ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  check_not_empty(x);
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
    const float lo = row[percentile_rank(min_percentile, n) - 1];
    const float hi = row[n - percentile_rank(max_percentile, n)];
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
  Tensor scale = torch::stable::new_empty(x, size, ScalarType::Float);
  Tensor offset = torch::stable::new_empty(x, size, ScalarType::Int);
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

// The values go to the host, whose search gives the bits. What it would refuse is refused here:
// an error from an inner call loses its text.
std::tuple<Tensor, Tensor> ifmr(const Tensor& x, int64_t num_bits, bool asymmetric,
                                double max_percentile, double min_percentile,
                                std::vector<double> search_range, double search_step,
                                std::optional<int64_t> axis) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  check_not_empty(x);
  if (axis.has_value()) check_axis(x, *axis);
  const Tensor host = torch::stable::to(x, torch::headeronly::DeviceType::CPU);
  const Rows rows = rows_of(host, std::nullopt);
  STD_TORCH_CHECK(all_finite(rows.row(0), rows.length), "x must be finite, got NaN or infinity");
  std::array<StableIValue, 8> stack{
      from(host),           from(num_bits),     from(asymmetric),  from(max_percentile),
      from(min_percentile), from(search_range), from(search_step), from(axis)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("amct_pytorch::ifmr", "", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::to(to<Tensor>(stack[0]), x.device()),
          torch::stable::to(to<Tensor>(stack[1]), x.device())};
}
#endif

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) { m.impl("ifmr", TORCH_BOX(&ifmr)); }

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
