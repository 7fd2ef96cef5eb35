// hfmg_search.h - which range of bins of a histogram to keep, for HFMG. Host code.
//
// Candidates [L, R] of n bins, found from both ends: a step takes from each end the bins that
// hold at least max(ceil(T / 100000), 1) of the T values, and drops those of the end that had
// to take more bins for it, until no more than n / 4 bins are left.
//
// Loss of a candidate: its m = R - L + 1 bins are divided into K = 2^b equal cells, values are
// uniform within a bin, and each is charged the square of its distance to the centre of its
// cell; bins outside [L, R] belong to the first and the last cell. In units of the bin width:
//   sum over bins i of h_i * integral from i to i + 1 of (y - centre(y))^2 dy
// It is taken in double, from exact integer sums of h, h i and h i^2, cell by cell: O(K) a
// candidate, for those that bins outside do not rule out by themselves. The first least loss wins.
//
// The published search differs in three ways, which it is not worth keeping:
// - it never tries the whole histogram, and takes what the first step leaves unseen when an
//   outlier makes that the only candidate. Here [0, n - 1] is the last candidate: it wins
//   only where it is strictly better than every published one (flat data, few values, outliers
//   that matter);
// - it takes the loss for 0 where a cell is narrower than 2^-23, so small values lose most of their
//   range; bin units need no such floor;
// - it counts in int32 and float32, which saturates at 2^24 values in a bin.
// Kept: the loss knows nothing of symmetry, nor that 0 must be a level.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../quant_math.h"

namespace amct {

struct BinRange {
  int64_t first, last;
  int64_t size() const { return last - first + 1; }
};

inline std::vector<BinRange> hfmg_candidates(const int64_t* counts, int64_t n) {
  constexpr int64_t kSteps = 100000;  // a step takes this fraction of the values from each end
  constexpr int64_t kLeast = 4;       // 1 / kLeast of the bins are always kept
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) total += counts[i];
  const int64_t share = std::max<int64_t>((total + kSteps - 1) / kSteps, 1);
  std::vector<BinRange> candidates;
  BinRange now{0, n - 1};
  while (now.last - now.first > n / kLeast) {
    BinRange next = now;
    for (int64_t sum = 0; next.first < next.last && sum < share; ++next.first)
      sum += counts[next.first];
    for (int64_t sum = 0; next.first < next.last && sum < share; --next.last)
      sum += counts[next.last];
    if (now.last - next.last >= next.first - now.first) {
      now.last = next.last;
    } else {
      now.first = next.first;
    }
    candidates.push_back(now);
  }
  candidates.push_back({0, n - 1});
  return candidates;
}

// integral of y^2 from a to b
inline double square_integral(double a, double b) { return (b - a) * (a * a + a * b + b * b) / 3; }

class HfmgLoss {
 public:
  HfmgLoss(const int64_t* counts, int64_t n, int64_t num_bits)
      : counts_(counts), n_(n), num_bits_(num_bits), sums_(n + 1) {
    for (int64_t i = 0; i < n; ++i) {
      const int64_t h = counts[i];
      sums_[i + 1] = {sums_[i].h + h, sums_[i].hi + h * i, sums_[i].hii + h * i * i};
    }
  }

  double operator()(const BinRange& r) const {
    return r.size() >= cells() ? by_cells(r) : by_bins(r);
  }

  // The part of the loss that bins outside [L, R] are charged with, in O(1) and a little less than
  // it is: no loss is below it.
  double clipped(const BinRange& r) const {
    constexpr double kRounding = 1 - 1e-6;
    const double half = static_cast<double>(r.size()) / static_cast<double>(2 * cells());
    const double first = static_cast<double>(r.first) + half;
    const double last = static_cast<double>(r.last + 1) - half;
    return kRounding * (whole(0, r.first, first) + whole(r.last + 1, n_, last));
  }

 private:
  // Of the bins before i: sums of h, h i, h i^2. With up to 2^13 bins, good for 2^37 values.
  struct Sums {
    int64_t h = 0, hi = 0, hii = 0;
  };

