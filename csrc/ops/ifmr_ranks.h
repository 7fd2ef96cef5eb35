// ifmr_ranks.h - the k-th largest and smallest values, with the help of a sketch. Host code.
#pragma once
#include <algorithm>
#include <cstdint>
#include <functional>
#include <vector>

#include "ifmr_search.h"
#include "ifmr_sketch.h"

namespace amct {

// The k-th largest magnitude of one sign, as the last of so many of one bucket or of the rest.
inline Largest place_of(const Sketch& sketch, bool negative, int64_t k) {
  Largest place{{}, k};
  sketch.for_each_inwards(negative, [&](const Bucket& b) {
    if (place.count > b.count) {
      place.count -= b.count;
      return true;
    }
    place.span = b.is_known() ? Span{b.known(), b.known()} : Span{b.first, b.first + b.span};
    return false;
  });
  if (place.span.empty()) place.span = {1, sketch.layout.least() - 1};  // of the rest
  return place;
}

// The k-th largest of some magnitudes, or 0 where they are fewer.
inline float kth_largest(std::vector<uint32_t>& magnitudes, int64_t k) {
  if (k > static_cast<int64_t>(magnitudes.size())) return 0;
  const auto kth = magnitudes.begin() + k - 1;
  std::nth_element(magnitudes.begin(), kth, magnitudes.end(), std::greater<>());
  return float_of_bits(*kth);
}

// [lo, hi] of the percentiles, widened to contain zero.
struct Ends {
  float lo, hi;
};

// The `size` largest magnitudes of one sign so far, outermost first and then zeros.
struct Tail {
  float* values;  // negative ones for the low tail
  int64_t size;

  // What a tail needs of the values that have just joined `sketch`.
  Largest wanted(const Sketch& sketch, bool negative) const {
    const uint32_t first = place_of(sketch, negative, size).span.first;
    const uint32_t last = float_bits(values[size - 1]) & ~kSign;  // what it has anyway
    return {{std::max(first, last + 1), ~kSign}, size};
  }

  std::vector<uint32_t> magnitudes() const {
    std::vector<uint32_t> found;
    for (int64_t i = 0; i < size && values[i] != 0; ++i)
      found.push_back(float_bits(values[i]) & ~kSign);
    return found;
  }

  void add(std::vector<uint32_t> more, bool negative) {
    std::sort(more.begin(), more.end(), std::greater<>());
    std::vector<uint32_t> all(size + more.size()), own(size);
    for (int64_t i = 0; i < size; ++i) own[i] = float_bits(values[i]) & ~kSign;
    std::merge(own.begin(), own.end(), more.begin(), more.end(), all.begin(), std::greater<>());
    for (int64_t i = 0; i < size; ++i)
      values[i] = float_of_bits(all[i] | (negative && all[i] != 0 ? kSign : 0));
  }
};

}  // namespace amct
