// ifmr_collect_cuda.h - what IFMR reads from a tensor, on CUDA: the functions of
// ifmr_collect_cpu.h, with the same results.
//
// A block of 1024 threads counts in shared memory, which holds the buckets of one sign, of a
// 16-bit type half of the values: where both signs occur, a tensor is read twice. What shared
// memory has no room for is counted in global memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../loops.h"
#include "../rows.h"
#include "ifmr_search.h"
#include "ifmr_sketch.h"

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int64_t kFew = 0;  // reading is what costs, a sketch is not

constexpr int kWideTeam = 1024;            // threads of a block that fills a multiprocessor
constexpr int64_t kWideTasks = 512;        // about four for every multiprocessor
constexpr int64_t kCountedByTeam = 32768;  // values that pay for emptying a table
constexpr int64_t kRoom = 16384;           // extreme values that are fetched at once

// The elements of a device tensor, on the host.
template <class T>
std::vector<T> fetched(const Tensor& t) {
  const Tensor host = torch::stable::to(t, torch::headeronly::DeviceType::CPU);
  const T* data = static_cast<const T*>(host.data_ptr());
  return {data, data + host.numel() * host.element_size() / sizeof(T)};
}

// Values of a host vector in device memory, as bytes.
template <class T>
Tensor uploaded(const std::vector<T>& values, const Tensor& owner) {
  const int64_t bytes = values.size() * sizeof(T);
  Tensor host = torch::stable::empty({bytes}, ScalarType::Byte);
  memcpy(host.data_ptr(), values.data(), bytes);
  return torch::stable::to(host, owner.device());
}

template <class Body>
void for_each_row(const Rows& rows, Body&& body) {
  for (int64_t c = 0; c < rows.count; ++c) body(c, Values{rows.row(c), rows.length, &rows.data});
}

inline RowTiles wide_tiles(int64_t n, int vector) {
  return {1, 1, n, 1, vector, kWideTeam, kCountedByTeam, kWideTasks};
}

// The largest magnitudes of all values.
template <int V>
__global__ void __launch_bounds__(kThreads)
    peak_kernel(const Inputs<float, 1> in, const RowTiles tiles, const unsigned aligned,
                Peak* peak) {
  const RowTask task = tiles.task(blockIdx.x, threadIdx.x);
  if (task.index >= tiles.tasks()) return;  // whole warps
  Peak own;
  walk_rows<V>(
      in, tiles, task, aligned, [] {},
      [&](int64_t, const Loaded<float, 1, V>& loaded, const auto& part) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          if (!part.has(k)) continue;
          const uint32_t bits = float_bits(loaded.x[0].get(k)), magnitude = bits & ~kSign;
          own.extend(bits & kSign ? Peak{0, magnitude} : Peak{magnitude, 0});
        }
      });
  for (int distance = kWarp / 2; distance > 0; distance >>= 1)
    own.extend(Peak{__shfl_xor_sync(0xffffffffu, own.high, distance),
                    __shfl_xor_sync(0xffffffffu, own.low, distance)});
  if (threadIdx.x % kWarp != 0) return;
  atomicMax(&peak->high, own.high);
  atomicMax(&peak->low, own.low);
}

// One Peak for all chunks.
inline std::vector<Peak> peaks_of(const Values& x) {
  constexpr int V = kVector<float>;
  const Tensor words = torch::stable::new_zeros(*x.owner, {2}, ScalarType::Int);
  const auto tiles = RowTiles::of_loop(1, 1, x.size, 1, V, true);
  launch(*x.owner, peak_kernel<V>, {tiles.blocks()}, Inputs<float, 1>{{x.data}}, tiles,
         unsigned{is_aligned<V>(x.data)}, static_cast<Peak*>(words.data_ptr()));
  return fetched<Peak>(words);
}

