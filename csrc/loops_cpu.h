// loops_cpu.h - the loops of loops.h on torch's own thread pool.
//
// Rows that are long, or few, run one by one with the constants of their channel in registers.
// Others run as one line of memory, with the constants of every element of the line in a table.
#pragma once
#include <memory>

#include "cpu_isa.h"

namespace amct {

constexpr int kBlock = 256;        // elements converted at a time, where that takes a buffer
constexpr int64_t kChunk = 16384;  // elements of one partial sum
constexpr int64_t kGrain = 32768;  // elements below which a thread is not worth starting
constexpr int64_t kShortRow = 32;  // rows are always in a table below,
constexpr int64_t kLongRow = 256;  // and never from here on,
constexpr int64_t kRepeats = 4;    // between, where each constant is used as often,
constexpr int64_t kLargeTable =
    1 << 16;  // unless there are more of them: the caches would overflow
constexpr int64_t kStreamed = int64_t{16} << 20;  // bytes of a result that is not worth caching
constexpr int64_t kLeastLines = 16;  // of one partial sum for each channel, which takes memory

template <class T>
void widen(const T* from, float* to, int n) {
  with_isa([&](auto isa) { decltype(isa)::widen(from, to, n); });
}

template <class F>
using ChannelOf = std::decay_t<decltype(std::declval<F>().channel(0))>;

// The constants of the elements of a run: of one channel,
template <class Channel>
struct OneChannel {
  Channel channel;
  AMCT_HD const Channel& at(int64_t) const { return channel; }
};

// or of many: member k of element i is floats[k * stride + i].
template <class Channel>
struct ManyChannels {
  static constexpr int kMembers = sizeof(Channel) / sizeof(float);
  static_assert(std::is_trivially_copyable_v<Channel> && sizeof(Channel) % sizeof(float) == 0);
  const float* floats;
  int64_t stride;
  AMCT_HD Channel at(int64_t i) const {
    float members[kMembers];
    for (int k = 0; k < kMembers; ++k) members[k] = floats[k * stride + i];
    Channel channel;
    std::memcpy(&channel, members, sizeof channel);
    return channel;
  }
};

// The constants of a line, one row of every channel of a group, for runs that start anywhere in
// it: repeated where it is short, and with the first of them again at the end.
template <class F>
class Table {
 public:
  Table(const F& f, const Shape& s, int64_t group)
      : line_(s.width() * s.inner), length_((kLeast + line_ - 1) / line_ * line_) {
    constexpr int kMembers = Constants::kMembers;
    floats_.reset(new float[static_cast<size_t>(kMembers * stride())]);
    for (int64_t c = 0; c < s.width(); ++c) {
      const auto channel = f.channel(group * s.width() + c);
      float members[kMembers];
      std::memcpy(members, &channel, sizeof channel);
      for (int k = 0; k < kMembers; ++k)
        std::fill_n(floats_.get() + k * stride() + c * s.inner, s.inner, members[k]);
    }
    for (int k = 0; k < kMembers; ++k) {
      float* floats = floats_.get() + k * stride();
      for (int64_t i = line_; i < stride(); ++i) floats[i] = floats[i - line_];
    }
  }

  // How many of n elements from place i of the line can run at once: whole tiles.
  int64_t run(int64_t i, int64_t n) const {
    const int64_t rest = (length_ - i + kLanes - 1) / kLanes * kLanes;
    return std::min(n, rest);
  }

  int64_t length() const { return length_; }

  using Constants = ManyChannels<ChannelOf<F>>;
  Constants from(int64_t i) const { return {floats_.get() + i, stride()}; }

 private:
  static constexpr int64_t kLeast = 1024;
  int64_t stride() const { return length_ + kLanes; }

  int64_t line_, length_;
  std::unique_ptr<float[]> floats_;
};

inline bool in_table(const Shape& s) {
  if (s.channels == 1 || s.inner >= kLongRow) return false;
  return s.inner < kShortRow || (s.outer >= kRepeats && s.width() * s.inner <= kLargeTable);
}

template <class In, int N>
Inputs<In, N> advanced(Inputs<In, N> in, int64_t i) {
  for (int k = 0; k < N; ++k) in[k] += i;
  return in;
}

template <class Out>
bool is_streamed(int64_t numel) {
  return numel * static_cast<int64_t>(sizeof(Out)) >= kStreamed;
}

// Elements before the first whose tile can be streamed.
template <class Out>
int64_t unaligned(const Out* out) {
  constexpr uintptr_t kTile = kLanes * sizeof(Out);
  const uintptr_t beyond = reinterpret_cast<uintptr_t>(out) % kTile;
  return beyond == 0 ? 0 : static_cast<int64_t>((kTile - beyond) / sizeof(Out));
}

template <class In, int N, class Out, class F>
void map(const Tensor&, const Shape s, const Inputs<In, N> in, Out* out, const F& f) {
  if (s.numel() == 0) return;
  const bool streamed = is_streamed<Out>(s.numel());
  const auto run = [&](auto isa, const auto& constants, int64_t i, int64_t n, bool s) {
    decltype(isa)::template map_run<N>(f, constants, advanced(in, i), out + i, n, s);
  };
  with_isa([&](auto isa) {
    if (!in_table(s)) {
      torch::stable::parallel_for(0, s.numel(), kGrain, [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t row = begin / s.inner, n = std::min(end, (row + 1) * s.inner) - begin;
          const OneChannel<ChannelOf<F>> constants{f.channel(s.channel_of(row))};
          const int64_t head = streamed ? std::min(n, unaligned(out + begin)) : 0;
          if (head > 0) run(isa, constants, begin, head, false);
          run(isa, constants, begin + head, n - head, streamed);
          begin += n;
        }
      });
      return;
    }
    const int64_t of_group = s.numel() / s.groups;
    for (int64_t group = 0; group < s.groups; ++group) {
      const Table<F> table(f, s, group);
      const int64_t start = group * of_group;
      torch::stable::parallel_for(0, of_group, kGrain, [&](int64_t begin, int64_t end) {
        int64_t place = begin % table.length();
        for (int64_t n; begin < end; begin += n, place = (place + n) % table.length()) {
          const int64_t head = streamed ? unaligned(out + start + begin) : 0;
          n = head > 0 ? std::min(head, end - begin) : table.run(place, end - begin);
          run(isa, table.from(place), start + begin, n, streamed && head == 0);
        }
      });
    }
  });
}

