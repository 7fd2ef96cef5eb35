// cpu_tiles.inl - loops over tiles of kLanes elements, for the instruction set AMCT_ISA.
//
// A tile is loaded and converted to float, computed lane by lane, which the compiler turns into
// vectors, converted and stored; between load and store it stays in registers. A run is some
// elements that lie one behind the other; of its last, partial tile the missing lanes are zeros.
// No include guard: cpu_isa.h includes this file once for every instruction set.

struct AMCT_ISA {
  // ---- tiles in memory ----

#if AMCT_ISA_LEVEL == 4
  // Of lanes that are written. g++ 12 warns of the conversions without a mask.
  static constexpr __mmask16 kAll = 0xffff;
#endif

  template <class T>
  AMCT_HD static void load(const T* from, float (&tile)[kLanes]) {
#if AMCT_ISA_LEVEL == 4
    if constexpr (std::is_same_v<T, half>) {
      _mm512_storeu_ps(tile, _mm512_maskz_cvtph_ps(
                                 kAll, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
      return;
    }
    if constexpr (std::is_same_v<T, bfloat16>) {
      const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m512i wide = _mm512_maskz_cvtepu16_epi32(kAll, bits);
      _mm512_storeu_ps(tile, _mm512_castsi512_ps(_mm512_maskz_slli_epi32(kAll, wide, 16)));
      return;
    }
#elif AMCT_ISA_LEVEL == 3
    if constexpr (std::is_same_v<T, half>) {
      for (int j = 0; j < kLanes; j += 8)
        _mm256_storeu_ps(
            tile + j, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + j))));
      return;
    }
#endif
#pragma GCC unroll 1
    for (int j = 0; j < kLanes; ++j) tile[j] = widened(from[j]);
  }

  template <class T>
  AMCT_HD static void convert(const float (&tile)[kLanes], T (&to)[kLanes]) {
#if AMCT_ISA_LEVEL == 4
    if constexpr (std::is_same_v<T, half>) {
      _mm256_storeu_si256(
          reinterpret_cast<__m256i*>(to),
          _mm512_maskz_cvtps_ph(kAll, _mm512_loadu_ps(tile), _MM_FROUND_TO_NEAREST_INT));
      return;
    }
    if constexpr (std::is_same_v<T, bfloat16>) {  // as narrowed() does it
      const __m512 values = _mm512_loadu_ps(tile);
      const __m512i bits = _mm512_castps_si512(values), half_unit = _mm512_set1_epi32(0x7fff);
      const __m512i odd =
          _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
      const __m512i rounded = _mm512_maskz_srli_epi32(
          kAll, _mm512_add_epi32(_mm512_add_epi32(bits, half_unit), odd), 16);
      const __mmask16 nan = _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q);
      const __m512i result = _mm512_mask_set1_epi32(rounded, nan, 0x7fc0);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                          _mm512_maskz_cvtepi32_epi16(kAll, result));
      return;
    }
#elif AMCT_ISA_LEVEL == 3
    if constexpr (std::is_same_v<T, half>) {
      for (int j = 0; j < kLanes; j += 8)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + j),
                         _mm256_cvtps_ph(_mm256_loadu_ps(tile + j), _MM_FROUND_TO_NEAREST_INT));
      return;
    }
#endif
#pragma GCC unroll 1
    for (int j = 0; j < kLanes; ++j) to[j] = narrowed<T>(tile[j]);
  }

  // Past the caches, to an address that is a multiple of the tile's size: what a large result
  // would push out of them is worth more than the result itself.
  template <class T>
  AMCT_HD static void stream(const T (&tile)[kLanes], T* to) {
#if AMCT_ISA_LEVEL == 4
    if constexpr (sizeof(tile) == 64) {
      _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(tile));
      return;
    }
#endif
#if AMCT_ISA_LEVEL >= 3
    if constexpr (sizeof(tile) % 32 == 0) {
      for (int j = 0; j < kLanes; j += 32 / sizeof(T))
        _mm256_stream_si256(reinterpret_cast<__m256i*>(to + j),
                            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(tile + j)));
      return;
    }
