// ifmr_state.inl - IFMR over batches: the ops on the state of amct_pytorch/calibrators/ifmr.py.
//
// The state of C channels is, in host memory,
//   tops int64 [C], counts and sums int64 [C, B]   sketches of ifmr_sketch.h
//   low, high float32 [C, K]   the smallest negative and largest positive values, outermost first,
//                              filled up with zeros
// or, of one channel of a 16-bit type, counts int64 [65536] of the values by their bits.
#pragma once
#include <atomic>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "ifmr.inl"

namespace amct {
namespace AMCT_DEVICE_NS {

struct State {
  Tensor tops, counts, sums, low, high;
  int bits = 0;

  State(const Tensor& tops_, const Tensor& counts_, const Tensor& sums_, const Tensor& low_,
        const Tensor& high_)
      : tops(tops_), counts(counts_), sums(sums_), low(low_), high(high_) {
    for (const Tensor& t : {tops, counts, sums})
      STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == ScalarType::Long,
                      "tops, counts and sums must be contiguous int64 tensors in host memory");
    for (const Tensor& t : {low, high})
      STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == ScalarType::Float,
                      "low and high must be contiguous float32 tensors in host memory");
    STD_TORCH_CHECK(tops.dim() == 1 && counts.dim() == 2 && low.dim() == 2 && high.dim() == 2,
                    "expected tops [C], counts and sums [C, B], low and high [C, K]");
    for (const Tensor& t : {counts, sums, low, high})
      STD_TORCH_CHECK(t.size(0) == tops.size(0), "counts, sums, low and high must have ",
                      tops.size(0), " rows, one for each of tops, got ", t.size(0));
    for (int b = kLeastBits; b <= kMostBits && bits == 0; ++b)
      if (Layout{b, 0}.size() == counts.size(1)) bits = b;
    STD_TORCH_CHECK(bits != 0 && sums.size(1) == counts.size(1),
                    "counts and sums must have as many columns as a sketch has buckets, got ",
                    counts.size(1), " and ", sums.size(1));
  }

  int64_t channels() const { return tops.size(0); }
  Sketch sketch(int64_t c) const {
    return {{bits, static_cast<int>(static_cast<int64_t*>(tops.data_ptr())[c])},
            static_cast<int64_t*>(counts.data_ptr()) + c * counts.size(1),
            static_cast<int64_t*>(sums.data_ptr()) + c * counts.size(1)};
  }
  Tail tail(int64_t c, bool negative) const {
    const Tensor& t = negative ? low : high;
    return {static_cast<float*>(t.data_ptr()) + c * t.size(1), t.size(1)};
  }
  // Adds a sketch of the same `bits`.
  Sketch add(int64_t c, Sketch other) const {
    Sketch own = sketch(c);
    own.raise(other.layout.top);
    own.add(other);
    static_cast<int64_t*>(tops.data_ptr())[c] = own.layout.top;
    return own;
  }

 private:
  static constexpr int kLeastBits = 4, kMostBits = 17;
};

void ifmr_update(const Tensor& x, const Tensor& tops, const Tensor& counts, const Tensor& sums,
                 const Tensor& low, const Tensor& high, std::optional<int64_t> axis) {
  check_not_empty(x);
  const State state(tops, counts, sums, low, high);
  const Rows rows = rows_of(x, axis);
  STD_TORCH_CHECK(rows.count == state.channels(), "x must have ", state.channels(),
                  " channels, got ", rows.count);
  std::atomic<bool> finite{true};
  if (rows.count > 1)  // one row is known to be finite before anything is added
    for_each_row(rows, [&](int64_t, const Values& row) {
      for (const Peak& p : peaks_of(row))
        if (!p.is_finite()) finite = false;
    });
  for_each_row(rows, [&](int64_t c, const Values& row) {
    if (!finite) return;
    Collected seen = collect(row, state.bits, state.sketch(c).layout.top);
    if (!seen.peak().is_finite()) finite = false;
    if (!finite) return;
    const Sketch all = state.add(c, seen.sketch.view());
    Tail tails[] = {state.tail(c, false), state.tail(c, true)};
    const Extremes found =
        values_in(row, seen.peaks, tails[0].wanted(all, false), tails[1].wanted(all, true));
    tails[0].add(found.high, false);
    tails[1].add(found.low, true);
  });
  STD_TORCH_CHECK(finite, "x must be finite, got NaN or infinity");
}

