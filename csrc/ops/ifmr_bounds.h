// ifmr_bounds.h - the losses of IFMR from a sketch: bounds that hold, and an estimate. Host code.
//
// Of a bucket with n values of mean mu, all of which a candidate sends to level v,
//   sum (x - v)^2 = n (mu - v)^2 + W,  W = sum (x - mu)^2
// exactly, and W, the same for all candidates, is left out. Where level v changes to v' within
// the bucket [a, e], at the first float32 tau of level v',
//   sum (x - level(x))^2 = n (mu - v)^2 + W - 2 (v' - v) G
//   G = sum over x >= tau of (x - (v + v') / 2) = H + (tau - (v + v') / 2) #{x >= tau}
//   H = sum (x - tau)^+,  n (mu - tau)^+ <= H <= n (mu - a) (e - tau) / (e - a)
// by Jensen's inequality and the chord of a convex function. The estimate of H takes a linear
// density of mean mu. A bucket is crossed by one step only: it is no wider than 2^-13 of its
// values, which within the range are at most 2^b s, with b <= 8, or than a small part of s.
//
// The first least estimate wins. It is certified to be the first least loss where the bounds of
// every other candidate lie above its own.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "../loops.h"
#include "ifmr_search.h"
#include "ifmr_sketch.h"

namespace amct {

// Buckets as columns.
struct Cells {
  std::vector<float> lo, hi;  // the ends of each bucket, as values
  std::vector<double> mean, count;
  double squares = 0;  // sum of count mean^2
  int64_t size() const { return lo.size(); }
};

// Leaves out the buckets that every candidate sends to level 0. Where there are very many, joins
// neighbours as long as they are narrow against a step.
inline Cells cells_of(const Sketch& sketch, const std::vector<Candidate>& candidates) {
  constexpr int64_t kMany = 32768;
  constexpr float kNarrow = 1.0f / 128;  // of a step
  float step = std::numeric_limits<float>::infinity();
  for (const Candidate& c : candidates) step = std::min(step, c.scale);
  const float width = sketch.occupied() > kMany ? kNarrow * step : 0;

  Cells cells;
  const auto add = [&](const Bucket& b) {
    const auto [lo, hi] = b.is_known() ? std::minmax({b.known(), b.known()})
                                       : std::minmax({b.inner_end(), b.outer_end()});
    const double n = static_cast<double>(b.count), mean = b.is_known() ? b.known() : b.mean();
    cells.lo.push_back(lo);
    cells.hi.push_back(hi);
    cells.mean.push_back(mean);
    cells.count.push_back(n);
    cells.squares += n * mean * mean;
  };
  Bucket joined{};
  sketch.for_each([&](const Bucket& b) {
    if (std::abs(b.outer_end()) < 0.49f * step) return;
    const bool same_page = b.first >> kPageShift == joined.first >> kPageShift;
    if (joined.count > 0 && same_page && std::abs(b.outer_end() - joined.inner_end()) <= width) {
      const uint32_t offset = b.first - joined.first;
      joined = {joined.first, offset + b.span, joined.count + b.count,
                joined.sum + b.sum + b.count * offset};
      return;
    }
    if (joined.count > 0) add(joined);
    joined = b;
  });
  if (joined.count > 0) add(joined);
  return cells;
}

struct Bounds {
  double lower, upper, estimate;
};

// n cells charged to the level of their lower end; `cut` says which have another at the upper end.
inline AMCT_CLONES void charge(const float* lo, const float* hi, const double* mean,
                               const double* count, int n, const Candidate c,
                               double (&lanes)[kLanes], uint8_t* cut) {
  double terms[kBlock];
  for (int i = 0; i < n; ++i) {
    const float level_lo = level(lo[i], c), level_hi = level(hi[i], c);
    const double error = mean[i] - level_lo;
    terms[i] = count[i] * error * error;
    cut[i] = level_lo != level_hi;
  }
  for (int i = n; i % 8 != 0; ++i) cut[i] = 0;
  for (int i = n; i < (n + kLanes - 1) / kLanes * kLanes; ++i) terms[i] = 0;
  for (int i = 0; i < n; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += terms[i + j];
}

// The first float32 in (lo, hi] that has the level of hi.
inline float step_between(float lo, float hi, const Candidate& c) {
  const float low_level = level(lo, c);
  const double guess = (std::rint(low_level / c.scale) + 0.5) * c.scale;
  float tau = std::clamp(static_cast<float>(guess), lo, hi);
  while (level(tau, c) == low_level) tau = std::nextafter(tau, hi);
  for (float below; level(below = std::nextafter(tau, lo), c) != low_level;) tau = below;
  return tau;
}

// What a cut cell adds to its charge.
inline void add_cut(const Cells& cells, int64_t i, const Candidate& c, Bounds& total) {
  const double n = cells.count[i], mean = cells.mean[i], lo = cells.lo[i], hi = cells.hi[i];
  const double low_level = level(cells.lo[i], c), high_level = level(cells.hi[i], c);
  const double tau = step_between(cells.lo[i], cells.hi[i], c);
  const double width = hi - lo, t = (tau - lo) / width, slope = 6 * (mean - lo) / width - 3;
  const double least = n * std::max(0.0, mean - tau), most = n * (mean - lo) * (1 - t);
  const double likely = n * width * (1 - t) * (1 - t) / 2 * (1 + slope * (1 + 2 * t) / 3);
  const double shift = tau - (low_level + high_level) / 2, gain = 2 * (high_level - low_level);
  total.upper -= gain * (least + std::min(0.0, n * shift));
  total.lower -= gain * (most + std::max(0.0, n * shift));
  total.estimate -= gain * (std::clamp(likely, least, std::max(least, most)) + n * (1 - t) * shift);
}

inline Bounds ifmr_bounds(const Cells& cells, const Candidate& c) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (!std::isfinite(c.scale)) return {kInfinity, kInfinity, kInfinity};
  double lanes[kLanes] = {};
  Bounds total{};
  uint8_t cut[kBlock];
  for (int64_t i = 0; i < cells.size(); i += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, cells.size() - i));
    charge(&cells.lo[i], &cells.hi[i], &cells.mean[i], &cells.count[i], n, c, lanes, cut);
    for_each_mark(cut, n, [&](int k) { add_cut(cells, i + k, c, total); });
  }
  double charged = 0;
  for (const double lane : lanes) charged += lane;
  // Rounding: of the sum, and of mean - level, which is relative to the mean.
  const double slack = 0x1p-40 * charged + 0x1p-50 * std::sqrt(charged * cells.squares);
  return {charged + total.lower - slack, charged + total.upper + slack, charged + total.estimate};
}

struct Choice {
  int64_t index;
  bool certified;
};

inline Choice least_loss(const std::vector<Bounds>& bounds,
                         const std::vector<Candidate>& candidates) {
  const auto best =
      std::min_element(bounds.begin(), bounds.end(),
                       [](const Bounds& a, const Bounds& b) { return a.estimate < b.estimate; });
  const int64_t index = best - bounds.begin(), count = bounds.size();
  const auto same = [&](const Candidate& c) {
    const Candidate& b = candidates[index];
    return c.lo == b.lo && c.hi == b.hi && c.scale == b.scale;
  };
  bool certified = true;
  for (int64_t i = 0; i < count; ++i) {
    const bool loses = i < index ? bounds[i].lower > best->upper : bounds[i].lower >= best->upper;
    if (!loses && !same(candidates[i])) certified = false;
  }
  return {index, certified};
}

}  // namespace amct
