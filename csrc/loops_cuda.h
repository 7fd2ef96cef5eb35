// loops_cuda.h - the loops of loops.h as kernels on the current stream of the input's device.
//
// tiles.h says which thread works on which elements. A thread loads several vectors of up to 16
// bytes before it uses the first one. A sum is taken in two steps, both in an order that follows
// from the shape: a total for every team of threads or line of a share, then the total of those.
#pragma once
#include <cuda_runtime.h>

#include <cstring>

#include "loops_common.h"
#include "tiles.h"

namespace amct {
inline cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

struct Grid {
  int64_t blocks;
  size_t shared = 0;  // bytes of memory of a block
  int threads = kThreads;
};

// Runs a kernel on the stream of x.
template <class... Parameters, class... Arguments>
void launch(const Tensor& x, void (*kernel)(Parameters...), const Grid& grid,
            const Arguments&... arguments) {
#if defined(__CUDACC__)
  constexpr size_t kUsual = 48 << 10;  // shared memory that a kernel has to ask for beyond it
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  if (grid.shared > kUsual)
    STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(grid.shared)));
  kernel<<<static_cast<unsigned>(grid.blocks), grid.threads, grid.shared, stream_of(x)>>>(
      arguments...);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
#else
  emulated_launch(kernel, grid.blocks, grid.threads, grid.shared, arguments...);  // by a test
#endif
}

// Bytes of shared memory that a block can have on the device of x.
inline size_t most_shared(const Tensor& x) {
  int bytes = 0;
  STD_CUDA_CHECK(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                        x.get_device_index()));
  return static_cast<size_t>(bytes);
}

// The memory that a launch has asked for.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#if defined(__CUDACC__)
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#else
  return static_cast<T*>(emulated_shared_memory());
#endif
}

// V elements as the words of registers: kept as elements, those of 2 bytes would take one each.
template <class T, int V>
struct alignas(V * sizeof(T) > 4 ? V * sizeof(T) : 4) Vector {
  static constexpr int kPerWord = 4 / sizeof(T);
  uint32_t words[(V + kPerWord - 1) / kPerWord] = {};

  __device__ __forceinline__ T get(int k) const {
    const uint32_t word = words[k / kPerWord] >> (k % kPerWord * 8 * sizeof(T));
    T v;
    memcpy(&v, &word, sizeof v);
    return v;
  }
  __device__ __forceinline__ void set(int k, T v) {  // once, from zero
    uint32_t word = 0;
    memcpy(&word, &v, sizeof v);
    words[k / kPerWord] |= word << (k % kPerWord * 8 * sizeof(T));
  }
};

constexpr int kVectorBytes = 16;

// Elements of a vector: one access of 16 bytes for the wider of two types.
template <class A, class B = A>
constexpr int kVector =
    kVectorBytes / static_cast<int>(sizeof(A) > sizeof(B) ? sizeof(A) : sizeof(B));

// Vectors of N inputs that a thread loads ahead: in all about kBatch.
template <int N>
constexpr int kAhead = N < kBatch ? kBatch / N : 1;

// Whether vectors may be accessed at once. Where not, a pointer was given that is not aligned.
template <int V, class T>
bool is_aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % (sizeof(T) * V) == 0;
}

// Bit k for in[k], bit N for out.
template <int V, class In, int N, class Out>
unsigned aligned_pointers(const Inputs<In, N>& in, const Out* out) {
  unsigned bits = is_aligned<V>(out) ? 1u << N : 0u;
  for (int k = 0; k < N; ++k) bits |= is_aligned<V>(in[k]) ? 1u << k : 0u;
  return bits;
}

// Intrinsics, for the compiler joins a store of words with one of elements to the same places, of
// which one or the other happens, into one of elements. An input is read as constant memory: no
// loop writes to its inputs.
template <class T, int V>
__device__ __forceinline__ Vector<T, V> load_at_once(const T* from) {
  Vector<T, V> x;
  if constexpr (sizeof x == sizeof(uint4)) {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(from));
    x.words[0] = words.x;
    x.words[1] = words.y;
    x.words[2] = words.z;
    x.words[3] = words.w;
  } else if constexpr (sizeof x == sizeof(uint2)) {
    const uint2 words = __ldg(reinterpret_cast<const uint2*>(from));
    x.words[0] = words.x;
    x.words[1] = words.y;
  } else {
    x.words[0] = __ldg(reinterpret_cast<const unsigned*>(from));
  }
  return x;
}

template <class T, int V>
__device__ __forceinline__ void store_at_once(T* to, const Vector<T, V>& x) {
  if constexpr (sizeof x == sizeof(uint4)) {
    const uint4 words = {x.words[0], x.words[1], x.words[2], x.words[3]};
    __stwb(reinterpret_cast<uint4*>(to), words);
  } else if constexpr (sizeof x == sizeof(uint2)) {
    __stwb(reinterpret_cast<uint2*>(to), uint2{x.words[0], x.words[1]});
  } else {
    __stwb(reinterpret_cast<unsigned*>(to), x.words[0]);
  }
}

