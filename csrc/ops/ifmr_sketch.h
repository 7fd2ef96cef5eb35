// ifmr_sketch.h - many float32 values in little memory, for IFMR.
//
// A bucket is the values that share their sign, their exponent and the first bits of the fraction.
// How many bits depends on the exponent alone: `bits` where it is `top`, that of the largest
// magnitude, and one less for each exponent below, so that buckets are equally wide, down to
// half of `bits`, from where on buckets become narrower with the values. What is smaller than
// kFloorExponents of those still, like zeros and denormals, shares the last bucket.
//
// A sketch holds for every bucket the number of its values and the sum of their other bits, that
// is, of the ulp by which they exceed the end of the bucket nearest to zero. These are integers,
// and a larger `top` only joins buckets: order, batches, threads and devices change no bit of it,
// and the mean of a bucket is exact.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../checks.h"
#include "../loops.h"

namespace amct {

constexpr int kFractionBits = 23, kFloorExponents = 24, kMostExponent = 255;
constexpr uint32_t kSign = 1u << 31, kHidden = 1u << kFractionBits;

AMCT_HD uint32_t float_bits(float v) {
  uint32_t bits;
  memcpy(&bits, &v, sizeof bits);
  return bits;
}

inline float float_of_bits(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

// The buckets of equal exponent, in the order of magnitude: begin, begin + 1, ...
struct Octave {
  int exponent, shift, begin, count;  // a bucket spans 2^shift floats
};

// Where a value goes. Positive values have the buckets 0 .. side() - 1, negative ones the next
// side(), and the smallest magnitudes of both signs the last one, rest().
struct Layout {
  int bits, top;

  AMCT_HD int floor_bits() const { return bits / 2; }
  AMCT_HD int side() const { return (2 << bits) + (kFloorExponents - 1) * (1 << floor_bits()); }
  AMCT_HD int rest() const { return 2 * side(); }
  AMCT_HD int size() const { return 2 * side() + 1; }

  AMCT_HD int shift_of(int below) const {  // of an exponent so much below the top
    const int shift = kFractionBits - bits + below;
    return shift < kFractionBits - floor_bits() ? shift : kFractionBits - floor_bits();
  }
  // The bucket of a magnitude with at most the exponent `top`; negative for the rest.
  AMCT_HD int index(uint32_t magnitude) const {
    const int below = top - static_cast<int>(magnitude >> kFractionBits);
    const int floors = below - (bits - floor_bits()) > 0 ? below - (bits - floor_bits()) : 0;
    const uint32_t fraction = (magnitude & (kHidden - 1)) | kHidden;
    const int place = static_cast<int>(fraction >> shift_of(below)) +
                      (kFloorExponents - 1 - floors) * (1 << floor_bits());
    return magnitude < kHidden ? -1 : place;
  }
  // The bits of a magnitude that its bucket leaves out.
  AMCT_HD uint32_t low(uint32_t magnitude) const {
    const int below = top - static_cast<int>(magnitude >> kFractionBits);
    return magnitude & ((1u << shift_of(below)) - 1);
  }

  int octaves() const { return bits - floor_bits() + 1 + kFloorExponents; }
  Octave octave(int below) const {
    const int shift = shift_of(below), count = 1 << (kFractionBits - shift);
    const int floors = std::max(below - (bits - floor_bits()), 0);
    return {top - below, shift, count + (kFloorExponents - 1 - floors) * (1 << floor_bits()),
            count};
  }
  // The smallest magnitude outside the rest.
  uint32_t least() const {
    const int exponent = top - (octaves() - 1);
    return static_cast<uint32_t>(std::max(exponent, 1)) << kFractionBits;
  }
  float least_value() const { return float_of_bits(least()); }
};

// Values with the magnitudes first, first + 1, ..., first + span.
struct Bucket {
  uint32_t first, span;
  int64_t count, sum;  // sum of (magnitude - first)

  // Whether the values are known: one, or equal ones at an end of the bucket.
  bool is_known() const { return count == 1 || sum == 0 || sum == count * span; }
  uint32_t known() const {
    return first + static_cast<uint32_t>(count == 1 ? sum : sum == 0 ? 0 : span);
  }
  double mean() const {  // of the magnitudes
    const double from = float_of_bits(first), to = float_of_bits(first + span);
    return span == 0 ? from : from + (to - from) * (static_cast<double>(sum) / count / span);
  }
};

// One channel of a sketch, in memory that others own.
struct Sketch {
  Layout layout;
  int64_t *count, *sum;  // layout.size() each

  Bucket bucket(const Octave& o, int i, bool negative) const {
    const int at = o.begin + i + (negative ? layout.side() : 0);
    const uint32_t first =
        static_cast<uint32_t>(o.exponent) << kFractionBits | static_cast<uint32_t>(i) << o.shift;
    return {first, (1u << o.shift) - 1, count[at], sum[at]};
  }

  // Calls body(bucket) for the filled ones of one sign, from the outermost to the rest, while it
  // returns true.
  template <class Body>
  void for_each_inwards(bool negative, Body&& body) const {
    for (int below = 0; below < layout.octaves() && below < layout.top; ++below) {
      const Octave o = layout.octave(below);
      for (int i = o.count - 1; i >= 0; --i) {
        const Bucket b = bucket(o, i, negative);
        if (b.count != 0 && !body(b)) return;
      }
    }
  }

  // Values of equal sign with the magnitudes of one bucket, maybe of another layout.
  void add(const Bucket& b, bool negative) {
    const int place = layout.index(b.first);
    if (place < 0) {
      count[layout.rest()] += b.count;
      return;
    }
    const int at = place + (negative ? layout.side() : 0);
    count[at] += b.count;
    sum[at] += b.sum + b.count * static_cast<int64_t>(layout.low(b.first));
  }

  // Makes the buckets those of a larger top exponent.
  void raise(int top) {
    if (top <= layout.top) return;
    std::vector<int64_t> counts(count, count + layout.size()), sums(sum, sum + layout.size());
    const Sketch old{layout, counts.data(), sums.data()};
    std::fill_n(count, layout.size(), 0);
    std::fill_n(sum, layout.size(), 0);
    layout.top = top;
    add(old);
  }

  // Adds a sketch of the same `bits` and no larger a top.
  void add(const Sketch& other) {
    if (other.layout.top == layout.top) {
      for (int i = 0; i < layout.size(); ++i) {
        count[i] += other.count[i];
        sum[i] += other.sum[i];
      }
      return;
    }
    for (const bool negative : {false, true})
      other.for_each_inwards(negative, [&](const Bucket& b) {
        add(b, negative);
        return true;
      });
    count[layout.rest()] += other.count[other.layout.rest()];
  }

  int64_t values() const {
    int64_t n = 0;
    for (int i = 0; i < layout.size(); ++i) n += count[i];
    return n;
  }
};

// Sketches with their memory.
class OwnSketch {
 public:
  explicit OwnSketch(Layout layout)
      : counts_(layout.size()), sums_(layout.size()), view_{layout, counts_.data(), sums_.data()} {}
  explicit OwnSketch(const Sketch& of)
      : counts_(of.count, of.count + of.layout.size()),
        sums_(of.sum, of.sum + of.layout.size()),
        view_{of.layout, counts_.data(), sums_.data()} {}
  OwnSketch(OwnSketch&&) = default;
  Sketch& view() { return view_; }
  const Sketch& view() const { return view_; }

 private:
  std::vector<int64_t> counts_, sums_;
  Sketch view_;
};

// Contiguous float32 values on the device of a tensor.
struct Values {
  const float* data;
  int64_t size;
  const Tensor* owner;
};

// The largest magnitudes of some values.
struct Peak {
  uint32_t high = 0, low = 0;  // of the positive values, of the negative ones; 0: none

  AMCT_HD uint32_t magnitude() const { return high > low ? high : low; }
  AMCT_HD void extend(const Peak& p) {
    if (p.high > high) high = p.high;
    if (p.low > low) low = p.low;
  }
  int exponent() const { return static_cast<int>(magnitude() >> kFractionBits); }
  bool is_finite() const { return exponent() < kMostExponent; }
};

constexpr int64_t kPeakChunk = 16384;  // values of one Peak
constexpr int kHalfValues = 65536;     // of a 16-bit type

// What a device finds out in one pass. If the values are not finite, the sketch is of no use.
struct Collected {
  OwnSketch sketch;
  std::vector<Peak> peaks;  // of each chunk

  Peak peak() const {
    Peak all;
    for (const Peak& p : peaks) all.extend(p);
    return all;
  }
};

// Magnitudes from `first` to `last`, none when first > last.
struct Span {
  uint32_t first = 1, last = 0;
  AMCT_HD bool has(uint32_t magnitude) const { return first <= magnitude && magnitude <= last; }
  AMCT_HD bool empty() const { return first > last; }
  AMCT_HD bool is_one() const { return first == last; }
};

// The `count` largest of the magnitudes in a span.
struct Largest {
  Span span;
  int64_t count = 0;
};

// Magnitudes of values of either sign, in no order.
struct Extremes {
  std::vector<uint32_t> high, low;
};

}  // namespace amct
