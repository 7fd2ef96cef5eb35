// loops_cpu.h - the loops of loops.h on torch's own thread pool.
#pragma once
#include "loops_common.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define AMCT_CLONES \
  __attribute__((noinline, target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#define AMCT_F16C 1
#else
#define AMCT_CLONES __attribute__((noinline))
#define AMCT_F16C 0
#endif

namespace amct {
constexpr int kBlock = 256;          // elements converted at a time; stays in L1
constexpr int kLanes = 16;           // running sums of a chunk
constexpr int64_t kChunk = 16384;    // elements of one partial sum
constexpr int64_t kGrain = 32768;    // elements below which a thread is not worth starting
constexpr int64_t kShortRow = 64;    // elements below which a row is not worth its running sums
constexpr int64_t kLeastLines = 16;  // of one partial sum for each channel, which takes memory

#if AMCT_F16C
inline bool has_f16c() {
  static const bool yes = [] {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
  }();
  return yes;
}

__attribute__((noinline, target("avx2,f16c"))) inline void widen_f16c(const half* src, float* dst,
                                                                      int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8)
    _mm256_storeu_ps(dst + i,
                     _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i))));
  for (; i < n; ++i) dst[i] = _cvtsh_ss(src[i].x);
}

__attribute__((noinline, target("avx2,f16c"))) inline void narrow_f16c(const float* src, half* dst,
                                                                       int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                     _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
  for (; i < n; ++i) dst[i].x = _cvtss_sh(src[i], _MM_FROUND_TO_NEAREST_INT);
}
#endif

template <class T>
AMCT_CLONES void convert_plain(const T* src, float* dst, int n) {
  for (int i = 0; i < n; ++i) dst[i] = static_cast<float>(src[i]);
}

template <class T>
AMCT_CLONES void convert_plain(const float* src, T* dst, int n) {
  for (int i = 0; i < n; ++i) dst[i] = static_cast<T>(src[i]);
}

template <class T>
void widen(const T* src, float* dst, int n) {
#if AMCT_F16C
  if constexpr (std::is_same_v<T, half>)
    if (has_f16c()) return widen_f16c(src, dst, n);
#endif
  convert_plain(src, dst, n);
}

template <class T>
void narrow(const float* src, T* dst, int n) {
#if AMCT_F16C
  if constexpr (std::is_same_v<T, half>)
    if (has_f16c()) return narrow_f16c(src, dst, n);
#endif
  convert_plain(src, dst, n);
}

// n elements of one channel.
template <int N, class F, class Channel>
AMCT_CLONES void map_row(const F f, const Channel channel, const Inputs<float, N> in, float* out,
                         int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    float v[N];
    for (int k = 0; k < N; ++k) v[k] = in[k][i];
    out[i] = f(channel, v);
  }
}

// n elements of the consecutive channels first, first + 1, ...
template <int N, class F>
AMCT_CLONES void map_channels(const F f, int64_t first, const Inputs<float, N> in, float* out,
                              int64_t n) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) {
    float v[N];
    for (int k = 0; k < N; ++k) v[k] = in[k][i];
    out[i] = f(f.channel(first + i), v);
  }
}

template <class In, int N, class Out, class F>
void map(const Tensor&, const Shape s, const Inputs<In, N> in, Out* out, const F& f) {
  // Runs body(inputs, output, done, count) on float views of elements [begin, begin + n).
  auto in_float = [&](int64_t begin, int64_t n, auto&& body) {
    constexpr bool plain_in = std::is_same_v<In, float>, plain_out = std::is_same_v<Out, float>;
    float read[plain_in ? 1 : N][plain_in ? 1 : kBlock], written[plain_out ? 1 : kBlock];
    const int64_t step = plain_in && plain_out ? n : kBlock;
    for (int64_t done = 0; done < n; done += step) {
      const int64_t count = std::min(step, n - done), at = begin + done;
      Inputs<float, N> src;
      for (int k = 0; k < N; ++k) {
        if constexpr (plain_in) {
          src[k] = in[k] + at;
        } else {
          widen(in[k] + at, read[k], static_cast<int>(count));
          src[k] = read[k];
        }
      }
      if constexpr (plain_out) {
        body(src, out + at, done, count);
      } else {
        body(src, written, done, count);
        narrow(written, out + at, static_cast<int>(count));
      }
    }
  };
  torch::stable::parallel_for(0, s.numel(), kGrain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      int64_t n;
      if (s.inner == 1) {
        const int64_t first = s.channel_of(begin);
        n = std::min(end - begin, s.width() - begin % s.width());
        in_float(begin, n, [&](const auto& src, float* dst, int64_t done, int64_t count) {
          map_channels<N>(f, first + done, src, dst, count);
        });
      } else {
        const int64_t row = begin / s.inner;
        const auto channel = f.channel(s.channel_of(row));
        n = std::min(end, (row + 1) * s.inner) - begin;
        in_float(begin, n, [&](const auto& src, float* dst, int64_t, int64_t count) {
          map_row<N>(f, channel, src, dst, count);
        });
      }
      begin += n;
    }
  });
}