template <class T, int V>
__device__ __forceinline__ Vector<T, V> load(const T* from, int64_t at, Whole, bool aligned) {
  if (V > 1 && aligned) return load_at_once<T, V>(from + at);
  Vector<T, V> x;
#pragma unroll
  for (int k = 0; k < V; ++k) x.set(k, from[at + k]);
  return x;
}

template <class T, int V>
__device__ __forceinline__ Vector<T, V> load(const T* from, int64_t at, const Piece& part, bool) {
  Vector<T, V> x;
#pragma unroll
  for (int k = 0; k < V; ++k)
    if (part.has(k)) x.set(k, from[at + k]);
  return x;
}

template <class T, int V>
__device__ __forceinline__ void store(T* to, int64_t at, const Vector<T, V>& x, Whole,
                                      bool aligned) {
  if (V > 1 && aligned) return store_at_once(to + at, x);
#pragma unroll
  for (int k = 0; k < V; ++k) to[at + k] = x.get(k);
}

template <class T, int V>
__device__ __forceinline__ void store(T* to, int64_t at, const Vector<T, V>& x, const Piece& part,
                                      bool) {
#pragma unroll
  for (int k = 0; k < V; ++k)
    if (part.has(k)) to[at + k] = x.get(k);
}

// The vectors of N inputs at the same place.
template <class In, int N, int V>
struct Loaded {
  Vector<In, V> x[N];
  template <class Elements>
  __device__ __forceinline__ void load_from(const Inputs<In, N>& in, int64_t at,
                                            const Elements& part, unsigned aligned) {
#pragma unroll
    for (int j = 0; j < N; ++j) x[j] = load<In, V>(in[j], at, part, aligned >> j & 1u);
  }
  __device__ __forceinline__ void element(int k, float (&v)[N]) const {
#pragma unroll
    for (int j = 0; j < N; ++j) v[j] = static_cast<float>(x[j].get(k));
  }
};

// Calls begin() once, after the first loads, and body(at, loaded, part) for every vector of the
// task, of which `part` says what belongs to it.
template <int V, class In, int N, class Begin, class Body>
__device__ __forceinline__ void walk_rows(const Inputs<In, N>& in, const RowTiles& tiles,
                                          const RowTask& task, unsigned aligned, Begin&& begin,
                                          Body&& body) {
  constexpr int U = kAhead<N>;
  const int64_t step = int64_t{tiles.team} * V;
  bool begun = false;
  tiles.for_each_run(task, [&](int64_t first, int64_t last) {
    const Run run(first, last, V);
    for (int64_t at = run.inner_begin + int64_t{task.lane} * V; at < run.inner_end;
         at += U * step) {
      Loaded<In, N, V> loaded[U];
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (at + u * step < run.inner_end) loaded[u].load_from(in, at + u * step, Whole(), aligned);
      if (!begun) begin();
      begun = true;
#pragma unroll
      for (int u = 0; u < U; ++u)
        if (at + u * step < run.inner_end) body(at + u * step, loaded[u], Whole());
    }
    if (task.lane < 2) {  // the ends of the run, if they are parts of vectors
      const int64_t at = run.edge(task.lane, V);
      const Piece part = run.piece(task.lane, V);
      if (part.first >= part.last) return;
      Loaded<In, N, V> loaded;
      loaded.load_from(in, at, part, aligned);
      if (!begun) begin();
      begun = true;
      body(at, loaded, part);
    }
  });
}

// Calls body(at, loaded) for the vector of the task on each of its lines.
template <int V, class In, int N, class Body>
__device__ __forceinline__ void walk_lines(const Inputs<In, N>& in, const LineTiles& tiles,
                                           const LineTask& task, unsigned aligned, Body&& body) {
  constexpr int U = kAhead<N>;
  const int64_t step = int64_t{tiles.phases} * tiles.period;
  int64_t at = tiles.place(task, task.from);
  for (int64_t l = task.from; l < task.to; l += U * tiles.phases, at += U * step) {
    Loaded<In, N, V> loaded[U];
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (l + u * tiles.phases < task.to) loaded[u].load_from(in, at + u * step, Whole(), aligned);
#pragma unroll
    for (int u = 0; u < U; ++u)
      if (l + u * tiles.phases < task.to) body(at + u * step, loaded[u]);
  }
}

// Elements of the vectors of a loop.
template <int K, class In, int N, class Out, class F>
constexpr int kLoopVector = kMaps<K, N, F> ? kVector<In, Out> : kVector<In>;

