// tiles.h - which thread of a CUDA kernel works on which elements. Plain arithmetic, for host and
// device, so that a test without a GPU can walk every tile.
//
// A tensor is [groups, outer, width, inner] in the order of its memory (Shape of layout.h); a
// channel is `outer` rows of `inner` elements. A vector is V consecutive elements that start at a
// multiple of V: what a thread loads at once. Two ways to share out the elements:
//
//   RowTiles   a team of threads works on one channel, along its rows: long rows
//   LineTiles  a thread works on the V elements of one column, line after line, a line being one
//              row of every channel of a group: short rows, and channels that lie last
//
// Both follow from the shape alone, never from the device or from where a tensor begins, for they
// decide the order of additions.
#pragma once
#include <cstdint>

#include "quant_math.h"

namespace amct {
constexpr int kThreads = 256, kWarp = 32;  // of a block, of a warp
constexpr int64_t kLongRow = 256;          // elements that keep a warp busy
constexpr int64_t kFewLines = 16;          // under which the constants of a column cost too much
constexpr int64_t kLinesInARow = 16;       // lines that a thread goes through at least
constexpr int64_t kMostBlocks = 4096;      // of a sum: several for every multiprocessor of a GPU
constexpr int kBatch = 4;                  // vectors that a thread of a team loads ahead at most

AMCT_HD int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
AMCT_HD int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }
AMCT_HD int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// n / d for 0 <= n < 2^63 and d >= 1 as a multiplication: with l = ceil(log2 d) and
// m = ceil(2^(63 + l) / d), m d exceeds 2^(63 + l) by less than 2^l, which is too little to matter
// (Granlund and Montgomery, Division by Invariant Integers using Multiplication, theorem 4.2).
struct Divider {
  int64_t divisor = 1;
  uint64_t factor = uint64_t{1} << 63;
  int shift = 0;

  Divider() = default;
  explicit Divider(int64_t d) : divisor(d) {
    while ((uint64_t{1} << shift) < static_cast<uint64_t>(d)) ++shift;
    const unsigned __int128 power = static_cast<unsigned __int128>(1) << (63 + shift);
    factor =
        static_cast<uint64_t>((power + static_cast<uint64_t>(d) - 1) / static_cast<uint64_t>(d));
  }
  AMCT_HD int64_t quotient(int64_t n) const {
    const uint64_t twice = static_cast<uint64_t>(n) << 1;
#if defined(__CUDA_ARCH__)
    return static_cast<int64_t>(__umul64hi(factor, twice) >> shift);
#else
    return static_cast<int64_t>(
        static_cast<uint64_t>((static_cast<unsigned __int128>(factor) * twice) >> 64) >> shift);
#endif
  }
  AMCT_HD int64_t remainder(int64_t n) const { return n - quotient(n) * divisor; }
};

// Which elements of a vector belong to a run.
struct Whole {
  AMCT_HD bool has(int) const { return true; }
};

struct Piece {
  int first, last;
  AMCT_HD bool has(int k) const { return k >= first && k < last; }
};

// A run [begin, end) as whole vectors [inner_begin, inner_end) and what is left at its two ends,
// each less than a vector, or in the middle of one that has both.
struct Run {
  int64_t begin, end, inner_begin, inner_end;
  AMCT_HD Run(int64_t begin_, int64_t end_, int vector)
      : begin(begin_),
        end(end_),
        inner_begin(ceil_div(begin_, vector) * vector),
        inner_end(end_ / vector * vector) {}
  AMCT_HD int64_t edge(int i, int vector) const {  // i = 0, 1: where a vector with a part begins
    return i == 0 ? inner_begin - vector : inner_end;
  }
  AMCT_HD Piece piece(int i, int vector) const {
    if (i == 0)
      return {static_cast<int>(begin - edge(0, vector)),
              static_cast<int>(begin == inner_begin ? 0 : least(vector, end - edge(0, vector)))};
    return {0, static_cast<int>(inner_end < inner_begin ? 0 : end - inner_end)};
  }
};

// Elements [from, to) of the outer * inner elements of a channel, by thread `lane` of a team.
struct RowTask {
  int64_t index;  // of the team: share * channels + channel
  int64_t channel, from, to;
  int lane;
};

struct RowTiles {
  int64_t outer, channels, inner;
  int64_t shares, per_share;  // of a channel, elements
  int team;                   // threads: a warp, or all of a block
  Divider by_channels, by_inner, by_width;

  // A task is `per_task` elements, or more where there would be more than `most` tasks.
  RowTiles(int64_t outer_, int64_t channels_, int64_t inner_, int64_t groups, int vector, int team_,
           int64_t per_task, int64_t most)
      : outer(outer_), channels(channels_), inner(inner_), team(team_) {
    const int64_t elements = outer * inner;
    shares = greatest(least(ceil_div(elements, per_task), most / channels), 1);
    per_share = ceil_div(ceil_div(elements, shares), vector) * vector;
    by_channels = Divider(channels);
    by_inner = Divider(greatest(inner, 1));
    by_width = Divider(channels / groups);
  }

