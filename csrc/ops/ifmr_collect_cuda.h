// ifmr_collect_cuda.h - what IFMR reads from a tensor, on CUDA: the functions of
// ifmr_collect_cpu.h, with the same results. Simple kernels, none of them tuned.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../loops.h"
#include "../rows.h"
#include "ifmr_search.h"
#include "ifmr_sketch.h"

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int64_t kFew = 0;  // reading is what costs, a sketch is not

inline int64_t chunks_of(int64_t n) { return (n + kPeakChunk - 1) / kPeakChunk; }

inline unsigned blocks_for(int64_t n) {
  constexpr int64_t kMostBlocks = 4096;
  return static_cast<unsigned>(std::min((n + kThreads - 1) / kThreads, kMostBlocks));
}

// The elements of a device tensor, on the host.
template <class T>
std::vector<T> fetched(const Tensor& t) {
  const Tensor host = torch::stable::to(t, torch::headeronly::DeviceType::CPU);
  const T* data = static_cast<const T*>(host.data_ptr());
  return {data, data + host.numel()};
}

// Candidates or peaks in device memory, as bytes.
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

// A block is a chunk; peaks holds the high and the low magnitude of each.
__global__ void peaks_kernel(const float* x, int64_t n, uint32_t* peaks) {
  __shared__ uint32_t high, low;
  if (threadIdx.x == 0) high = low = 0;
  __syncthreads();
  const int64_t end = min((blockIdx.x + int64_t{1}) * kPeakChunk, n);
  for (int64_t i = blockIdx.x * kPeakChunk + threadIdx.x; i < end; i += blockDim.x) {
    const uint32_t bits = float_bits(x[i]);
    atomicMax(bits & kSign ? &low : &high, bits & ~kSign);
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    peaks[2 * blockIdx.x] = high;
    peaks[2 * blockIdx.x + 1] = low;
  }
}

inline std::vector<Peak> peaks_of(const Values& x) {
  torch::stable::accelerator::DeviceGuard guard(x.owner->get_device_index());
  const int64_t chunks = chunks_of(x.size);
  const Tensor words = torch::stable::new_empty(*x.owner, {2 * chunks}, ScalarType::Int);
  peaks_kernel<<<static_cast<unsigned>(chunks), kThreads, 0, stream_of(*x.owner)>>>(
      x.data, x.size, static_cast<uint32_t*>(words.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const std::vector<uint32_t> host = fetched<uint32_t>(words);
  std::vector<Peak> peaks(chunks);
  for (int64_t c = 0; c < chunks; ++c) peaks[c] = {host[2 * c], host[2 * c + 1]};
  return peaks;
}

__global__ void sketch_kernel(const float* x, int64_t n, const Layout layout,
                              unsigned long long* counts, unsigned long long* sums) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += step) {
    const uint32_t bits = float_bits(x[i]), magnitude = bits & ~kSign;
    const int index = layout.index(magnitude);
    if (index < 0) continue;  // the rest is what is missing in the end
    const int at = index + (bits & kSign ? layout.side() : 0);
    atomicAdd(counts + at, 1ull);
    atomicAdd(sums + at, static_cast<unsigned long long>(layout.low(magnitude)));
  }
}

inline Collected collect(const Values& x, int bits, int top) {
  std::vector<Peak> peaks = peaks_of(x);
  Peak all;
  for (const Peak& p : peaks) all.extend(p);
  Collected found{OwnSketch(Layout{bits, std::max(top, all.exponent())}), std::move(peaks)};
  if (!all.is_finite()) return found;
  torch::stable::accelerator::DeviceGuard guard(x.owner->get_device_index());
  Sketch& sketch = found.sketch.view();
  const int64_t size = sketch.layout.size();
  const Tensor words = torch::stable::new_zeros(*x.owner, {2 * size}, ScalarType::Long);
  auto* counts = static_cast<unsigned long long*>(words.data_ptr());
  sketch_kernel<<<blocks_for(x.size), kThreads, 0, stream_of(*x.owner)>>>(
      x.data, x.size, sketch.layout, counts, counts + size);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const std::vector<int64_t> host = fetched<int64_t>(words);
  std::copy(host.begin(), host.begin() + size, sketch.count);
  std::copy(host.begin() + size, host.end(), sketch.sum);
  sketch.count[sketch.layout.rest()] = x.size - sketch.values();
  return found;
}