// Applies f to a vector whose element k has the constants channel(k): stores what is mapped, and
// calls add(k, terms) where there are terms.
template <int K, class In, int N, int V, class Out, class F, class Channels, class Elements,
          class Add>
__device__ __forceinline__ void apply_vector(const F& f, const Channels& channel,
                                             const Loaded<In, N, V>& loaded, int64_t at,
                                             const Elements& part, Out* out, bool aligned,
                                             Add&& add) {
  Vector<Out, V> y;
#pragma unroll
  for (int k = 0; k < V; ++k) {
    float v[N];
    loaded.element(k, v);
    if constexpr (K == 0) {
      y.set(k, static_cast<Out>(f(channel(k), v)));
    } else {
      double terms[K];
      y.set(k, static_cast<Out>(apply<K, N>(f, channel(k), v, terms)));
      if (part.has(k)) add(k, terms);
    }
  }
  if constexpr (kMaps<K, N, F>) store<Out, V>(out, at, y, part, aligned);
}

// out[k] = the total of result k over the threads of a team, by a fixed tree.
template <int K, int M>
__device__ __forceinline__ void reduce_team(double (&total)[K], int team, double* out) {
  constexpr int kWarps = kThreads / kWarp;
  __shared__ double of_warp[K][kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for (int distance = kWarp / 2; distance > 0; distance >>= 1)
      accumulate<K, M>(total[k], __shfl_down_sync(0xffffffffu, total[k], distance), k);
    if (lane == 0) (team == kWarp ? out[k] : of_warp[k][warp]) = total[k];
  }
  if (team == kWarp) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    double sum = of_warp[k][0];
    for (int w = 1; w < kWarps; ++w) accumulate<K, M>(sum, of_warp[k][w], k);
    out[k] = sum;
  }
}

// Long rows. partial[share, channel, K], where K > 0.
template <int K, int M, int V, class In, int N, class Out, class F>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const F f, const Inputs<In, N> in, Out* out, const RowTiles tiles,
                const unsigned aligned, double* partial) {
  const RowTask task = tiles.task(blockIdx.x, threadIdx.x);
  if (task.index >= tiles.tasks()) return;  // a whole team
  ChannelOf<F> constants{};
  double total[K > 0 ? K : 1] = {};
  walk_rows<V>(
      in, tiles, task, aligned, [&] { constants = f.channel(task.channel); },
      [&](int64_t at, const Loaded<In, N, V>& loaded, const auto& part) {
        apply_vector<K>(
            f, [&](int) -> const ChannelOf<F>& { return constants; }, loaded, at, part, out,
            aligned >> N & 1u,
            [&](int, const auto& terms) {
              for (int j = 0; j < K; ++j) accumulate<K, M>(total[j], terms[j], j);
            });
      });
  if constexpr (K > 0) reduce_team<K, M>(total, tiles.team, partial + task.index * K);
}

// Short rows. partial[share, group, place on a line, K], where K > 0.
template <int K, int M, int V, class In, int N, class Out, class F>
__global__ void __launch_bounds__(kThreads)
    lines_kernel(const F f, const Inputs<In, N> in, Out* out, const LineTiles tiles,
                 const unsigned aligned, double* partial) {
  const LineTask task = tiles.task(blockIdx.x, threadIdx.x);
  ChannelOf<F> constants[V] = {};
  if (!task.is_idle())
    tiles.template for_each_channel<V>(
        task, [&](int k, int64_t channel) { constants[k] = f.channel(channel); });
  double total[V][K > 0 ? K : 1] = {};
  walk_lines<V>(in, tiles, task, aligned, [&](int64_t at, const Loaded<In, N, V>& loaded) {
    apply_vector<K>(
        f, [&](int k) -> const ChannelOf<F>& { return constants[k]; }, loaded, at, Whole(), out,
        aligned >> N & 1u,
        [&](int k, const auto& terms) {
          for (int j = 0; j < K; ++j) accumulate<K, M>(total[k][j], terms[j], j);
        });
  });
  if constexpr (K > 0) {  // of the threads with the same column, by a fixed tree
    __shared__ double of_thread[kThreads];
    const int64_t place = (task.share * tiles.groups + task.group) * tiles.period + task.column;
    int half = 0;  // of the threads of a column; none where each has a column of its own
    for (int n = 1; n < tiles.phases; n *= 2) half = n;
#pragma unroll
    for (int k = 0; k < V; ++k)
#pragma unroll
      for (int j = 0; j < K; ++j) {
        double& sum = total[k][j];
        for (int distance = half; distance > 0; distance >>= 1) {
          of_thread[threadIdx.x] = sum;
          __syncthreads();
          if (task.phase < distance && task.phase + distance < tiles.phases)
            accumulate<K, M>(sum, of_thread[threadIdx.x + distance * tiles.columns], j);
          __syncthreads();
        }
        if (task.phase == 0 && !task.is_idle()) partial[(place + k) * K + j] = sum;
      }
  }
}