  // Of a loop. Where it sums, the tasks are to be few, for each leaves a partial sum.
  static RowTiles of_loop(int64_t outer, int64_t channels, int64_t inner, int64_t groups,
                          int vector, bool sums) {
    // A row should be several vectors for every thread of its team.
    const int team = inner < int64_t{kThreads} * kBatch / 2 * vector ? kWarp : kThreads;
    const int64_t batches = team == kWarp ? 2 : 1;  // pays for the constants of a channel
    return {outer,
            channels,
            inner,
            groups,
            vector,
            team,
            batches * team * kBatch * vector,
            sums ? kMostBlocks * (kThreads / team) : INT64_MAX};
  }

  AMCT_HD int64_t tasks() const { return shares * channels; }
  AMCT_HD int threads() const { return team > kThreads ? team : kThreads; }  // of a block
  AMCT_HD int64_t blocks() const { return ceil_div(tasks() * team, threads()); }

  AMCT_HD RowTask task(int64_t block, int thread) const {
    const int64_t index = block * (threads() / team) + thread / team;
    const int64_t share = by_channels.quotient(index);
    const int64_t from = least(share * per_share, outer * inner);
    return {index, index - share * channels, from, least(from + per_share, outer * inner),
            thread % team};
  }

  // Calls body(begin, end) for every stretch of memory of a task.
  template <class Body>
  AMCT_HD void for_each_run(const RowTask& task, Body&& body) const {
    const int64_t width = by_width.divisor, group = by_width.quotient(task.channel);
    const int64_t line = by_inner.quotient(task.from);
    int64_t row = ((group * outer + line) * width + task.channel - group * width) * inner;
    int64_t offset = task.from - line * inner;
    for (int64_t left = task.to - task.from; left > 0; row += width * inner) {
      const int64_t n = least(inner - offset, left);
      body(row + offset, row + offset + n);
      left -= n;
      offset = 0;
    }
  }
};

// Lines from, from + phases, ... < to of a share of a group, of each the vector at `column`.
struct LineTask {
  int64_t share, group, column;
  int64_t from, to;  // nothing where a thread is left over
  int phase;         // in which the threads of a block with the same column differ
  AMCT_HD bool is_idle() const { return from >= to; }
};

struct LineTiles {
  int64_t outer, channels, inner, groups, period;  // elements of a line
  int64_t shares, per_share;                       // of a group, lines
  int64_t tiles;                                   // blocks beside one another on a line
  int vector, columns, phases;                     // of a block
  Divider by_inner, by_tiles, by_groups;

  static bool suit(int64_t outer, int64_t channels, int64_t inner) {
    return channels > 1 && inner > 0 && inner < kLongRow && outer >= kFewLines;
  }

  LineTiles(int64_t outer_, int64_t channels_, int64_t inner_, int64_t groups_, int vector_,
            bool sums)
      : outer(outer_),
        channels(channels_),
        inner(inner_),
        groups(groups_),
        period(channels_ / groups_ * inner_),
        vector(vector_) {
    const int64_t vectors = ceil_div(period, vector);
    columns = static_cast<int>(least(vectors, kThreads));
    phases = kThreads / columns;
    tiles = ceil_div(vectors, columns);
    shares = ceil_div(outer, phases * kLinesInARow);
    if (sums) shares = least(shares, greatest(kMostBlocks / (tiles * groups), 1));
    per_share = ceil_div(outer, shares);
    by_inner = Divider(inner);
    by_tiles = Divider(tiles);
    by_groups = Divider(groups);
  }
  AMCT_HD int64_t blocks() const { return shares * groups * tiles; }

  AMCT_HD LineTask task(int64_t block, int thread) const {
    const int64_t rest = by_tiles.quotient(block), tile = block - rest * tiles;
    const int64_t share = by_groups.quotient(rest);
    const int phase = thread / columns;
    const int64_t column = (tile * columns + thread - phase * columns) * vector;
    const bool idle = phase >= phases || column >= period;  // period is whole vectors
    const int64_t to = least((share + 1) * per_share, outer);
    return {share, rest - share * groups, column, idle ? to : share * per_share + phase, to, phase};
  }

  // The place of the first element of a task on line l.
  AMCT_HD int64_t place(const LineTask& task, int64_t l) const {
    return (task.group * outer + l) * period + task.column;
  }

  // Calls body(k, channel) for every element k of the vector of a task.
  template <int V, class Body>
  AMCT_HD void for_each_channel(const LineTask& task, Body&& body) const {
    int64_t channel = by_inner.quotient(task.column);
    int64_t offset = task.column - channel * inner;
    channel += task.group * (channels / groups);
    for (int k = 0; k < V; ++k) {
      body(k, channel);
      if (++offset == inner) {
        offset = 0;
        ++channel;
      }
    }
  }
};
}  // namespace amct
