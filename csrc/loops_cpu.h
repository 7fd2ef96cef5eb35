// loops_cpu.h - the loops of loops.h on torch's own thread pool.
//
// Rows that are long, or few, run one by one with the constants of their channel in registers.
// Others run as one line of memory, with the constants of every element of the line in a table.
#pragma once
#include <memory>
#include <numeric>

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

// The constants of the elements of a run: of one channel,
template <class Channel>
struct OneChannel {
  Channel channel;
  AMCT_HD const Channel& at(int64_t) const { return channel; }
  OneChannel from(int64_t) const { return *this; }
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
  ManyChannels from(int64_t i) const { return {floats + i, stride}; }
};

// The constants of a line: one row of every channel of a group, several times if that is short, so
// that a line is whole tiles.
template <class F>
class Table {
 public:
  using Constants = ManyChannels<ChannelOf<F>>;

  Table(const F& f, const Shape& s, int64_t group) {
    constexpr int kMembers = Constants::kMembers;
    const int64_t line = s.width() * s.inner, whole = line * (kLanes / std::gcd(line, kLanes));
    length_ = whole > kLong ? line : (kLong + whole - 1) / whole * whole;
    tiles_.reset(new Tile[static_cast<size_t>(kMembers * tiles())]);
    for (int64_t c = 0; c < s.width(); ++c) {
      const auto channel = f.channel(group * s.width() + c);
      float members[kMembers];
      std::memcpy(members, &channel, sizeof channel);
      for (int k = 0; k < kMembers; ++k) std::fill_n(member(k) + c * s.inner, s.inner, members[k]);
    }
    for (int k = 0; k < kMembers; ++k)  // to the end of the last tile
      for (int64_t i = line; i < stride(); ++i) member(k)[i] = member(k)[i - line];
  }

  int64_t length() const { return length_; }
  Constants constants() const { return {member(0), stride()}; }

 private:
  static constexpr int64_t kLong = 4096;
  struct alignas(sizeof(float) * kLanes) Tile {
    float lanes[kLanes];
  };

  int64_t tiles() const { return length_ / kLanes + 1; }  // of a member
  int64_t stride() const { return tiles() * kLanes; }
  float* member(int k) const { return tiles_[static_cast<size_t>(k * tiles())].lanes; }

  int64_t length_;
  std::unique_ptr<Tile[]> tiles_;
};

inline bool in_table(const Shape& s) {
  if (s.channels == 1 || s.inner >= kLongRow) return false;
  return s.inner < kShortRow || (s.outer >= kRepeats && s.width() * s.inner <= kLargeTable);
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
  with_isa([&](auto isa) {
    const auto run = [&](const auto& constants, int64_t i, int64_t n) {
      const auto part = [&](int64_t from, int64_t count, bool stream) {
        decltype(isa)::template map_run<N>(f, constants.from(from), advanced(in, i + from),
                                           out + i + from, count, stream);
      };
      const int64_t head = streamed ? std::min(n, unaligned(out + i)) : 0;
      if (head > 0) part(0, head, false);
      part(head, n - head, streamed);
    };
    if (!in_table(s)) {
      torch::stable::parallel_for(0, s.numel(), kGrain, [&](int64_t begin, int64_t end) {
        for (int64_t n; begin < end; begin += n) {
          const int64_t row = begin / s.inner;
          n = std::min(end, (row + 1) * s.inner) - begin;
          run(OneChannel<ChannelOf<F>>{f.channel(s.channel_of(row))}, begin, n);
        }
      });
      return;
    }
    const int64_t of_group = s.numel() / s.groups;
    for (int64_t group = 0; group < s.groups; ++group) {
      const Table<F> table(f, s, group);
      torch::stable::parallel_for(0, of_group, kGrain, [&](int64_t begin, int64_t end) {
        const int64_t line = table.length();
        for (int64_t n; begin < end; begin += n) {
          const int64_t place = begin % line, i = group * of_group + begin;
          if (place == 0 && end - begin >= kLines * line) {
            n = kLines * line;
            decltype(isa)::template map_lines<N>(
                f, table.constants(), advanced(in, i), out + i, line,
                streamed && unaligned(out + i) == 0 && line % kLanes == 0);
          } else {
            n = std::min(end - begin, line - place);
            run(table.constants().from(place), i, n);
          }
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
          decltype(isa)::template sum_line<K, M, N>(
              f, tables[static_cast<size_t>(group)].constants(), advanced(in, i),
              kMaps<K, N, F> ? out + i : out, line, totals.data());
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
  const bool streamed = kMaps<K, N, F> && is_streamed<Out>(s.numel());
  with_isa([&](auto isa) {
    torch::stable::parallel_for(0, jobs, grain, [&](int64_t first, int64_t last) {
      for (int64_t job = first; job < last; ++job) {
        const int64_t row = job / per_row;
        const int64_t begin = row * s.inner + job % per_row * kChunk;
        const int64_t end = std::min(begin + kChunk, (row + 1) * s.inner);
        double lanes[K][kLanes] = {};
        decltype(isa)::template sum_run<K, M, N>(
            f, OneChannel<ChannelOf<F>>{f.channel(s.channel_of(row))}, advanced(in, begin),
            kMaps<K, N, F> ? out + begin : out, end - begin,
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
