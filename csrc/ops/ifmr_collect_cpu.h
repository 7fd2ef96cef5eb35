// ifmr_collect_cpu.h - the sketch of a tensor and the values beyond its edges, on the CPU.
#pragma once
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "../loops.h"
#include "ifmr_sketch.h"

namespace amct {
namespace AMCT_DEVICE_NS {

// Count and sum of a bucket in one word, good for kMostPacked values.
constexpr int kCountShift = 36;
constexpr int64_t kMostPacked = int64_t{1} << (kCountShift - kLowBits);

class PackedPages {
 public:
  void add(const float* x, int n) {
    for (int i = 0; i < n; ++i) {
      const uint32_t bits = float_bits(x[i]);
      uint64_t*& page = pages_[bits >> kPageShift];
      if (page == nullptr) page = new_page();
      const uint32_t zero = bits == 0 ? ~0u : 0u;  // no branch: which values are zero is no pattern
      const uint32_t bucket = (bits >> kLowBits) % kBuckets + (zero & (kBuckets + i % kSinks));
      page[bucket] += (uint64_t{1} << kCountShift) + (bits & kLowMask);
    }
  }

  bool has(int64_t id) const { return pages_[id] != nullptr; }

  void add_to(int64_t id, int64_t* counts, int64_t* sums) const {
    const uint64_t* page = pages_[id];
    for (int64_t i = 0; i < kBuckets; ++i) {
      counts[i] += static_cast<int64_t>(page[i] >> kCountShift);
      sums[i] += static_cast<int64_t>(page[i] & ((uint64_t{1} << kCountShift) - 1));
    }
    for (int64_t i = kBuckets; i < kBuckets + kSinks; ++i)
      counts[0] += static_cast<int64_t>(page[i] >> kCountShift);
  }

 private:
  static constexpr int kSinks = 8;  // of zeros, where equal neighbours need not wait for each other

  uint64_t* new_page() {
    owned_.push_back(std::make_unique<uint64_t[]>(kBuckets + kSinks));
    return owned_.back().get();
  }

  uint64_t* pages_[kPages] = {};
  std::vector<std::unique_ptr<uint64_t[]>> owned_;
};

// Calls body(values, count) on float32 blocks of x[begin, end).
template <class T, class Body>
void for_each_block(const T* x, int64_t begin, int64_t end, Body&& body) {
  float read[std::is_same_v<T, float> ? 1 : kBlock];
  for (int64_t i = begin; i < end; i += kBlock) {
    const int n = static_cast<int>(std::min<int64_t>(kBlock, end - i));
    if constexpr (std::is_same_v<T, float>) {
      body(x + i, n);
    } else {
      widen(x + i, read, n);
      body(read, n);
    }
  }
}

// Calls body(begin, end) on shares of n values, in parallel.
template <class Body>
void in_parallel(int64_t n, int64_t most, Body&& body) {
  const int64_t wanted = std::min<int64_t>(torch::stable::get_num_threads(), n / kGrain);
  const int64_t shares = std::max<int64_t>({1, wanted, (n + most - 1) / most});
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(n * i / shares, n * (i + 1) / shares);
  });
}

inline Sketch sketch_of(const Tensor& x) {
  std::vector<std::unique_ptr<PackedPages>> shares;
  std::mutex mutex;
  dispatch_floating(x, "x", [&](auto tag) {
    const auto* values = x.const_data_ptr<decltype(tag)>();
    in_parallel(x.numel(), kMostPacked, [&](int64_t begin, int64_t end) {
      auto share = std::make_unique<PackedPages>();
      for_each_block(values, begin, end, [&](const float* v, int n) { share->add(v, n); });
      const std::lock_guard<std::mutex> lock(mutex);
      shares.push_back(std::move(share));
    });
  });
  std::vector<int64_t> ids{0};
  for (int64_t id = 1; id < kPages; ++id)
    if (std::any_of(shares.begin(), shares.end(), [&](const auto& s) { return s->has(id); }))
      ids.push_back(id);
  check_finite(ids);
  const Sketch sketch = new_sketch(ids);
  for (size_t i = 0; i < ids.size(); ++i)
    for (const auto& share : shares)
      if (share->has(ids[i]))
        share->add_to(ids[i], sketch.count + i * kBuckets, sketch.sum + i * kBuckets);
  return sketch;
}

// Which of n values lie beyond an edge, as bytes; those up to a multiple of 8 are cleared.
inline AMCT_CLONES void mark_beyond(const float* x, int n, float low, float high, uint8_t* marks) {
  for (int i = 0; i < n; ++i) marks[i] = (x[i] <= low) | (x[i] >= high);
  for (int i = n; i % 8 != 0; ++i) marks[i] = 0;
}

inline Extremes values_beyond(const Tensor& x, const Tail& low, const Tail& high) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float low_edge = low.gathered > 0 ? low.edge : -kInfinity;
  const float high_edge = high.gathered > 0 ? high.edge : kInfinity;
  Extremes found;
  std::mutex mutex;
  dispatch_floating(x, "x", [&](auto tag) {
    const auto* values = x.const_data_ptr<decltype(tag)>();
    in_parallel(x.numel(), x.numel(), [&](int64_t begin, int64_t end) {
      Extremes own;
      uint8_t marks[kBlock];
      for_each_block(values, begin, end, [&](const float* v, int n) {
        mark_beyond(v, n, low_edge, high_edge, marks);
        for_each_mark(marks, n, [&](int i) {
          if (v[i] <= low_edge) own.low.push_back(v[i]);
          if (v[i] >= high_edge) own.high.push_back(v[i]);
        });
      });
      const std::lock_guard<std::mutex> lock(mutex);
      found.low.insert(found.low.end(), own.low.begin(), own.low.end());
      found.high.insert(found.high.end(), own.high.begin(), own.high.end());
    });
  });
  return found;
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
