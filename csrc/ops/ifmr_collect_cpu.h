// ifmr_collect_cpu.h - what IFMR reads from a tensor, on the CPU: a sketch, extreme values, the
// counts of 16-bit values and the losses of a few candidates.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <type_traits>
#include <vector>

#include "../loops.h"
#include "../rows.h"
#include "ifmr_search.h"
#include "ifmr_sketch.h"

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int64_t kFew = 16384;  // values that are not worth a sketch

constexpr int kSinks = 16;  // of the rest, where equal neighbours need not wait for each other

// The place of each of n values in a table, and the bits that its bucket leaves out.
inline AMCT_CLONES void places_of(const float* x, int n, Layout layout, int32_t* place,
                                  uint32_t* low) {
  const int side = layout.side(), rest = layout.rest();
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = float_bits(x[i]), magnitude = bits & ~kSign;
    const int index = layout.index(magnitude);
    place[i] = index < 0 ? rest + i % kSinks : index + (bits & kSign ? side : 0);
    low[i] = index < 0 ? 0 : layout.low(magnitude);
  }
}

inline AMCT_CLONES Peak peak_of(const float* x, int64_t n) {
  int32_t high = 0;
  uint32_t low = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = float_bits(x[i]);
    high = std::max(high, static_cast<int32_t>(bits));  // a negative value has a negative number
    low = std::max(low, bits);                          // and the larger unsigned one
  }
  return {static_cast<uint32_t>(high), low & kSign ? low & ~kSign : 0};
}

// Count and sum of a bucket in one word, good for most() values.
class PackedTable {
 public:
  static constexpr int kCountShift = 40, kCountBits = 64 - kCountShift;
  // All of them may lie in one bucket: neither their sum nor their number may overflow.
  static int64_t most(Layout layout) {
    const int of_sum = kCountShift - kFractionBits + layout.floor_bits();
    return int64_t{1} << std::min(of_sum, kCountBits - 1);
  }

  explicit PackedTable(Layout layout) : layout_(layout), words_(scratch()) {
    words_.assign(layout.size() - 1 + kSinks, 0);
  }
  const Layout& layout() const { return layout_; }

  void add(const float* x, int n) {
    int32_t place[kBlock];
    uint32_t low[kBlock];
    places_of(x, n, layout_, place, low);
    uint64_t* const words = words_.data();
    empty_ = false;
    for (int i = 0; i < n; ++i) words[place[i]] += kOne + low[i];
  }

  // Adds the table to a sketch, and empties it for values of a larger exponent maybe.
  void move_to(Sketch& sketch, int next_top) {
    if (empty_) {
      layout_.top = next_top;
      return;
    }
    sketch.raise(layout_.top);
    if (sketch.layout.top == layout_.top) {
      for (int i = 0; i < layout_.rest(); ++i) {
        sketch.count[i] += count(i);
        sketch.sum[i] += sum(i);
      }
      sketch.count[layout_.rest()] += resting();
    } else {
      OwnSketch own(layout_);
      move_to(own.view(), layout_.top);
      sketch.add(own.view());
    }
    std::fill(words_.begin(), words_.end(), 0);
    layout_.top = next_top;
    empty_ = true;
  }

 private:
  static constexpr uint64_t kOne = uint64_t{1} << kCountShift;

  // Of a thread, which has one table at a time: fresh pages would cost more than a small batch.
  static std::vector<uint64_t>& scratch() {
    thread_local std::vector<uint64_t> words;
    return words;
  }

  int64_t count(int i) const { return static_cast<int64_t>(words_[i] >> kCountShift); }
  int64_t sum(int i) const { return static_cast<int64_t>(words_[i] & (kOne - 1)); }
  int64_t resting() const {
    int64_t n = 0;
    for (int i = 0; i < kSinks; ++i) n += count(layout_.rest() + i);
    return n;
  }

  Layout layout_;
  std::vector<uint64_t>& words_;
  bool empty_ = true;
};