// sums[c, K] = the total of partial[share, c, inner, K] over shares and inner; a team for each c.
template <int K, int M>
__global__ void totals_kernel(const double* partial, int64_t shares, int64_t channels,
                              int64_t inner, int team, double* sums) {
  const int lane = threadIdx.x % team;
  const int64_t c = int64_t{blockIdx.x} * (kThreads / team) + threadIdx.x / team;
  if (c >= channels) return;
  double total[K] = {};
  for (int64_t e = lane; e < shares * inner; e += team) {
    const int64_t share = inner == 1 ? e : e / inner;
    const double* from = partial + ((share * channels + c) * inner + e - share * inner) * K;
#pragma unroll
    for (int k = 0; k < K; ++k) accumulate<K, M>(total[k], from[k], k);
  }
  reduce_team<K, M>(total, team, sums + c * K);
}

template <int K, int M>
void add_totals(const Tensor& x, const double* partial, int64_t shares, int64_t channels,
                int64_t inner, double* sums) {
  const int team = shares * inner < kThreads ? kWarp : kThreads;
  launch(x, totals_kernel<K, M>, {ceil_div(channels * team, kThreads)}, partial, shares, channels,
         inner, team, sums);
}

template <int K, int M, class In, int N, class Out, class F>
void run_rows(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f,
              double* sums) {
  constexpr int V = kLoopVector<K, In, N, Out, F>;
  const auto tiles = RowTiles::of_loop(s.outer, s.channels, s.inner, s.groups, V, K > 0);
  const auto kernel = rows_kernel<K, M, V, In, N, Out, F>;
  const unsigned aligned = aligned_pointers<V>(in, out);
  if (K == 0 || tiles.shares == 1) {
    launch(x, kernel, {tiles.blocks()}, f, in, out, tiles, aligned, sums);
    return;
  }
  Tensor scratch = torch::stable::new_empty(x, {tiles.tasks() * K}, ScalarType::Double);
  double* partial = scratch.mutable_data_ptr<double>();
  launch(x, kernel, {tiles.blocks()}, f, in, out, tiles, aligned, partial);
  if constexpr (K > 0) add_totals<K, M>(x, partial, tiles.shares, s.channels, 1, sums);
}

// Elements of a vector of whose columns a thread keeps K totals each, in its registers.
template <int V, int K>
constexpr int kSumVector = V * K <= 16 || V == 1 ? V : kSumVector<V / 2, K>;

template <int K, int M, int V, class In, int N, class Out, class F>
void run_lines(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f,
               double* sums) {
  const LineTiles tiles(s.outer, s.channels, s.inner, s.groups, V, K > 0);
  const auto kernel = lines_kernel<K, M, V, In, N, Out, F>;
  const unsigned aligned = aligned_pointers<V>(in, out);
  const int64_t partials = tiles.shares * s.channels * s.inner;
  if (K == 0 || partials == s.channels) {
    launch(x, kernel, {tiles.blocks()}, f, in, out, tiles, aligned, sums);
    return;
  }
  Tensor scratch = torch::stable::new_empty(x, {partials * K}, ScalarType::Double);
  double* partial = scratch.mutable_data_ptr<double>();
  launch(x, kernel, {tiles.blocks()}, f, in, out, tiles, aligned, partial);
  if constexpr (K > 0) add_totals<K, M>(x, partial, tiles.shares, s.channels, s.inner, sums);
}

template <int K, int M, class In, int N, class Out, class F>
void run_loop(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f,
              double* sums) {
  constexpr int V = kSumVector<kLoopVector<K, In, N, Out, F>, K>;
  if (!LineTiles::suit(s.outer, s.channels, s.inner)) {
    run_rows<K, M>(x, s, in, out, f, sums);
  } else if (s.width() * s.inner % V == 0) {
    run_lines<K, M, V>(x, s, in, out, f, sums);
  } else {
    run_lines<K, M, 1>(x, s, in, out, f, sums);
  }
}

template <class In, int N, class Out, class F>
void map(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f) {
  if (s.numel() > 0) run_loop<0, 0>(x, s, in, out, f, nullptr);
}

// `sums` is device memory of channels * K doubles.
template <int K, int M = 0, class In, int N, class Out, class F>
void map_sum(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f,
             double* sums) {
  if (s.channels > 0) run_loop<K, M>(x, s, in, out, f, sums);
}

template <class F>
__global__ void for_each_kernel(const F f, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < n) f(i);
}

// f(i) for every i < n, where the tensor is: what is too small to be worth a loop.
template <class F>
void for_each(const Tensor& x, int64_t n, const F& f) {
  if (n > 0) launch(x, for_each_kernel<F>, {ceil_div(n, kThreads)}, f, n);
}

}  // namespace amct
