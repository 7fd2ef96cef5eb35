// ifmr_bounds.h - the losses of IFMR from a sketch: bounds that hold, and an estimate. Host code.
//
// Going outwards from zero, a candidate's level changes from v to v' at some float32 tau close to
// m = (v + v') / 2. Of all values x beyond tau that changes (x - v)^2 by -2 (v' - v) (x - m), so
//   L = sum x^2 - sum over the levels of 2 (v' - v) G,   G = sum over x >= tau of (x - m)
// and sum x^2, the same for all candidates, is left out. A sketch tells the sum and the number of
// the values beyond a bucket exactly; in the bucket [a, e] that holds m, with n values of mean mu,
//   n (mu - m)^+ <= sum (x - m)^+ <= n (mu - a) (e - m) / (e - a)
// by Jensen's inequality and the chord of a convex function. The estimate takes a linear density
// of mean mu. Values between tau and m lie within kNear of m, that of the roundings of x / scale
// and of both levels, and add no more than that each. Values far outside the range may leave less
// to a double than the candidates differ by; none is told from another then.
//
// The first least estimate wins. It is certified to be the first least loss where the bounds of
// every other candidate lie above its own; all others that reach below it are survivors.
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

constexpr double kNear = 0x1p-22;  // relative to m

// Number and sum of the magnitudes of one sign beyond each bucket of a sketch.
struct Beyond {
  std::vector<double> count, sum;
  double all = 0, total = 0;  // of all buckets but the rest
  double squares = 0;         // at least the sum of squares
};

inline Beyond beyond_of(const Sketch& sketch, bool negative) {
  const int side = sketch.layout.side(), from = negative ? side : 0;
  Beyond beyond{std::vector<double>(side), std::vector<double>(side)};
  for (int below = 0; below < sketch.layout.octaves() && below < sketch.layout.top; ++below) {
    const Octave o = sketch.layout.octave(below);
    const double ulp = std::ldexp(1.0, o.exponent - 127 - kFractionBits);
    for (int i = o.count - 1; i >= 0; --i) {
      const int at = o.begin + i;
      beyond.count[at] = beyond.all;
      beyond.sum[at] = beyond.total;
      const auto n = static_cast<double>(sketch.count[from + at]);
      const double first = kHidden + static_cast<double>(static_cast<int64_t>(i) << o.shift);
      const double last = ulp * (first + (1 << o.shift));
      beyond.squares += n * last * last;
      beyond.all += n;
      beyond.total += ulp * (n * first + static_cast<double>(sketch.sum[from + at]));
    }
  }
  return beyond;
}

struct Bounds {
  double lower = 0, upper = 0, estimate = 0, rounded = 0;  // the last: of what rounding is a part
};

// sum of (x - m)^+ over one bucket.
struct Part {
  double least, most, likely;
};

inline Part part_of(const Bucket& b, double m) {
  const double n = static_cast<double>(b.count), near = kNear * m;
  if (b.is_known()) {
    const double beyond = float_of_bits(b.known()) - m, part = n * std::max(beyond, 0.0);
    const double slack = std::abs(beyond) <= near ? n * near : 0;
    return {part - slack, part + slack, part};
  }
  const double a = float_of_bits(b.first), e = float_of_bits(b.first + b.span), mean = b.mean();
  const double width = e - a, t = std::clamp((m - a) / width, 0.0, 1.0);
  const double least = n * std::max(0.0, mean - m), most = n * (mean - a) * (1 - t);
  const double slope = 6 * (mean - a) / width - 3;
  const double likely = n * width * (1 - t) * (1 - t) / 2 * (1 + slope * (1 + 2 * t) / 3);
  return {least - n * near, most + n * near, std::clamp(likely, least, std::max(least, most))};
}