// Calls body(begin, end) on shares of n chunks, in parallel; a share has at most `most` values.
template <class Body>
void in_shares(int64_t chunks, int64_t most, Body&& body) {
  const int64_t least = kGrain / kPeakChunk;
  const int64_t wanted = std::min<int64_t>(torch::stable::get_num_threads(), chunks / least);
  const int64_t shares = std::max<int64_t>({1, wanted, (chunks + most - 1) / most});
  torch::stable::parallel_for(0, shares, 1, [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; ++i) body(chunks * i / shares, chunks * (i + 1) / shares);
  });
}

inline int64_t chunks_of(int64_t n) { return (n + kPeakChunk - 1) / kPeakChunk; }

// Calls body(c, row) for every row, in parallel where rows are short.
template <class Body>
void for_each_row(const Rows& rows, Body&& body) {
  constexpr int64_t kLong = int64_t{1} << 20;  // worth a loop of its own on all threads
  const int64_t grain =
      rows.length >= kLong ? rows.count : (kGrain + rows.length - 1) / rows.length;
  torch::stable::parallel_for(0, rows.count, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) body(c, Values{rows.row(c), rows.length, &rows.data});
  });
}

inline std::vector<Peak> peaks_of(const Values& x) {
  std::vector<Peak> peaks(chunks_of(x.size));
  in_shares(peaks.size(), peaks.size(), [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      peaks[c] = peak_of(x.data + c * kPeakChunk, std::min(kPeakChunk, x.size - c * kPeakChunk));
  });
  return peaks;
}

// `top` is an exponent to expect, from batches before.
inline Collected collect(const Values& x, int bits, int top) {
  const int64_t n = x.size;
  Collected found{OwnSketch(Layout{bits, top}), std::vector<Peak>(chunks_of(n))};
  std::atomic<bool> finite{true};
  std::mutex mutex;
  const auto share = [&](int64_t begin, int64_t end) {
    PackedTable table({bits, top});
    const auto move_out = [&](int next_top) {
      const std::lock_guard<std::mutex> lock(mutex);
      table.move_to(found.sketch.view(), next_top);
    };
    for (int64_t c = begin; c < end && finite; ++c) {
      const float* values = x.data + c * kPeakChunk;
      const int64_t count = std::min(kPeakChunk, n - c * kPeakChunk);
      found.peaks[c] = peak_of(values, count);
      if (!found.peaks[c].is_finite()) finite = false;
      if (!finite) return;
      const int exponent = found.peaks[c].exponent();
      if (exponent > table.layout().top) move_out(exponent);
      for (int64_t i = 0; i < count; i += kBlock)
        table.add(values + i, static_cast<int>(std::min<int64_t>(kBlock, count - i)));
    }
    move_out(0);
  };
  in_shares(chunks_of(n), PackedTable::most({bits, top}) / kPeakChunk, share);
  return found;
}

// Which of n <= kBlock values have a magnitude in the span of their sign; those up to a multiple
// of 8 are cleared.
inline AMCT_CLONES void mark_spans(const float* x, int n, Span high, Span low, uint8_t* marks) {
  for (int i = 0; i < n; ++i) {
    const uint32_t bits = float_bits(x[i]), magnitude = bits & ~kSign;
    const uint32_t first = bits & kSign ? low.first : high.first;
    const uint32_t last = bits & kSign ? low.last : high.last;
    marks[i] = (first <= magnitude) & (magnitude <= last);
  }
  for (int i = n; i % 8 != 0; ++i) marks[i] = 0;
}

// Calls body(i) for every mark of n that is set; marks are read by eights.
template <class Body>
void for_each_mark(const uint8_t* marks, int n, Body&& body) {
  for (int i = 0; i < n; i += 8) {
    uint64_t eight;
    std::memcpy(&eight, marks + i, sizeof eight);
    for (int k = i; eight != 0 && k < i + 8; ++k)
      if (marks[k] != 0) body(k);
  }
}

// The largest magnitudes found so far; its span closes in on them.
class Finder {
 public:
  explicit Finder(Largest wanted) : wanted_(wanted) {}
  const Span& span() const { return wanted_.span; }
  const std::vector<uint32_t>& found() const { return found_; }
  bool reached_by(uint32_t peak) const {
    return !wanted_.span.empty() && wanted_.span.first <= peak;
  }

