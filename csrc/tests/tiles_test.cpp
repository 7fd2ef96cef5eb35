// tiles_test.cpp - every element is visited once, by a thread that knows its channel. No torch.
#include "../tiles.h"

#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

namespace {

using amct::kThreads;

int failures = 0;

void expect(bool holds, const char* what, const std::vector<int64_t>& of) {
  constexpr int kShown = 20;
  if (holds || ++failures > kShown) return;
  std::printf("FAILED %s:", what);
  for (const int64_t v : of) std::printf(" %lld", static_cast<long long>(v));
  std::printf("\n");
}

void division_by_multiplication() {
  constexpr int64_t kMost = INT64_MAX;
  std::vector<int64_t> divisors{1, 2, 3, 5, 7, 9, 10, 49, 147, 255, 256, 257, 641, 3136, 6700417};
  for (int bit = 10; bit < 63; ++bit)
    for (const int64_t d : {-1, 0, 1}) divisors.push_back((int64_t{1} << bit) + d);
  divisors.push_back(kMost);
  std::mt19937_64 random(1);
  for (int i = 0; i < 2000; ++i) {
    const int64_t d = static_cast<int64_t>(random() >> (1 + random() % 62));
    if (d > 0) divisors.push_back(d);
  }
  for (const int64_t d : divisors) {
    const amct::Divider by(d);
    const auto check = [&](int64_t n) {
      expect(by.quotient(n) == n / d && by.remainder(n) == n % d, "n / d", {n, d});
    };
    for (const int64_t n :
         {int64_t{0}, int64_t{1}, d - 1, d, kMost, kMost - 1, kMost / d * d, kMost / d * d - 1})
      check(n);
    for (int i = 0; i < 50; ++i) {
      const int64_t n = static_cast<int64_t>(random() >> (1 + random() % 62));
      check(n);
      check(n / d * d);  // where the quotient steps
      if (n >= d) check(n / d * d - 1);
    }
  }
}

// [groups, outer, width, inner] as in memory.
struct Sizes {
  int64_t groups, outer, width, inner;
  int64_t channels() const { return groups * width; }
  int64_t numel() const { return channels() * outer * inner; }
  int64_t channel_of(int64_t i) const {
    return i / (outer * width * inner) * width + i / inner % width;
  }
};

struct Visits {
  Sizes sizes;
  int vector;
  std::vector<int> times;
  Visits(const Sizes& s, int v) : sizes(s), vector(v), times(static_cast<size_t>(s.numel())) {}
  void add(int64_t i, int64_t channel, const char* what) {
    const bool inside = i >= 0 && i < sizes.numel();
    expect(inside && sizes.channel_of(i) == channel, what, description(i));
    if (inside) ++times[static_cast<size_t>(i)];
  }
  void check(const char* what) const {
    for (size_t i = 0; i < times.size(); ++i)
      expect(times[i] == 1, what, description(static_cast<int64_t>(i)));
  }
  std::vector<int64_t> description(int64_t i) const {
    return {sizes.groups, sizes.outer, sizes.width, sizes.inner, vector, i};
  }
};

// The vectors and the two ends of a run, as the lanes of a team share them out.
void walk(const amct::Run& run, int team, int lane, int64_t channel, Visits& visits) {
  const int v = visits.vector;
  for (int64_t at = run.inner_begin + int64_t{lane} * v; at < run.inner_end;
       at += int64_t{team} * v)
    for (int k = 0; k < v; ++k) visits.add(at + k, channel, "vector of a row");
  if (lane >= 2) return;
  const amct::Piece part = run.piece(lane, v);
  expect(part.first >= 0 && part.last <= v, "part", visits.description(run.begin));
  for (int k = 0; k < v; ++k)
    if (part.has(k)) visits.add(run.edge(lane, v) + k, channel, "end of a row");
}

void rows(const Sizes& s, int vector, const amct::RowTiles& tiles) {
  Visits visits(s, vector);
  for (int64_t block = 0; block < tiles.blocks(); ++block)
    for (int thread = 0; thread < kThreads; ++thread) {
      const amct::RowTask task = tiles.task(block, thread);
      if (task.index >= tiles.tasks()) {
        expect(tiles.team == amct::kWarp, "an idle block", visits.description(block));
        continue;
      }
      tiles.for_each_run(task, [&](int64_t begin, int64_t end) {
        walk(amct::Run(begin, end, vector), tiles.team, task.lane, task.channel, visits);
      });
    }
  visits.check("rows");
}

template <int V>
void lines(const Sizes& s, bool sums) {
  if (!amct::LineTiles::suit(s.outer, s.channels(), s.inner) || s.width * s.inner % V != 0) return;
  const amct::LineTiles tiles(s.outer, s.channels(), s.inner, s.groups, V, sums);
  Visits visits(s, V);
  for (int64_t block = 0; block < tiles.blocks(); ++block)
    for (int thread = 0; thread < kThreads; ++thread) {
      const amct::LineTask task = tiles.task(block, thread);
      if (task.is_idle()) continue;
      for (int64_t l = task.from; l < task.to; l += tiles.phases)
        tiles.for_each_channel<V>(task, [&](int k, int64_t channel) {
          visits.add(tiles.place(task, l) + k, channel, "vector of a line");
        });
    }
  visits.check("lines");
}

void every_element_is_visited_once() {
  std::vector<Sizes> shapes;
  for (const int64_t groups : {1, 2, 3})
    for (const int64_t outer : {0, 1, 2, 15, 16, 17, 40, 700})
      for (const int64_t width : {1, 2, 3, 8, 31})
        for (const int64_t inner : {0, 1, 2, 3, 4, 7, 8, 9, 49, 255, 256, 257})
          if ((groups == 1 || width > 1) && groups * outer * width * inner <= 100000)
            shapes.push_back({groups, outer, width, inner});
  for (const int64_t width : {300, 1024, 2050, 4096})
    for (const int64_t inner : {1, 5}) shapes.push_back({1, 33, width, inner});
  for (const int64_t inner : {1000, 4095, 4096, 4097, 20000, 100003})
    for (const int64_t width : {1, 3}) shapes.push_back({1, 2, width, inner});
  shapes.push_back({2, 80, 2500, 1});
  for (const Sizes& s : shapes)
    for (const bool sums : {false, true}) {
      for (const int v : {4, 8})
        rows(s, v, amct::RowTiles::of_loop(s.outer, s.channels(), s.inner, s.groups, v, sums));
      lines<1>(s, sums);
      lines<2>(s, sums);
      lines<4>(s, sums);
      lines<8>(s, sums);
    }
}

// Above 2^31 elements: the tasks abut and no index has overflowed.
void large_tensors() {
  const std::vector<Sizes> shapes{{1, 1, 1, (int64_t{1} << 33) + 8},
                                  {1, int64_t{1} << 23, 2048, 1},
                                  {1, 1, int64_t{1} << 24, 300},
                                  {1, 70000, 512, 196},
                                  {1, 8, 100000, 4096},
                                  {1, int64_t{1} << 32, 3, 1}};
  for (const Sizes& s : shapes)
    for (const bool sums : {false, true}) {
      const std::vector<int64_t> name{s.groups, s.outer, s.width, s.inner, sums};
      if (amct::LineTiles::suit(s.outer, s.channels(), s.inner)) {
        const int v = s.width * s.inner % 4 == 0 ? 4 : 1;
        const amct::LineTiles t(s.outer, s.channels(), s.inner, s.groups, v, sums);
        expect(t.blocks() <= INT32_MAX, "lines fit a grid", name);
        expect(t.shares * t.per_share >= s.outer, "shares cover the lines", name);
        int64_t last = 0;
        for (int thread = 0; thread < kThreads; ++thread) {
          const amct::LineTask task = t.task(t.blocks() - 1, thread);
          if (task.is_idle()) continue;
          const int64_t lines = (task.to - 1 - task.from) / t.phases * t.phases;
          last = amct::greatest(last, t.place(task, task.from + lines) + v);
        }
        expect(last == s.numel(), "the last block ends with the last element", name);
      } else {
        const auto t = amct::RowTiles::of_loop(s.outer, s.channels(), s.inner, s.groups, 4, sums);
        expect(t.blocks() <= INT32_MAX, "rows fit a grid", name);
        expect(t.shares * t.per_share >= s.outer * s.inner, "shares cover the rows", name);
        const int64_t tasks_of_block = kThreads / t.team;
        const int64_t index = t.tasks() - 1;
        const auto task =
            t.task(index / tasks_of_block, static_cast<int>(index % tasks_of_block) * t.team);
        int64_t last = 0;
        t.for_each_run(task, [&](int64_t, int64_t end) { last = end; });
        expect(last == s.numel(), "the last task ends with the last element", name);
      }
    }
}

}  // namespace

int main() {
  division_by_multiplication();
  every_element_is_visited_once();
  large_tensors();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