void ifmr_count(const Tensor& x_, const Tensor& counts) {
  check_not_empty(x_);
  STD_TORCH_CHECK(is_half(x_), "x must be float16 or bfloat16, got ",
                  torch::headeronly::toString(x_.scalar_type()));
  STD_TORCH_CHECK(counts.is_cpu() && counts.is_contiguous() && counts.numel() == kHalfValues &&
                      counts.scalar_type() == ScalarType::Long,
                  "counts must be 65536 contiguous int64 elements in host memory");
  const Tensor x = dense(x_);
  const std::vector<int64_t> more = counts_of(x);
  STD_TORCH_CHECK(!counted(more.data(), x.scalar_type() == ScalarType::BFloat16).value.empty(),
                  "x must be finite, got NaN or infinity");
  auto* total = static_cast<int64_t*>(counts.data_ptr());
  for (int i = 0; i < kHalfValues; ++i) total[i] += more[i];
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ifmr_update", TORCH_BOX(&ifmr_update));
  m.impl("ifmr_count", TORCH_BOX(&ifmr_count));
}

#if !defined(USE_CUDA)

void ifmr_merge(const Tensor& tops, const Tensor& counts, const Tensor& sums, const Tensor& low,
                const Tensor& high, const Tensor& other_tops, const Tensor& other_counts,
                const Tensor& other_sums, const Tensor& other_low, const Tensor& other_high) {
  const State state(tops, counts, sums, low, high);
  const State other(other_tops, other_counts, other_sums, other_low, other_high);
  STD_TORCH_CHECK(state.channels() == other.channels() && state.bits == other.bits, "expected ",
                  state.channels(), " sketches of ", state.bits, " bits, got ", other.channels(),
                  " of ", other.bits);
  for (int64_t c = 0; c < state.channels(); ++c) {
    OwnSketch copy(other.sketch(c));
    state.add(c, copy.view());
    for (const bool negative : {false, true})
      state.tail(c, negative).add(other.tail(c, negative).magnitudes(), negative);
  }
}

// Adds values of a 16-bit type that were counted.
void ifmr_add_counts(const Tensor& half_counts, bool is_bfloat16, const Tensor& tops,
                     const Tensor& counts, const Tensor& sums, const Tensor& low,
                     const Tensor& high) {
  const State state(tops, counts, sums, low, high);
  const Counted x = counted(half_counts.const_data_ptr<int64_t>(), is_bfloat16);
  Peak peak;
  for (const float v : x.value) peak.extend({float_bits(v) & ~kSign, 0});
  OwnSketch own(Layout{state.bits, peak.exponent()});
  std::vector<uint32_t> tails[2];
  for (size_t i = 0; i < x.value.size(); ++i) {
    const uint32_t bits = float_bits(x.value[i]);
    own.view().add({bits & ~kSign, 0, static_cast<int64_t>(x.weight[i]), 0}, bits & kSign);
    auto& tail = tails[bits & kSign ? 1 : 0];
    const auto most = static_cast<double>(state.tail(0, bits & kSign).size);
    tail.insert(tail.end(), static_cast<size_t>(std::min(x.weight[i], most)), bits & ~kSign);
  }
  state.add(0, own.view());
  for (const bool negative : {false, true}) state.tail(0, negative).add(tails[negative], negative);
}

// The end of a range, and whether it is exact: beyond what the tail holds it is the mean of a
// bucket.
struct End {
  float magnitude;
  bool exact;
};

inline End end_of(const Sketch& sketch, const Tail& tail, bool negative, int64_t k) {
  if (k <= tail.size) return {std::abs(tail.values[k - 1]), true};
  const Largest place = place_of(sketch, negative, k);
  if (place.span.is_one()) return {float_of_bits(place.span.first), true};
  if (tail.values[tail.size - 1] == 0) return {0, true};  // it holds all values of its sign
  if (place.span.last < sketch.layout.least()) return {0, false};
  Bucket in{};
  sketch.for_each_inwards(negative, [&](const Bucket& b) {
    in = b;
    return b.first != place.span.first;
  });
  return {static_cast<float>(in.mean()), false};
}