#endif
#if AMCT_X86
    for (int j = 0; j < kLanes; j += 16 / sizeof(T))
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + j),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(tile + j)));
#else
    std::memcpy(to, tile, sizeof tile);
#endif
  }

  static void end_streaming() {
#if AMCT_X86
    _mm_sfence();
#endif
  }

  template <class T>
  AMCT_HD static void store(const float (&tile)[kLanes], T* to, bool streamed) {
    T converted[kLanes];
    convert(tile, converted);
    if (streamed)
      stream(converted, to);
    else
      std::memcpy(to, converted, sizeof converted);
  }

  // The first n lanes.
  template <class T>
  AMCT_HD static void load_part(const T* from, int n, float (&tile)[kLanes]) {
    T part[kLanes] = {};
    std::memcpy(part, from, n * sizeof(T));
    load(part, tile);
  }

  template <class T>
  AMCT_HD static void store_part(const float (&tile)[kLanes], T* to, int n) {
    T converted[kLanes];
    convert(tile, converted);
    std::memcpy(to, converted, n * sizeof(T));
  }

  template <class T>
  static void widen(const T* from, float* to, int n) {
    int i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      float tile[kLanes];
      load(from + i, tile);
      std::memcpy(to + i, tile, sizeof tile);
    }
    if (i == n) return;
    float tile[kLanes];
    load_part(from + i, n - i, tile);
    std::memcpy(to + i, tile, (n - i) * sizeof(float));
  }

  // ---- runs ----

  template <int N, class Constants, class F>
  AMCT_HD static void map_tile(const F& f, const Constants& constants, int64_t i,
                               const float (&in)[N][kLanes], float (&out)[kLanes]) {
#pragma GCC unroll 1
    for (int j = 0; j < kLanes; ++j) {
      float v[N];
      for (int k = 0; k < N; ++k) v[k] = in[k][j];
      out[j] = f(constants.at(i + j), v);
    }
  }

  // Tile i of a run.
  template <int N, class Constants, class In, class Out, class F>
  AMCT_HD static void map_at(const F& f, const Constants& constants, int64_t i,
                             const Inputs<In, N>& in, Out* out, bool streamed) {
    float v[N][kLanes], y[kLanes];
    for (int k = 0; k < N; ++k) load(in[k] + i, v[k]);
    map_tile<N>(f, constants, i, v, y);
    store(y, out + i, streamed);
  }

  // out[i] = f(constants.at(i), in[0][i], ...). `streamed` asks for an aligned `out`.
  template <int N, class Constants, class In, class Out, class F>
  static void map_run(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                      int64_t n, bool streamed) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) map_at<N>(f, constants, i, in, out, streamed);
    if (streamed) end_streaming();
    if (i == n) return;
    float v[N][kLanes], y[kLanes];
    for (int k = 0; k < N; ++k) load_part(in[k] + i, static_cast<int>(n - i), v[k]);
    map_tile<N>(f, constants, i, v, y);
    store_part(y, out + i, static_cast<int>(n - i));
  }

  // kLines runs of n elements, one behind the other, with the same constants: read once for all.
  template <int N, class Constants, class In, class Out, class F>
  static void map_lines(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                        int64_t n, bool streamed) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (int line = 0; line < kLines; ++line)
        map_at<N>(f, constants, i, advanced(in, line * n), out + line * n, streamed);
    if (streamed) end_streaming();
    if (i == n) return;
    for (int64_t line = 0; line < kLines; ++line)
      map_run<N>(f, constants.from(i), advanced(in, line * n + i), out + line * n + i, n - i,
                 false);
  }

  // What an instruction adds at once, said so that running sums stay in registers.
#if AMCT_ISA_LEVEL == 4
  typedef double Doubles __attribute__((vector_size(64)));
#elif AMCT_ISA_LEVEL == 3
  typedef double Doubles __attribute__((vector_size(32)));
#else
  typedef double Doubles __attribute__((vector_size(16)));
