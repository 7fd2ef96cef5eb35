// ifmr_sketch.h - many float32 values in little memory, for IFMR.
//
// A bucket is the values with the same top 22 bits: sign, exponent and 13 bits of the fraction.
// The low 10 bits say how many ulp a value is away from the end of the bucket that is nearest to
// zero. A sketch holds for every bucket the number of its values and the sum of their low bits:
// integers, so that order, batches, threads and devices change no bit of it, and the mean of
// a bucket is exact. A float16 or bfloat16 value has a bucket of its own.
//
// Buckets with the same sign and exponent form a page. Pages without values take no memory,
// except page 0, which is that of zeros.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "../checks.h"
#include "../loops.h"

namespace amct {

constexpr int kLowBits = 10, kPageBits = 13, kPageShift = kLowBits + kPageBits;
constexpr uint32_t kLowMask = (1u << kLowBits) - 1;
constexpr int64_t kBuckets = 1 << kPageBits;        // of a page
constexpr int64_t kPages = 1 << (32 - kPageShift);  // the second half is negative
constexpr int64_t kSignPage = kPages / 2;
constexpr int64_t kLastExponent = kSignPage - 1;  // of infinity and NaN

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

// Values with the bits first, first + 1, ..., first + span: one bucket, or several neighbours.
struct Bucket {
  uint32_t first, span;
  int64_t count, sum;  // sum of (bits - first)

  bool is_negative() const { return first >> 31; }
  float inner_end() const { return float_of_bits(first); }  // nearest to zero
  float outer_end() const { return float_of_bits(first + span); }
  // Whether the values are known: one, or equal ones at an end of the bucket.
  bool is_known() const { return count == 1 || sum == 0 || sum == count * span; }
  float known() const {
    const int64_t offset = count == 1 ? sum : sum == 0 ? 0 : span;
    return float_of_bits(first + static_cast<uint32_t>(offset));
  }
  double mean() const {
    const double from = inner_end(), to = outer_end();
    return from + (to - from) * static_cast<double>(sum) / (static_cast<double>(count) * span);
  }
};

// The bucket of +0 or -0. Its other values, denormal, are taken for zeros as ends of a range: the
// step of such a range is 1 either way.
inline bool is_zero(const Bucket& b) { return b.first << 1 == 0; }

// Host tensors: page numbers (ascending), and the counts and sums of the buckets of each page.
struct Sketch {
  Tensor pages, counts, sums;   // int64 [P], [P, kBuckets], [P, kBuckets]
  int64_t *page, *count, *sum;  // their elements
  int64_t buckets;              // P * kBuckets

  Sketch(const Tensor& p, const Tensor& n, const Tensor& d) : pages(p), counts(n), sums(d) {
    for (const Tensor& t : {p, n, d})
      STD_TORCH_CHECK(t.is_cpu() && t.is_contiguous() && t.scalar_type() == ScalarType::Long,
                      "pages, counts and sums must be contiguous int64 tensors in host memory");
    buckets = p.numel() * kBuckets;
    STD_TORCH_CHECK(n.numel() == buckets && d.numel() == buckets, "counts and sums must be [",
                    p.numel(), ", ", kBuckets, "] for the pages given");
    page = static_cast<int64_t*>(p.data_ptr());
    count = static_cast<int64_t*>(n.data_ptr());
    sum = static_cast<int64_t*>(d.data_ptr());
  }

  Bucket bucket(int64_t i) const {
    const uint32_t first = static_cast<uint32_t>(page[i / kBuckets]) << kPageShift |
                           static_cast<uint32_t>(i % kBuckets) << kLowBits;
    return {first, kLowMask, count[i], sum[i]};
  }

  // Calls body(bucket) from zero to the largest value, then from zero to the smallest one.
  template <class Body>
  void for_each(Body&& body) const {
    for (int64_t i = 0; i < buckets; ++i)
      if (count[i] != 0) body(bucket(i));
  }

  // Calls body(bucket) for one sign, from the outermost value to zero, while it returns true.
  template <class Body>
  void for_each_inwards(bool negative, Body&& body) const {
    for (int64_t i = buckets - 1; i >= 0; --i) {
      if (count[i] == 0) continue;
      const Bucket b = bucket(i);
      if (b.is_negative() == negative && !body(b)) return;
    }
  }

  // How many values there are, and in how many buckets.
  int64_t size() const { return std::accumulate(count, count + buckets, int64_t{0}); }
  int64_t occupied() const { return buckets - std::count(count, count + buckets, 0); }
};

inline Sketch new_sketch(const std::vector<int64_t>& pages) {
  const int64_t n = pages.size();
  const Sketch s(torch::stable::empty({n}, ScalarType::Long),
                 torch::stable::empty({n, kBuckets}, ScalarType::Long),
                 torch::stable::empty({n, kBuckets}, ScalarType::Long));
  std::copy(pages.begin(), pages.end(), s.page);
  std::fill_n(s.count, s.buckets, 0);
  std::fill_n(s.sum, s.buckets, 0);
  return s;
}

inline void check_finite(const std::vector<int64_t>& pages) {
  for (const int64_t id : pages)
    STD_TORCH_CHECK(id % kSignPage != kLastExponent, "x must be finite, got NaN or infinity");
}

// Which values are the k largest of one sign, by magnitude: those from `edge` outwards, `gathered`
// of them, which have to be looked up, and then those of `inner`, known without a look.
struct Tail {
  float edge = 0;
  int64_t gathered = 0;
  std::vector<float> inner;
};

inline Tail tail_of(const Sketch& sketch, bool negative, int64_t k) {
  Tail tail;
  int64_t seen = 0;
  sketch.for_each_inwards(negative, [&](const Bucket& b) {
    if (is_zero(b)) return false;
    seen += b.count;
    if (b.is_known()) {
      tail.inner.insert(tail.inner.end(), std::min(b.count, k), b.known());
    } else {
      tail = {b.inner_end(), seen, {}};
    }
    return seen < k;
  });
  return tail;
}

// The k largest magnitudes of a tail, descending, given the looked-up values.
inline std::vector<float> completed(const Tail& tail, std::vector<float> values, int64_t k) {
  const auto larger = [](float a, float b) { return std::abs(a) > std::abs(b); };
  const auto kept = values.begin() + std::min<int64_t>(k, values.size());
  std::nth_element(values.begin(), kept, values.end(), larger);
  values.erase(kept, values.end());
  std::sort(values.begin(), values.end(), larger);
  values.insert(values.end(), tail.inner.begin(), tail.inner.end());
  if (static_cast<int64_t>(values.size()) > k) values.resize(k);
  return values;
}

// Values beyond one of two edges, none of which is zero.
struct Extremes {
  std::vector<float> low, high;
};

// Calls body(i) for every byte of n that is set; bytes are read by eights.
template <class Body>
void for_each_mark(const uint8_t* marks, int n, Body&& body) {
  for (int i = 0; i < n; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, marks + i, sizeof eight);
    for (int k = i; eight != 0 && k < i + 8; ++k)
      if (marks[k] != 0) body(k);
  }
}

}  // namespace amct