// Counts the values within two spans, and stores their bits where there is a place for them.
__global__ void values_in_kernel(const float* x, int64_t n, const Span high, const Span low,
                                 uint32_t* found, unsigned long long* count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += step) {
    const uint32_t bits = float_bits(x[i]);
    if (!(bits & kSign ? low : high).has(bits & ~kSign)) continue;
    const unsigned long long place = atomicAdd(count, 1ull);
    if (found != nullptr) found[place] = bits;
  }
}

inline Extremes values_in(const Values& x, const std::vector<Peak>&, const Largest& high,
                          const Largest& low) {
  torch::stable::accelerator::DeviceGuard guard(x.owner->get_device_index());
  const auto run = [&](uint32_t* found) {
    const Tensor count = torch::stable::new_zeros(*x.owner, {1}, ScalarType::Long);
    values_in_kernel<<<blocks_for(x.size), kThreads, 0, stream_of(*x.owner)>>>(
        x.data, x.size, high.span, low.span, found,
        static_cast<unsigned long long*>(count.data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    return fetched<int64_t>(count)[0];
  };
  const Tensor words = torch::stable::new_empty(*x.owner, {run(nullptr)}, ScalarType::Int);
  if (words.numel() == 0) return {};
  run(static_cast<uint32_t*>(words.data_ptr()));
  Extremes found;
  for (const uint32_t bits : fetched<uint32_t>(words))
    (bits & kSign ? found.low : found.high).push_back(bits & ~kSign);
  return found;
}

__global__ void counts_kernel(const uint16_t* x, int64_t n, unsigned long long* counts) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += step)
    atomicAdd(counts + x[i], 1ull);
}

inline std::vector<int64_t> counts_of(const Tensor& x) {
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const Tensor counts = torch::stable::new_zeros(x, {kHalfValues}, ScalarType::Long);
  counts_kernel<<<blocks_for(x.numel()), kThreads, 0, stream_of(x)>>>(
      static_cast<const uint16_t*>(x.data_ptr()), x.numel(),
      static_cast<unsigned long long*>(counts.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return fetched<int64_t>(counts);
}

// A block is a chunk, a thread one of its running sums: the additions of chunk_loss.
__global__ void losses_kernel(const float* x, int64_t n, const Candidate* candidates, int count,
                              double* partial) {
  __shared__ double lanes[kLossLanes];
  const int64_t begin = blockIdx.x * kLossChunk, end = min(begin + kLossChunk, n);
  for (int k = 0; k < count; ++k) {
    double lane = 0;
    for (int64_t i = begin + threadIdx.x; i < end; i += kLossLanes)
      lane += squared_error(x[i], candidates[k]);
    lanes[threadIdx.x] = lane;
    __syncthreads();
    if (threadIdx.x == 0) {
      double total = 0;
      for (const double sum : lanes) total += sum;
      partial[static_cast<int64_t>(blockIdx.x) * count + k] = total;
    }
    __syncthreads();
  }
}

inline std::vector<double> losses_of(const Values& x, const std::vector<Candidate>& candidates) {
  torch::stable::accelerator::DeviceGuard guard(x.owner->get_device_index());
  const int64_t chunks = (x.size + kLossChunk - 1) / kLossChunk, count = candidates.size();
  const Tensor given = uploaded(candidates, *x.owner);
  const Tensor partial = torch::stable::new_empty(*x.owner, {chunks * count}, ScalarType::Double);
  losses_kernel<<<static_cast<unsigned>(chunks), kLossLanes, 0, stream_of(*x.owner)>>>(
      x.data, x.size, static_cast<const Candidate*>(given.data_ptr()), static_cast<int>(count),
      static_cast<double*>(partial.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const std::vector<double> host = fetched<double>(partial);
  std::vector<double> losses(count);
  for (int64_t c = 0; c < chunks; ++c)
    for (int64_t k = 0; k < count; ++k) losses[k] += host[c * count + k];
  return losses;
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