// map_sum of short rows: the sums of a job, some lines of one group, are kept for every element
// of a line before they are added for every channel.
template <int K, int M, class In, int N, class Out, class F>
void map_sum_lines(const Shape s, const Inputs<In, N> in, Out* out, const F& f, double* sums) {
  const int64_t line = s.width() * s.inner;
  const int64_t lines = std::max<int64_t>(kLeastLines, kChunk / line);  // of a job
  const int64_t per_group = (s.outer + lines - 1) / lines, jobs = s.groups * per_group;
  std::vector<double> partial(static_cast<size_t>(jobs * s.width() * K));
  std::vector<Table<F>> tables;
  for (int64_t group = 0; group < s.groups; ++group) tables.emplace_back(f, s, group);
  const int64_t grain = std::max<int64_t>(1, kGrain / (lines * line));
  with_isa([&](auto isa) {
    torch::stable::parallel_for(0, jobs, grain, [&](int64_t first, int64_t last) {
      std::vector<double> totals(static_cast<size_t>(K * line));
      for (int64_t job = first; job < last; ++job) {
        const int64_t group = job / per_group, from = job % per_group * lines;
        std::fill(totals.begin(), totals.end(), 0.0);
        for (int64_t l = from; l < std::min(from + lines, s.outer); ++l) {
          const int64_t i = (group * s.outer + l) * line;
          decltype(isa)::template sum_line<K, M, N>(f, tables[static_cast<size_t>(group)].from(0),
                                                    advanced(in, i), out == nullptr ? out : out + i,
                                                    line, totals.data());
        }
        for (int k = 0; k < K; ++k)
          for (int64_t c = 0; c < s.width(); ++c)
            for (int64_t i = 0; i < s.inner; ++i)
              accumulate<K, M>(partial[static_cast<size_t>((job * K + k) * s.width() + c)],
                               totals[static_cast<size_t>(k * line + c * s.inner + i)], k);
      }
    });
  });
  for (int64_t job = 0; job < jobs; ++job)
    for (int k = 0; k < K; ++k)
      for (int64_t c = 0; c < s.width(); ++c)
        accumulate<K, M>(sums[(job / per_group * s.width() + c) * K + k],
                         partial[static_cast<size_t>((job * K + k) * s.width() + c)], k);
}

// `sums` holds channels * K doubles; fixed chunks, combined in order.
template <int K, int M = 0, class In, int N, class Out, class F>
void map_sum(const Tensor&, const Shape s, const Inputs<In, N> in, Out* out, const F& f,
             double* sums) {
  std::fill(sums, sums + s.channels * K, 0.0);
  if (s.numel() == 0) return;
  if (in_table(s)) return map_sum_lines<K, M>(s, in, out, f, sums);
  const int64_t per_row = (s.inner + kChunk - 1) / kChunk;
  const int64_t jobs = s.outer * s.channels * per_row;
  std::vector<double> partial(static_cast<size_t>(jobs) * K);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::min(kChunk, s.inner));
  const bool streamed = out != nullptr && is_streamed<Out>(s.numel());
  with_isa([&](auto isa) {
    torch::stable::parallel_for(0, jobs, grain, [&](int64_t first, int64_t last) {
      for (int64_t job = first; job < last; ++job) {
        const int64_t row = job / per_row;
        const int64_t begin = row * s.inner + job % per_row * kChunk;
        const int64_t end = std::min(begin + kChunk, (row + 1) * s.inner);
        double lanes[K][kLanes] = {};
        decltype(isa)::template sum_run<K, M, N>(
            f, OneChannel<ChannelOf<F>>{f.channel(s.channel_of(row))}, advanced(in, begin),
            out == nullptr ? out : out + begin, end - begin,
            streamed && unaligned(out + begin) == 0, lanes);
        for (int k = 0; k < K; ++k) {
          double total = 0;
          for (int j = 0; j < kLanes; ++j) accumulate<K, M>(total, lanes[k][j], k);
          partial[static_cast<size_t>(job * K + k)] = total;
        }
      }
    });
  });
  for (int64_t job = 0; job < jobs; ++job)
    for (int k = 0; k < K; ++k)
      accumulate<K, M>(sums[s.channel_of(job / per_row) * K + k],
                       partial[static_cast<size_t>(job * K + k)], k);
}

// f(i) for every i < n, where the tensor is: what is too small to be worth a loop.
template <class F>
void for_each(const Tensor&, int64_t n, const F& f) {
  for (int64_t i = 0; i < n; ++i) f(i);
}

}  // namespace amct