// Counts and sums of the buckets of the values of one sign. The first `window` buckets are in
// shared memory, with sums of 32 bits, whose carries go to global memory.
template <int V>
__global__ void __launch_bounds__(kWideTeam)
    sketch_kernel(const Inputs<float, 1> in, const RowTiles tiles, const unsigned aligned,
                  const Layout layout, const uint32_t sign, const int window,
                  unsigned long long* counts, unsigned long long* sums) {
  constexpr unsigned long long kCarry = 1ull << 32;
  uint32_t* const near_counts = shared_memory<uint32_t>();
  uint32_t* const near_sums = near_counts + window;
  for (int i = threadIdx.x; i < 2 * window; i += kWideTeam) near_counts[i] = 0;
  __syncthreads();
  walk_rows<V>(
      in, tiles, tiles.task(blockIdx.x, threadIdx.x), aligned, [] {},
      [&](int64_t, const Loaded<float, 1, V>& loaded, const auto& part) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const uint32_t bits = float_bits(loaded.x[0].get(k)), magnitude = bits & ~kSign;
          if (!part.has(k) || (bits & kSign) != sign) continue;
          const int i = layout.index(magnitude);
          const uint32_t low = layout.low(magnitude);
          if (i < 0) continue;  // the rest is what is missing in the end
          if (i < window) {
            atomicAdd(near_counts + i, 1u);
            if (low != 0 && atomicAdd(near_sums + i, low) > ~low) atomicAdd(sums + i, kCarry);
          } else {
            atomicAdd(counts + i, 1ull);
            if (low != 0) atomicAdd(sums + i, static_cast<unsigned long long>(low));
          }
        }
      });
  __syncthreads();
  for (int i = threadIdx.x; i < window; i += kWideTeam) {
    if (near_counts[i] == 0) continue;
    atomicAdd(counts + i, static_cast<unsigned long long>(near_counts[i]));
    if (near_sums[i] != 0) atomicAdd(sums + i, static_cast<unsigned long long>(near_sums[i]));
  }
}

inline Collected collect(const Values& x, int bits, int top) {
  constexpr int V = kVector<float>;
  constexpr size_t kEntry = 2 * sizeof(uint32_t);
  std::vector<Peak> peaks = peaks_of(x);
  const Peak all = peaks[0];
  Collected found{OwnSketch(Layout{bits, std::max(top, all.exponent())}), std::move(peaks)};
  if (!all.is_finite()) return found;
  Sketch& sketch = found.sketch.view();
  const Layout layout = sketch.layout;
  const int64_t size = layout.size();
  const Tensor words = torch::stable::new_zeros(*x.owner, {2 * size}, ScalarType::Long);
  auto* counts = static_cast<unsigned long long*>(words.data_ptr());
  const RowTiles tiles = wide_tiles(x.size, V);
  const auto window = static_cast<int>(
      std::min(static_cast<size_t>(layout.side()), most_shared(*x.owner) / kEntry));
  for (const bool negative : {false, true}) {
    if ((negative ? all.low : all.high) == 0) continue;  // zeros are of the rest
    const int first = negative ? layout.side() : 0;
    launch(*x.owner, sketch_kernel<V>, {tiles.blocks(), window * kEntry, kWideTeam},
           Inputs<float, 1>{{x.data}}, tiles, unsigned{is_aligned<V>(x.data)}, layout,
           negative ? kSign : 0u, window, counts + first, counts + size + first);
  }
  const std::vector<int64_t> host = fetched<int64_t>(words);
  std::copy(host.begin(), host.begin() + size, sketch.count);
  std::copy(host.begin() + size, host.end(), sketch.sum);
  sketch.count[layout.rest()] = x.size - sketch.values();
  return found;
}

// The bits of the values with a magnitude in the span of their sign, as far as there is room, and
// how many there are.
template <int V>
__global__ void __launch_bounds__(kThreads)
    values_in_kernel(const Inputs<float, 1> in, const RowTiles tiles, const unsigned aligned,
                     const Span high, const Span low, uint32_t* found, int64_t room,
                     unsigned long long* count) {
  const RowTask task = tiles.task(blockIdx.x, threadIdx.x);
  if (task.index >= tiles.tasks()) return;
  walk_rows<V>(
      in, tiles, task, aligned, [] {},
      [&](int64_t, const Loaded<float, 1, V>& loaded, const auto& part) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const uint32_t bits = float_bits(loaded.x[0].get(k));
          const Span span = bits & kSign ? low : high;
          if (!part.has(k) || !span.has(bits & ~kSign)) continue;
          const auto place = static_cast<int64_t>(atomicAdd(count, 1ull));
          if (place < room) found[place] = bits;
        }
      });
}

inline Extremes values_in(const Values& x, const std::vector<Peak>&, const Largest& high,
                          const Largest& low) {
  constexpr int V = kVector<float>;
  constexpr int64_t kHeader = 2;  // words of the count, before the values
  const auto tiles = RowTiles::of_loop(1, 1, x.size, 1, V, true);
  std::vector<uint32_t> words;
  int64_t count = 0;
  for (int64_t room = kRoom;; room = count) {
    const Tensor device = torch::stable::new_zeros(*x.owner, {kHeader + room}, ScalarType::Int);
    auto* data = static_cast<uint32_t*>(device.data_ptr());
    launch(*x.owner, values_in_kernel<V>, {tiles.blocks()}, Inputs<float, 1>{{x.data}}, tiles,
           unsigned{is_aligned<V>(x.data)}, high.span, low.span, data + kHeader, room,
           reinterpret_cast<unsigned long long*>(data));
    words = fetched<uint32_t>(device);
    memcpy(&count, words.data(), sizeof count);
    if (count <= room) break;
  }
  Extremes found;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bits = words[kHeader + i];
    (bits & kSign ? found.low : found.high).push_back(bits & ~kSign);
  }
  return found;
}