  void add(uint32_t magnitude) {
    constexpr int64_t kSlack = 1024;  // so that a selection pays
    found_.push_back(magnitude);
    if (static_cast<int64_t>(found_.size()) < 2 * wanted_.count + kSlack) return;
    const auto last = found_.begin() + wanted_.count - 1;
    std::nth_element(found_.begin(), last, found_.end(), std::greater<>());
    wanted_.span.first = *last + 1;  // of equal ones there are enough
    found_.resize(wanted_.count);
  }

 private:
  Largest wanted_;
  std::vector<uint32_t> found_;
};

// At least the largest magnitudes of each sign that are wanted; peaks tell which chunks to read.
inline Extremes values_in(const Values& x, const std::vector<Peak>& peaks, Largest wanted_high,
                          Largest wanted_low) {
  Extremes all;
  std::mutex mutex;
  const auto share = [&](int64_t begin, int64_t end) {
    Finder high(wanted_high), low(wanted_low);
    uint8_t marks[kBlock];
    for (int64_t c = begin; c < end; ++c) {
      if (!high.reached_by(peaks[c].high) && !low.reached_by(peaks[c].low)) continue;
      const int64_t last = std::min((c + 1) * kPeakChunk, x.size);
      for (int64_t i = c * kPeakChunk; i < last; i += kBlock) {
        const int count = static_cast<int>(std::min<int64_t>(kBlock, last - i));
        mark_spans(x.data + i, count, high.span(), low.span(), marks);
        for_each_mark(marks, count, [&](int k) {
          const uint32_t bits = float_bits(x.data[i + k]);
          (bits & kSign ? low : high).add(bits & ~kSign);
        });
      }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    all.high.insert(all.high.end(), high.found().begin(), high.found().end());
    all.low.insert(all.low.end(), low.found().begin(), low.found().end());
  };
  in_shares(peaks.size(), peaks.size(), share);
  return all;
}

// How often each of the 65536 values of a 16-bit type occurs, by its bits.
inline std::vector<int64_t> counts_of(const Tensor& x) {
  constexpr int kTables = 2;  // in turn, for equal neighbours need not wait for each other
  constexpr int64_t kMost = int64_t{1} << 30;
  std::vector<int64_t> counts(kHalfValues);
  std::mutex mutex;
  const auto* values = static_cast<const uint16_t*>(x.data_ptr());
  const int64_t n = x.numel();
  in_shares(chunks_of(n), kMost / kPeakChunk, [&](int64_t first, int64_t last) {
    std::vector<uint32_t> tables(kTables * kHalfValues);
    uint32_t *even = tables.data(), *odd = even + kHalfValues;
    const int64_t begin = first * kPeakChunk, end = std::min(last * kPeakChunk, n);
    int64_t i = begin;
    for (; i + 2 <= end; i += 2) {
      ++even[values[i]];
      ++odd[values[i + 1]];
    }
    if (i < end) ++even[values[i]];
    const std::lock_guard<std::mutex> lock(mutex);
    for (int k = 0; k < kHalfValues; ++k) counts[k] += int64_t{even[k]} + odd[k];
  });
  return counts;
}

// The losses of candidates over n values: chunk by chunk for all of them, chunks added in order.
inline std::vector<double> losses_of(const Values& x, const std::vector<Candidate>& candidates) {
  const int64_t n = x.size;
  const int64_t chunks = (n + kLossChunk - 1) / kLossChunk, count = candidates.size();
  std::vector<double> partial(chunks * count), losses(count);
  const int64_t grain = std::max<int64_t>(1, kGrain / kLossChunk / (count + 1));
  torch::stable::parallel_for(0, chunks, grain, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c)
      for (int64_t k = 0; k < count; ++k)
        partial[c * count + k] =
            chunk_loss<false>(x.data + c * kLossChunk, nullptr,
                              std::min(kLossChunk, n - c * kLossChunk), candidates[k]);
  });
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t k = 0; k < count; ++k) losses[k] += partial[c * count + k];
  return losses;
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
