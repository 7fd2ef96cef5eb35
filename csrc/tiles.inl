// tiles.inl - loops over tiles of kLanes elements, for the instruction set AMCT_ISA.
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

  // out[i] = f(constants.at(i), in[0][i], ...). `streamed` asks for an aligned `out`.
  template <int N, class Constants, class In, class Out, class F>
  static void map_run(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                      int64_t n, bool streamed) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      float v[N][kLanes], y[kLanes];
      for (int k = 0; k < N; ++k) load(in[k] + i, v[k]);
      map_tile<N>(f, constants, i, v, y);
      store(y, out + i, streamed);
    }
    if (streamed) end_streaming();
    if (i == n) return;
    float v[N][kLanes], y[kLanes];
    for (int k = 0; k < N; ++k) load_part(in[k] + i, static_cast<int>(n - i), v[k]);
    map_tile<N>(f, constants, i, v, y);
    store_part(y, out + i, static_cast<int>(n - i));
  }

  // Adds the terms of the first n lanes to totals[k * stride + j], j < kLanes.
  template <int K, int M, int N, class Constants, class F>
  AMCT_HD static void sum_tile(const F& f, const Constants& constants, int64_t i,
                               const float (&in)[N][kLanes], float (&out)[kLanes], int n,
                               double* totals, int64_t stride) {
#pragma GCC unroll 1
    for (int j = 0; j < n; ++j) {
      float v[N];
      double terms[K];
      for (int k = 0; k < N; ++k) v[k] = in[k][j];
      out[j] = apply<K, N>(f, constants.at(i + j), v, terms);
      for (int k = 0; k < K; ++k) accumulate<K, M>(totals[k * stride + j], terms[k], k);
    }
  }

  // Adds term k of element i to lanes[k][i % kLanes]. Writes `out`, unless it is null.
  template <int K, int M, int N, class Constants, class In, class Out, class F>
  static void sum_run(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                      int64_t n, bool streamed, double (&lanes)[K][kLanes]) {
    double sums[K][kLanes];  // in registers
    std::memcpy(sums, lanes, sizeof sums);
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      float v[N][kLanes], y[kLanes];
      for (int k = 0; k < N; ++k) load(in[k] + i, v[k]);
      sum_tile<K, M, N>(f, constants, i, v, y, kLanes, sums[0], kLanes);
      if (out != nullptr) store(y, out + i, streamed);
    }
    if (streamed) end_streaming();
    std::memcpy(lanes, sums, sizeof sums);
    if (i < n)
      sum_part<K, M, N>(f, constants, i, in, out, static_cast<int>(n - i), lanes[0], kLanes);
  }

  // Adds term k of element i to totals[k * n + i]. Writes `out`, unless it is null.
  template <int K, int M, int N, class Constants, class In, class Out, class F>
  static void sum_line(const F f, const Constants constants, const Inputs<In, N> in, Out* out,
                       int64_t n, double* totals) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      float v[N][kLanes], y[kLanes];
      for (int k = 0; k < N; ++k) load(in[k] + i, v[k]);
      sum_tile<K, M, N>(f, constants, i, v, y, kLanes, totals + i, n);
      if (out != nullptr) store(y, out + i, false);
    }
    if (i < n) sum_part<K, M, N>(f, constants, i, in, out, static_cast<int>(n - i), totals + i, n);
  }

 private:
  template <int K, int M, int N, class Constants, class In, class Out, class F>
  static void sum_part(const F& f, const Constants& constants, int64_t i, const Inputs<In, N>& in,
                       Out* out, int n, double* totals, int64_t stride) {
    float v[N][kLanes], y[kLanes];
    for (int k = 0; k < N; ++k) load_part(in[k] + i, n, v[k]);
    sum_tile<K, M, N>(f, constants, i, v, y, n, totals, stride);
    if (out != nullptr) store_part(y, out + i, n);
  }
};