#endif
  static constexpr int kAtOnce = sizeof(Doubles) / sizeof(double);
  template <int K>
  using Sums = Doubles[K][kLanes / kAtOnce];

  template <int K, int N, class Constants, class F>
  AMCT_HD static void terms_of_tile(const F& f, const Constants& constants, int64_t i,
                                    const float (&in)[N][kLanes], float (&out)[kLanes],
                                    double (&terms)[K][kLanes]) {
#pragma GCC unroll 1
    for (int j = 0; j < kLanes; ++j) {
      float v[N];
      double t[K];
      for (int k = 0; k < N; ++k) v[k] = in[k][j];
      out[j] = apply<K, N>(f, constants.at(i + j), v, t);
      for (int k = 0; k < K; ++k) terms[k][j] = t[k];
    }
  }

  template <int K>
  AMCT_HD static void load_sums(const double* from, int64_t stride, Sums<K>& sums) {
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 16
      for (int p = 0; p < kLanes / kAtOnce; ++p)
        std::memcpy(&sums[k][p], from + k * stride + p * kAtOnce, sizeof(Doubles));
  }

  template <int K>
  AMCT_HD static void store_sums(const Sums<K>& sums, double* to, int64_t stride) {
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 16
      for (int p = 0; p < kLanes / kAtOnce; ++p)
        std::memcpy(to + k * stride + p * kAtOnce, &sums[k][p], sizeof(Doubles));
  }

  template <int K, int M>
  AMCT_HD static void add_terms(const double (&terms)[K][kLanes], Sums<K>& sums) {
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k)
#pragma GCC unroll 16
      for (int p = 0; p < kLanes / kAtOnce; ++p) {
        Doubles more;
        std::memcpy(&more, terms[k] + p * kAtOnce, sizeof more);
        sums[k][p] = k < K - M ? sums[k][p] + more : sums[k][p] < more ? more : sums[k][p];
      }
  }

  // Adds the terms of a last tile, of n elements, to totals[k * stride + j].
  template <int K, int M, int N, class Constants, class In, class Out, class F>
  static void sum_part(const F& f, const Constants& constants, int64_t i, const Inputs<In, N>& in,
                       Out* out, int n, double* totals, int64_t stride) {
    float v[N][kLanes], y[kLanes];
    double terms[K][kLanes];
    for (int k = 0; k < N; ++k) load_part(in[k] + i, n, v[k]);
    terms_of_tile<K, N>(f, constants, i, v, y, terms);
    if constexpr (kMaps<K, N, F>) store_part(y, out + i, n);
    for (int k = 0; k < K; ++k)
      for (int j = 0; j < n; ++j) accumulate<K, M>(totals[k * stride + j], terms[k][j], k);
  }

  // Adds term k of element i to lanes[k][i % kLanes]. Writes `out` if f maps.
  template <int K, int M, int N, class Constants, class In, class Out, class F>
  static void sum_run(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                      int64_t n, bool streamed, double (&lanes)[K][kLanes]) {
    Sums<K> sums;
    load_sums<K>(lanes[0], kLanes, sums);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      float v[N][kLanes], y[kLanes];
      double terms[K][kLanes];
      for (int k = 0; k < N; ++k) load(in[k] + i, v[k]);
      terms_of_tile<K, N>(f, constants, i, v, y, terms);
      add_terms<K, M>(terms, sums);
      if constexpr (kMaps<K, N, F>) store(y, out + i, streamed);
    }
    if (streamed) end_streaming();
    store_sums<K>(sums, lanes[0], kLanes);
    if (i < n)
      sum_part<K, M, N>(f, constants, i, in, out, static_cast<int>(n - i), lanes[0], kLanes);
  }

  // Adds term k of element i to totals[k * n + i]. Writes `out` if f maps.
  template <int K, int M, int N, class Constants, class In, class Out, class F>
  static void sum_line(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                       int64_t n, double* totals) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      float v[N][kLanes], y[kLanes];
      double terms[K][kLanes];
      Sums<K> sums;
      for (int k = 0; k < N; ++k) load(in[k] + i, v[k]);
      terms_of_tile<K, N>(f, constants, i, v, y, terms);
      load_sums<K>(totals + i, n, sums);
      add_terms<K, M>(terms, sums);
      store_sums<K>(sums, totals + i, n);
      if constexpr (kMaps<K, N, F>) store(y, out + i, false);
    }
    if (i < n) sum_part<K, M, N>(f, constants, i, in, out, static_cast<int>(n - i), totals + i, n);
  }
};
