// hfmg.inl - high frequency min gap: the range of a histogram with the least error.
//
// State of a row (one per channel): the range [lo, hi] of its values, and int64 counts of n equal
// bins over it, as torch.histc counts them. A batch widens the range; old counts move to the
// new bins, an old bin that lies across an edge being divided in proportion, with the
// published float32 arithmetic. hfmg_search.h finds the range to keep. State is host memory.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "../checks.h"
#include "../loops.h"
#include "../quant_math.h"
#include "../rows.h"
#include "hfmg_bins.h"
#include "hfmg_search.h"
#if defined(USE_CUDA)
#include "hfmg_cuda.h"
#endif

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int64_t kCandidatesPerThread = 64;
constexpr size_t kSampled = 64;  // every so many candidates one is tried first

inline void check_num_of_bins(int64_t n) {
  if (n != 1024 && n != 2048 && n != 4096 && n != 8192)
    throw std::invalid_argument("num_of_bins must be 1024, 2048, 4096 or 8192, got " +
                                std::to_string(n));
}

#if !defined(USE_CUDA)

inline Rows histogram_rows(const Tensor& x, std::optional<int64_t> axis) {
  return rows_of(x, axis);
}

// Smallest and largest value; false if one is not finite.
inline AMCT_CLONES bool extend(const float* x, int64_t n, Extent& e) {
  float lo[kLanes], hi[kLanes];
  std::fill(lo, lo + kLanes, e.lo);
  std::fill(hi, hi + kLanes, e.hi);
  uint32_t bad = 0;
  const int64_t whole = n - n % kLanes;
  for (int64_t i = 0; i < n; i += kLanes)
    for (int j = 0; j < (i < whole ? kLanes : static_cast<int>(n - whole)); ++j) {
      const float v = x[i + j];
      bad |= !(v - v == 0);
      lo[j] = v < lo[j] ? v : lo[j];
      hi[j] = v > hi[j] ? v : hi[j];
    }
  e = {*std::min_element(lo, lo + kLanes), *std::max_element(hi, hi + kLanes)};
  return bad == 0;
}

inline AMCT_CLONES void bins_of(const float* x, int n, const Binning b, int32_t* bins) {
  for (int i = 0; i < n; ++i) bins[i] = b.bin(x[i]);
}

// Calls body(row, begin, end) on shares of the rows, in parallel.
template <class Body>
void in_shares(const Rows& rows, Body&& body) {
  const int64_t shares =
      std::clamp<int64_t>(rows.length / kGrain, 1, torch::stable::get_num_threads());
  const int64_t grain = std::max<int64_t>(1, kGrain / rows.length);
  torch::stable::parallel_for(0, rows.count * shares, grain, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i)
      body(i / shares, rows.length * (i % shares) / shares,
           rows.length * (i % shares + 1) / shares);
  });
}

inline std::vector<Extent> extents(const Rows& rows) {
  std::vector<Extent> result(rows.count, kNoValues);
  std::mutex mutex;
  bool finite = true;
  in_shares(rows, [&](int64_t c, int64_t begin, int64_t end) {
    Extent e = kNoValues;
    const bool good = extend(rows.row(c) + begin, end - begin, e);
    const std::lock_guard<std::mutex> lock(mutex);
    result[c] = {std::min(result[c].lo, e.lo), std::max(result[c].hi, e.hi)};
    finite = finite && good;
  });
  STD_TORCH_CHECK(finite, "x must be finite, got NaN or infinity");
  return result;
}

inline std::vector<int64_t> histograms(const Rows& rows, const std::vector<Extent>& ranges,
                                       int64_t n) {
  constexpr int kTables = 2;  // so that equal neighbours need not wait for each other
  std::vector<int64_t> counts(rows.count * n);
  std::mutex mutex;
  in_shares(rows, [&](int64_t c, int64_t begin, int64_t end) {
    const Binning binning(ranges[c], n);
    std::vector<int64_t> tables(kTables * n);
    int32_t bins[kBlock];
    for (int64_t i = begin; i < end; i += kBlock) {
      const int count = static_cast<int>(std::min<int64_t>(kBlock, end - i));
      bins_of(rows.row(c) + i, count, binning, bins);
      for (int k = 0; k < count; ++k) ++tables[k % kTables * n + bins[k]];
    }
    const std::lock_guard<std::mutex> lock(mutex);
    for (int t = 0; t < kTables; ++t)
      for (int64_t i = 0; i < n; ++i) counts[c * n + i] += tables[t * n + i];
  });
  return counts;
}

#endif

// floor(a / b) as Python's // takes it for floats, a >= 0, b > 0: from an exact remainder.
inline int64_t floor_divide(float a, float b) {
  return static_cast<int64_t>(std::rint((a - std::fmod(a, b)) / b));
}