// One block of a sum: the terms first (vectorised), then kLanes running sums. `y` is what is
// mapped on the way, of no use (kBlock elements) in a plain sum.
template <int K, int M, int N, class F, class Channel>
AMCT_CLONES void sum_block(const F f, const Channel channel, const Inputs<float, N> in, float* y,
                           int n, double (&lanes)[K][kLanes]) {
  double terms[K][kBlock];
#pragma GCC ivdep
  for (int i = 0; i < n; ++i) {
    float v[N];
    double t[K];
    for (int k = 0; k < N; ++k) v[k] = in[k][i];
    y[i] = apply<K, N>(f, channel, v, t);
    for (int k = 0; k < K; ++k) terms[k][i] = t[k];
  }
  for (int k = 0; k < K; ++k) {
    for (int i = n; i < (n + kLanes - 1) / kLanes * kLanes; ++i) terms[k][i] = 0;
    double running[kLanes];  // in registers, which `lanes` may not be
    std::copy(lanes[k], lanes[k] + kLanes, running);
    for (int i = 0; i < n; i += kLanes)
      for (int j = 0; j < kLanes; ++j) accumulate<K, M>(running[j], terms[k][i + j], k);
    std::copy(running, running + kLanes, lanes[k]);
  }
}

// n elements in rows of `inner`, of the consecutive channels first, first + 1, ...; total[k]
// of a channel is totals[k * stride], that of the next lies behind it.
template <int K, int M, int N, class F>
AMCT_CLONES void sum_channels(const F f, int64_t first, const Inputs<float, N> in, float* y,
                              int64_t inner, int64_t n, double* totals, int64_t stride) {
  for (int64_t row = 0; row < n / inner; ++row) {
    const auto channel = f.channel(first + row);
    for (int64_t i = row * inner; i < (row + 1) * inner; ++i) {
      float v[N];
      double t[K];
      for (int k = 0; k < N; ++k) v[k] = in[k][i];
      y[i] = apply<K, N>(f, channel, v, t);
      for (int k = 0; k < K; ++k) accumulate<K, M>(totals[k * stride + row], t[k], k);
    }
  }
}

// Runs body(inputs, y, begin, count) on float views of at most `step` <= kBlock elements of
// [begin, end); writes y, where the loop has a result.
template <int N, class In, class Out, class Body>
void in_blocks(const Inputs<In, N>& in, Out* out, int64_t begin, int64_t end, int64_t step,
               const Body& body) {
  float read[N][kBlock], written[kBlock];
  for (int64_t i = begin; i < end; i += step) {
    const int n = static_cast<int>(std::min(step, end - i));
    Inputs<float, N> src;
    for (int k = 0; k < N; ++k) {
      if constexpr (std::is_same_v<In, float>) {
        src[k] = in[k] + i;
      } else {
        widen(in[k] + i, read[k], n);
        src[k] = read[k];
      }
    }
    if constexpr (std::is_same_v<Out, float>) {
      body(src, out == nullptr ? written : out + i, i, n);
    } else {
      body(src, written, i, n);
      narrow(written, out + i, n);
    }
  }
}

// map_sum of short rows. A line is one row of every channel of a group; a job is some lines of
// one group, with a total for each of its channels.
template <int K, int M, class In, int N, class Out, class F>
void map_sum_lines(const Shape s, const Inputs<In, N> in, Out* out, const F& f, double* sums) {
  const int64_t line = s.width() * s.inner;
  const int64_t lines = std::max<int64_t>(kLeastLines, kChunk / line);  // of a job
  const int64_t per_group = (s.outer + lines - 1) / lines, jobs = s.groups * per_group;
  std::vector<double> partial(static_cast<size_t>(jobs * s.width() * K));
  const int64_t grain = std::max<int64_t>(1, kGrain / (lines * line));
  torch::stable::parallel_for(0, jobs, grain, [&](int64_t first, int64_t last) {
    for (int64_t job = first; job < last; ++job) {
      const int64_t group = job / per_group, from = job % per_group * lines;
      double* totals = partial.data() + job * s.width() * K;
      for (int64_t l = from; l < std::min(from + lines, s.outer); ++l) {
        const int64_t begin = (group * s.outer + l) * line;
        in_blocks(in, out, begin, begin + line, kBlock / s.inner * s.inner,
                  [&](const auto& src, float* y, int64_t i, int n) {
                    const int64_t c = (i - begin) / s.inner;
                    sum_channels<K, M, N>(f, group * s.width() + c, src, y, s.inner, n, totals + c,
                                          s.width());
                  });
      }
    }
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
  if (s.inner < kShortRow && s.width() > 1) return map_sum_lines<K, M>(s, in, out, f, sums);
  const int64_t per_row = (s.inner + kChunk - 1) / kChunk;
  const int64_t jobs = s.outer * s.channels * per_row;
  std::vector<double> partial(static_cast<size_t>(jobs) * K);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::min(kChunk, s.inner));
  torch::stable::parallel_for(0, jobs, grain, [&](int64_t first, int64_t last) {
    for (int64_t job = first; job < last; ++job) {
      const int64_t row = job / per_row;
      const int64_t begin = row * s.inner + job % per_row * kChunk;
      const int64_t end = std::min(begin + kChunk, (row + 1) * s.inner);
      const auto channel = f.channel(s.channel_of(row));
      double lanes[K][kLanes] = {};
      in_blocks(in, out, begin, end, kBlock, [&](const auto& src, float* y, int64_t, int n) {
        sum_block<K, M, N>(f, channel, src, y, n, lanes);
      });
      for (int k = 0; k < K; ++k) {
        double total = 0;
        for (int j = 0; j < kLanes; ++j) accumulate<K, M>(total, lanes[k][j], k);
        partial[static_cast<size_t>(job * K + k)] = total;
      }
    }
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