// Even blocks count the values without a sign, odd ones those with one.
template <int V>
__global__ void __launch_bounds__(kWideTeam)
    counts_kernel(const Inputs<int16_t, 1> in, const RowTiles tiles, const unsigned aligned,
                  const int window, unsigned long long* counts) {
  constexpr uint32_t kHalf = kHalfValues / 2;
  uint32_t* const near = shared_memory<uint32_t>();
  const uint32_t first = blockIdx.x % 2 * kHalf;
  for (int i = threadIdx.x; i < window; i += kWideTeam) near[i] = 0;
  __syncthreads();
  walk_rows<V>(
      in, tiles, tiles.task(blockIdx.x / 2, threadIdx.x), aligned, [] {},
      [&](int64_t, const Loaded<int16_t, 1, V>& loaded, const auto& part) {
#pragma unroll
        for (int k = 0; k < V; ++k) {
          const uint32_t i = static_cast<uint16_t>(loaded.x[0].get(k)) - first;
          if (!part.has(k) || i >= kHalf) continue;  // wraps for the other half
          if (i < static_cast<uint32_t>(window)) {
            atomicAdd(near + i, 1u);
          } else {
            atomicAdd(counts + first + i, 1ull);
          }
        }
      });
  __syncthreads();
  for (int i = threadIdx.x; i < window; i += kWideTeam)
    if (near[i] != 0) atomicAdd(counts + first + i, static_cast<unsigned long long>(near[i]));
}

inline std::vector<int64_t> counts_of(const Tensor& x) {
  constexpr int V = kVector<int16_t>;
  const Tensor counts = torch::stable::new_zeros(x, {kHalfValues}, ScalarType::Long);
  const auto* data = static_cast<const int16_t*>(x.data_ptr());
  const RowTiles tiles = wide_tiles(x.numel(), V);
  const auto window =
      static_cast<int>(std::min(size_t{kHalfValues / 2}, most_shared(x) / sizeof(uint32_t)));
  launch(x, counts_kernel<V>, {2 * tiles.blocks(), window * sizeof(uint32_t), kWideTeam},
         Inputs<int16_t, 1>{{data}}, tiles, unsigned{is_aligned<V>(data)}, window,
         static_cast<unsigned long long*>(counts.data_ptr()));
  return fetched<int64_t>(counts);
}

// A warp sums the losses of up to kTogether candidates over one chunk: lane j those of the values
// j, j + 32, ..., and then the lanes in order, which are the additions of chunk_loss.
constexpr int kTogether = 4;
static_assert(kLossLanes == kWarp);

__global__ void __launch_bounds__(kThreads)
    losses_kernel(const float* x, int64_t n, const Candidate* candidates, int count,
                  double* partial) {
  const int lane = threadIdx.x % kWarp, groups = (count + kTogether - 1) / kTogether;
  const int64_t task = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / kWarp;
  const int64_t chunk = task / groups, begin = chunk * kLossChunk;
  const int first = static_cast<int>(task % groups) * kTogether;
  if (begin >= n) return;  // whole warps
  Candidate own[kTogether];
  double loss[kTogether] = {};
#pragma unroll
  for (int k = 0; k < kTogether; ++k) own[k] = candidates[min(first + k, count - 1)];
  const int64_t end = least(begin + kLossChunk, n);
#pragma unroll 4
  for (int64_t i = begin + lane; i < end; i += kWarp) {
    const float v = x[i];
#pragma unroll
    for (int k = 0; k < kTogether; ++k) loss[k] += squared_error(v, own[k]);
  }
#pragma unroll
  for (int k = 0; k < kTogether; ++k) {
    double total = 0;
    for (int j = 0; j < kWarp; ++j) total += __shfl_sync(0xffffffffu, loss[k], j);
    if (lane == 0 && first + k < count) partial[chunk * count + first + k] = total;
  }
}

inline std::vector<double> losses_of(const Values& x, const std::vector<Candidate>& candidates) {
  const int64_t chunks = ceil_div(x.size, kLossChunk), count = candidates.size();
  const Tensor given = uploaded(candidates, *x.owner);
  const Tensor partial = torch::stable::new_empty(*x.owner, {chunks * count}, ScalarType::Double);
  launch(*x.owner, losses_kernel, {ceil_div(chunks * ceil_div(count, kTogether), kThreads / kWarp)},
         x.data, x.size, static_cast<const Candidate*>(given.data_ptr()), static_cast<int>(count),
         static_cast<double*>(partial.data_ptr()));
  const std::vector<double> host = fetched<double>(partial);
  std::vector<double> losses(count);
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t k = 0; k < count; ++k) losses[k] += host[c * count + k];
  return losses;
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