// The gains of the levels of one sign.
inline void add_gains(const Sketch& sketch, const Beyond& beyond, const Candidate& c, bool negative,
                      Bounds& total) {
  const Layout& layout = sketch.layout;
  const int64_t steps = steps_of(negative ? -c.lo : c.hi, c.scale);
  const int64_t* counts = sketch.count + (negative ? layout.side() : 0);
  const int64_t* sums = sketch.sum + (negative ? layout.side() : 0);
  float outer = 0;
  for (int64_t j = 1; j <= steps; ++j) {
    const float inner = outer;
    outer = static_cast<float>(j) * c.scale;
    const double m = (static_cast<double>(inner) + outer) / 2;
    const double gain = 2 * (static_cast<double>(outer) - inner);
    const uint32_t magnitude = float_bits(static_cast<float>(m));
    const int below = layout.top - static_cast<int>(magnitude >> kFractionBits);
    if (below < 0) break;  // no value is beyond
    const int at = layout.index(magnitude);
    double count, sum;
    Part part;
    if (at < 0) {
      const double rest = static_cast<double>(sketch.count[layout.rest()]);
      count = beyond.all;
      sum = beyond.total;
      part = {0, rest * std::max(0.0, layout.least_value() - m), 0};
    } else {
      count = beyond.count[at];
      sum = beyond.sum[at];
      const uint32_t span = (1u << layout.shift_of(below)) - 1;
      const Bucket b{magnitude & ~span, span, counts[at], sums[at]};
      part = b.count == 0 ? Part{} : part_of(b, m);
      const double near = kNear * m;  // where the neighbours may hold values between tau and m
      double neighbours = 0;
      if (at > 0 && m - float_of_bits(b.first) <= near) neighbours += counts[at - 1];
      if (at + 1 < layout.side() && float_of_bits(b.first + span) - m <= near)
        neighbours += counts[at + 1];
      part.least -= neighbours * near;
      part.most += neighbours * near;
    }
    const double whole = sum - m * count;
    total.lower -= gain * (whole + part.most);
    total.upper -= gain * (whole + part.least);
    total.estimate -= gain * (whole + part.likely);
    total.rounded += gain * (sum + m * count + part.most);
  }
}

inline Bounds bounds_of(const Sketch& sketch, const Beyond (&beyond)[2], const Candidate& c) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr double kRounding = 0x1p-38;  // of these sums, and of losses summed over the values
  if (!std::isfinite(c.scale)) return {kInfinity, kInfinity, kInfinity, 0};
  Bounds total;
  for (const bool negative : {false, true}) add_gains(sketch, beyond[negative], c, negative, total);
  const double rounded = total.rounded + beyond[0].squares + beyond[1].squares;
  total.lower -= kRounding * rounded;
  total.upper += kRounding * rounded;
  return total;
}

inline std::vector<Bounds> bounds_of(const Sketch& sketch,
                                     const std::vector<Candidate>& candidates) {
  Beyond beyond[2];
  torch::stable::parallel_for(0, 2, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) beyond[i] = beyond_of(sketch, i == 1);
  });
  std::vector<Bounds> bounds(candidates.size());
  torch::stable::parallel_for(0, bounds.size(), 8, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) bounds[i] = bounds_of(sketch, beyond, candidates[i]);
  });
  return bounds;
}

// The candidates that may have the least loss, in their order; equal ones once.
inline std::vector<Candidate> survivors_of(const std::vector<Bounds>& bounds,
                                           const std::vector<Candidate>& candidates) {
  double least = std::numeric_limits<double>::infinity();
  for (const Bounds& b : bounds) least = std::min(least, b.upper);
  std::vector<Candidate> survivors;
  for (size_t i = 0; i < candidates.size(); ++i)
    if (bounds[i].lower <= least) survivors.push_back(candidates[i]);
  return distinct(survivors);
}

// The first least estimate.
inline Candidate likeliest(const std::vector<Bounds>& bounds,
                           const std::vector<Candidate>& candidates) {
  const auto best =
      std::min_element(bounds.begin(), bounds.end(),
                       [](const Bounds& a, const Bounds& b) { return a.estimate < b.estimate; });
  return candidates[best - bounds.begin()];
}

}  // namespace amct