// The values of a sketch, if each is known; the rest is left out. Empty otherwise.
inline Counted known_values(const Sketch& sketch) {
  Counted found;
  bool known = true;
  for (const bool negative : {false, true})
    sketch.for_each_inwards(negative, [&](const Bucket& b) {
      found.value.push_back(float_of_bits(b.known() | (negative ? kSign : 0)));
      found.weight.push_back(static_cast<double>(b.count));
      return known = b.is_known();
    });
  return known ? found : Counted{};
}

// The candidate with the least loss, where the sketch tells; of no scale otherwise.
inline Candidate least_known(const Sketch& sketch, const std::vector<Candidate>& survivors) {
  if (survivors.size() == 1) return survivors[0];
  for (const Candidate& c : survivors)  // the rest must be at level 0
    if (sketch.layout.least_value() > 0.25f * c.scale) return {};
  const Counted known = known_values(sketch);
  return known.value.empty() ? Candidate{} : least_of(losses_of(known, survivors), survivors);
}

std::tuple<Tensor, Tensor, Tensor> ifmr_search(
    const Tensor& tops, const Tensor& counts, const Tensor& sums, const Tensor& low,
    const Tensor& high, int64_t num_bits, bool asymmetric, double max_percentile,
    double min_percentile, std::vector<double> search_range, double search_step) {
  const IfmrOptions options =
      ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  const State state(tops, counts, sums, low, high);
  const int64_t channels = state.channels();
  std::vector<Found> found(channels);
  FoundFactors factors(channels);
  Tensor certified = torch::stable::empty({channels}, ScalarType::Bool);
  auto* proven = static_cast<bool*>(certified.data_ptr());
  torch::stable::parallel_for(0, channels, channels == 1 ? 2 : 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      const Sketch sketch = state.sketch(c);
      const int64_t n = sketch.values();
      const auto [lo, lo_exact] =
          end_of(sketch, state.tail(c, true), true, percentile_rank(min_percentile, n));
      const auto [hi, hi_exact] =
          end_of(sketch, state.tail(c, false), false, percentile_rank(max_percentile, n));
      const std::vector<Candidate> candidates = ifmr_candidates(-lo, hi, options);
      const std::vector<Bounds> bounds = bounds_of(sketch, candidates);
      const std::vector<Candidate> survivors = survivors_of(bounds, candidates);
      if (survivors.empty()) continue;
      found[c].candidate = least_known(sketch, survivors);
      const bool is_least = found[c].candidate.scale > 0;
      if (!is_least) found[c].candidate = likeliest(bounds, candidates);
      proven[c] = lo_exact && hi_exact && is_least;
    }
  });
  for (const Found& f : found) f.check();
  for (int64_t c = 0; c < channels; ++c) factors.set(c, found[c].candidate, options);
  return {factors.scale, factors.offset, certified};
}

std::tuple<Tensor, Tensor> ifmr_search_counts(const Tensor& counts, bool is_bfloat16,
                                              int64_t num_bits, bool asymmetric,
                                              double max_percentile, double min_percentile,
                                              std::vector<double> search_range,
                                              double search_step) {
  const IfmrOptions options =
      ifmr_options(num_bits, asymmetric, max_percentile, min_percentile, search_range, search_step);
  const Found found = found_in_counts(counts.const_data_ptr<int64_t>(), is_bfloat16, options);
  found.check();
  FoundFactors factors(1);
  factors.set(0, found.candidate, options);
  return {factors.scale, factors.offset};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ifmr_merge", TORCH_BOX(&ifmr_merge));
  m.impl("ifmr_add_counts", TORCH_BOX(&ifmr_add_counts));
  m.impl("ifmr_search", TORCH_BOX(&ifmr_search));
  m.impl("ifmr_search_counts", TORCH_BOX(&ifmr_search_counts));
}
#endif

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