struct Histograms {
  Tensor ranges;  // float32 [C, 2]
  Tensor counts;  // int64 [C, n]
  int64_t rows() const { return counts.size(0); }
  int64_t bins() const { return counts.size(1); }
  Extent range(int64_t c) const {
    const float* r = ranges.const_data_ptr<float>() + 2 * c;
    return {r[0], r[1]};
  }
  const int64_t* row(int64_t c) const { return counts.const_data_ptr<int64_t>() + c * bins(); }
};

// A state comes from the caller, who may have read it from a file: bins are found from its values.
inline Histograms checked(const Tensor& ranges, const Tensor& counts) {
  const Histograms h{ranges, counts};
  STD_TORCH_CHECK(ranges.dim() == 2 && counts.dim() == 2 && ranges.size(0) == counts.size(0) &&
                      ranges.size(0) > 0 && ranges.size(1) == 2 && ranges.is_cpu() &&
                      counts.is_cpu() && ranges.is_contiguous() && counts.is_contiguous(),
                  "ranges [C, 2] and counts [C, n] must be contiguous tensors in host memory");
  check_num_of_bins(h.bins());
  for (int64_t c = 0; c < h.rows(); ++c) {
    const Extent e = h.range(c);
    STD_TORCH_CHECK(e.empty() || std::isfinite(e.hi - e.lo),
                    "ranges must be finite or, without values, (inf, -inf), got [", e.lo, ", ",
                    e.hi, "]");
    STD_TORCH_CHECK(std::all_of(h.row(c), h.row(c) + h.bins(), [](int64_t n) { return n >= 0; }),
                    "counts must not be negative");
  }
  return h;
}

// Adds row c of a histogram to counts over the range `to`, which contains its own.
inline void rebin(const Histograms& h, int64_t c, Extent to, int64_t* counts) {
  const Extent from = h.range(c);
  const int64_t* old = h.row(c);
  const int64_t n = h.bins();
  if (from.empty()) return;
  const auto close = [](float a, float b) { return std::abs(a - b) <= kScaleFloor; };
  if (close(from.lo, to.lo) && close(from.hi, to.hi)) {
    for (int64_t i = 0; i < n; ++i) counts[i] += old[i];
    return;
  }
  const float bins = static_cast<float>(n);
  const float old_width = (from.hi - from.lo) / bins, width = (to.hi - to.lo) / bins;
  for (int64_t k = 0; k < n; ++k) {
    if (old[k] == 0) continue;
    const float lower = from.lo + static_cast<float>(k) * old_width;
    const float upper = from.lo + static_cast<float>(k + 1) * old_width;
    const int64_t i = std::min(floor_divide(lower - to.lo, width), n - 1);
    const int64_t j = std::min(floor_divide(upper - to.lo, width), n - 1);
    int64_t low = old[k];
    if (i != j) {
      const float edge = to.lo + static_cast<float>(i + 1) * width;
      const float share = (edge - lower) / (upper - lower);
      low = std::clamp<int64_t>(static_cast<int64_t>(static_cast<float>(low) * share), 0, low);
    }
    counts[i] += low;
    counts[j] += old[k] - low;
  }
}

inline std::tuple<Tensor, Tensor> new_histograms(const std::vector<Extent>& ranges,
                                                 const std::vector<int64_t>& counts) {
  const int64_t rows = ranges.size(), n = counts.size() / rows;
  const Histograms h{torch::stable::empty({rows, 2}, ScalarType::Float),
                     torch::stable::empty({rows, n}, ScalarType::Long)};
  for (int64_t c = 0; c < rows; ++c) {
    h.ranges.mutable_data_ptr<float>()[2 * c] = ranges[c].lo;
    h.ranges.mutable_data_ptr<float>()[2 * c + 1] = ranges[c].hi;
  }
  std::copy(counts.begin(), counts.end(), h.counts.mutable_data_ptr<int64_t>());
  return {h.ranges, h.counts};
}

// The union of two ranges, which float32 must be able to measure.
inline Extent joined(Extent a, Extent b) {
  const Extent e{std::min(a.lo, b.lo), std::max(a.hi, b.hi)};
  STD_TORCH_CHECK(e.empty() || std::isfinite(e.hi - e.lo),
                  "x spans a range that float32 cannot hold: [", e.lo, ", ", e.hi, "]");
  return e;
}

std::tuple<Tensor, Tensor> hfmg_update(const Tensor& x, const Tensor& ranges, const Tensor& counts,
                                       std::optional<int64_t> axis) {
  check_not_empty(x);
  const Histograms old = checked(ranges, counts);
  const auto rows = histogram_rows(x, axis);
  STD_TORCH_CHECK(rows.count == old.rows(), "x must have ", old.rows(), " channels, got ",
                  rows.count);
  std::vector<Extent> now = extents(rows);
  for (int64_t c = 0; c < rows.count; ++c) now[c] = joined(now[c], old.range(c));
  std::vector<int64_t> sums = histograms(rows, now, old.bins());
  for (int64_t c = 0; c < rows.count; ++c) rebin(old, c, now[c], sums.data() + c * old.bins());
  return new_histograms(now, sums);
}