  int64_t cells() const { return int64_t{1} << num_bits_; }

  // Bins [begin, end) charged to `centre`: the sum of h_i ((i + 1/2 - centre)^2 + 1/12).
  double whole(int64_t begin, int64_t end, double centre) const {
    const Sums &a = sums_[begin], &b = sums_[end];
    const int64_t near = static_cast<int64_t>(centre);
    const int64_t h = b.h - a.h, hi = b.hi - a.hi, hii = b.hii - a.hii;
    const double d = centre - 0.5 - static_cast<double>(near);
    const double first = static_cast<double>(hi - near * h);
    const double second = static_cast<double>(hii - near * (2 * hi - near * h));
    return second - 2 * d * first + (d * d + 1.0 / 12) * static_cast<double>(h);
  }

  // Cells of at least one bin: whole bins, and parts of the bins that a cell edge cuts.
  double by_cells(const BinRange& r) const {
    const int64_t m = r.size();
    const double cell = 1.0 / static_cast<double>(cells());
    double loss = 0, cut = 0;  // `cut`: the part of bin `edge` before the edge of the cell
    for (int64_t j = 0, edge = r.first; j < cells(); ++j) {
      const double centre =
          static_cast<double>(r.first) + static_cast<double>((2 * j + 1) * m) * cell / 2;
      const int64_t begin = j == 0 ? 0 : edge + (cut > 0 ? 1 : 0);
      if (cut > 0)
        loss += static_cast<double>(counts_[edge]) *
                square_integral(static_cast<double>(edge) + cut - centre,
                                static_cast<double>(edge + 1) - centre);
      edge = r.first + ((j + 1) * m >> num_bits_);
      cut = static_cast<double>((j + 1) * m & (cells() - 1)) * cell;
      loss += whole(begin, j == cells() - 1 ? n_ : edge, centre);
      if (cut > 0)
        loss += static_cast<double>(counts_[edge]) *
                square_integral(static_cast<double>(edge) - centre,
                                static_cast<double>(edge) + cut - centre);
    }
    return loss;
  }

  // Cells narrower than a bin: the same share of every bin's values lies in each of its cells.
  double by_bins(const BinRange& r) const {
    const int64_t m = r.size();
    const double cell = static_cast<double>(m) / static_cast<double>(cells());
    const auto centre = [&](int64_t j) { return (static_cast<double>(j) + 0.5) * cell; };
    double loss = whole(0, r.first, static_cast<double>(r.first) + cell / 2) +
                  whole(r.last + 1, n_, static_cast<double>(r.last + 1) - cell / 2);
    for (int64_t i = 0; i < m; ++i) {
      const int64_t h = counts_[r.first + i];
      if (h == 0) continue;
      const int64_t p = (i << num_bits_) / m, q = std::min(((i + 1) << num_bits_) / m, cells() - 1);
      const double begin = static_cast<double>(i), end = static_cast<double>(i + 1);
      const double cost =
          p == q ? square_integral(begin - centre(p), end - centre(p))
                 : square_integral(begin - centre(p), cell / 2) +
                       static_cast<double>(q - p - 1) * square_integral(-cell / 2, cell / 2) +
                       square_integral(-cell / 2, end - centre(q));
      loss += static_cast<double>(h) * cost;
    }
    return loss;
  }

  const int64_t* counts_;
  int64_t n_, num_bits_;
  std::vector<Sums> sums_;
};

// The factors of a range of bins of [lo, hi], in the float32 steps of the published search.
inline ScaleOffset hfmg_factors(float lo, float hi, int64_t n, const BinRange& r, int64_t num_bits,
                                bool asymmetric) {
  const float bins = static_cast<float>(n);
  const float end = lo + bins * ((hi - lo) / bins);  // the upper edge of the last bin
  const float width = (end - lo) / bins;
  return factors_of_range(lo + static_cast<float>(r.first) * width,
                          lo + static_cast<float>(r.last + 1) * width, num_bits, asymmetric);
}

}  // namespace amct