#if !defined(USE_CUDA)

std::tuple<Tensor, Tensor> hfmg_merge(const Tensor& ranges, const Tensor& counts,
                                      const Tensor& other_ranges, const Tensor& other_counts) {
  const Histograms a = checked(ranges, counts), b = checked(other_ranges, other_counts);
  STD_TORCH_CHECK(a.rows() == b.rows() && a.bins() == b.bins(), "expected histograms of ", a.rows(),
                  " channels and ", a.bins(), " bins, got ", b.rows(), " and ", b.bins());
  std::vector<Extent> now;
  std::vector<int64_t> sums(a.rows() * a.bins());
  for (int64_t c = 0; c < a.rows(); ++c) {
    now.push_back(joined(a.range(c), b.range(c)));
    rebin(a, c, now[c], sums.data() + c * a.bins());
    rebin(b, c, now[c], sums.data() + c * a.bins());
  }
  return new_histograms(now, sums);
}

std::tuple<Tensor, Tensor> hfmg_search(const Tensor& ranges, const Tensor& counts, int64_t num_bits,
                                       bool asymmetric) {
  check_num_bits(num_bits);
  const Histograms h = checked(ranges, counts);
  Tensor scale = torch::stable::empty({h.rows()}, ScalarType::Float);
  Tensor offset = torch::stable::empty({h.rows()}, ScalarType::Int);
  for (int64_t c = 0; c < h.rows(); ++c) {
    const Extent e = h.range(c);
    STD_TORCH_CHECK(!e.empty(), "a histogram without values has no factors");
    ScaleOffset factors = factors_of_range(e.lo, e.hi, num_bits, asymmetric);
    if (e.lo < e.hi) {
      const HfmgLoss loss(h.row(c), h.bins(), num_bits);
      const std::vector<BinRange> candidates = hfmg_candidates(h.row(c), h.bins());
      std::vector<double> losses(candidates.size());
      double good = HUGE_VAL;  // one of the losses, and not a bad one
      for (size_t i = 0; i < candidates.size(); i += kSampled)
        good = std::min(good, loss(candidates[i]));
      torch::stable::parallel_for(
          0, candidates.size(), kCandidatesPerThread, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i)
              losses[i] = loss.clipped(candidates[i]) > good ? HUGE_VAL : loss(candidates[i]);
          });
      const auto least = std::min_element(losses.begin(), losses.end()) - losses.begin();
      factors = hfmg_factors(e.lo, e.hi, h.bins(), candidates[least], num_bits, asymmetric);
    }
    STD_TORCH_CHECK(std::isfinite(factors.scale), "x spans a range that float32 cannot hold");
    scale.mutable_data_ptr<float>()[c] = factors.scale;
    offset.mutable_data_ptr<int32_t>()[c] = factors.offset;
  }
  return {scale, offset};
}

#else

// The search is host code, registered once.
inline std::tuple<Tensor, Tensor> hfmg_search(const Tensor& ranges, const Tensor& counts,
                                              int64_t num_bits, bool asymmetric) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 4> stack{from(ranges), from(counts), from(num_bits), from(asymmetric)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("amct_pytorch::hfmg_search", "", stack.data(), TORCH_ABI_VERSION));
  return {to<Tensor>(stack[0]), to<Tensor>(stack[1])};
}
#endif

std::tuple<Tensor, Tensor> hfmg(const Tensor& x, int64_t num_bits, bool asymmetric,
                                int64_t num_of_bins, std::optional<int64_t> axis) {
  check_num_bits(num_bits);
  check_num_of_bins(num_of_bins);
  check_not_empty(x);
  const int64_t channels = axis.has_value() ? x.size(check_axis(x, *axis)) : 1;
  const auto none = new_histograms(std::vector<Extent>(channels, kNoValues),
                                   std::vector<int64_t>(channels * num_of_bins));
  const auto [ranges, counts] = hfmg_update(x, std::get<0>(none), std::get<1>(none), axis);
  auto [scale, offset] = hfmg_search(ranges, counts, num_bits, asymmetric);
  if (!axis.has_value()) {
    scale = torch::stable::reshape(scale, {});
    offset = torch::stable::reshape(offset, {});
  }
  return {torch::stable::to(scale, x.device()), torch::stable::to(offset, x.device())};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("hfmg", TORCH_BOX(&hfmg));
  m.impl("hfmg_update", TORCH_BOX(&hfmg_update));
#if !defined(USE_CUDA)
  m.impl("hfmg_merge", TORCH_BOX(&hfmg_merge));
  m.impl("hfmg_search", TORCH_BOX(&hfmg_search));
#endif
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
