// loops_cuda.h - the loops of loops.h as kernels on the current stream of the input's device.
#pragma once
#include <cuda_runtime.h>

#include "loops_common.h"

namespace amct {
constexpr int kThreads = 256;

inline cudaStream_t stream_of(const Tensor& t) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <class In, int N, class Out, class F>
__global__ void map_kernel(const F f, const Inputs<In, N> in, Out* out, const Shape s,
                           const int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += step) {
    float v[N];
    for (int k = 0; k < N; ++k) v[k] = static_cast<float>(in[k][i]);
    const int64_t channel = s.channels == 1 ? 0 : s.channel_of(i / s.inner);
    out[i] = static_cast<Out>(f(f.channel(channel), v));
  }
}

template <class In, int N, class Out, class F>
void map(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f) {
  const int64_t n = s.numel();
  if (n == 0) return;
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t blocks = std::min<int64_t>((n + kThreads - 1) / kThreads, 65535);
  map_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(x)>>>(f, in, out, s, n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

constexpr int64_t kPerThread = 16;     // elements that are worth a thread
constexpr int64_t kMostBlocks = 1024;  // of a launch, unless channels are more: fills any device

// Blocks for each channel when its elements are shared out; depends on the shape alone.
inline int64_t shares_of(const Shape& s) {
  const int64_t per_block = kThreads * kPerThread;
  const int64_t most = std::max<int64_t>(1, kMostBlocks / s.channels);
  return std::clamp<int64_t>((s.outer * s.inner + per_block - 1) / per_block, 1, most);
}

// out[k] = the total of result k over the threads of a block, by a fixed tree.
template <int K, int M>
__device__ void reduce_block(const double (&total)[K], double* out) {
  __shared__ double shared[kThreads];
  for (int k = 0; k < K; ++k) {
    shared[threadIdx.x] = total[k];
    __syncthreads();
    for (int w = kThreads / 2; w > 0; w >>= 1) {
      if (threadIdx.x < w) accumulate<K, M>(shared[threadIdx.x], shared[threadIdx.x + w], k);
      __syncthreads();
    }
    if (threadIdx.x == 0) out[k] = shared[0];
    __syncthreads();
  }
}

// blockIdx.x is the channel, blockIdx.y a share of it: K partial results for each.
template <int K, int M, class In, int N, class Out, class F>
__global__ void map_sum_kernel(const F f, const Inputs<In, N> in, Out* out, const Shape s,
                               double* partial) {
  const int64_t c = blockIdx.x, step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  const auto channel = f.channel(c);
  double total[K] = {};
  for (int64_t t = blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       t < s.outer * s.inner; t += step) {
    const int64_t i = s.position(c, t);
    float v[N];
    double terms[K];
    for (int k = 0; k < N; ++k) v[k] = static_cast<float>(in[k][i]);
    const float y = apply<K, N>(f, channel, v, terms);
    if (out != nullptr) out[i] = static_cast<Out>(y);
    for (int k = 0; k < K; ++k) accumulate<K, M>(total[k], terms[k], k);
  }
  reduce_block<K, M>(total, partial + (c * gridDim.y + blockIdx.y) * K);
}

template <int K, int M>
__global__ void sum_shares_kernel(const double* partial, int64_t shares, double* out) {
  const int64_t c = blockIdx.x;
  double total[K] = {};
  for (int64_t share = threadIdx.x; share < shares; share += blockDim.x)
    for (int k = 0; k < K; ++k)
      accumulate<K, M>(total[k], partial[(c * shares + share) * K + k], k);
  reduce_block<K, M>(total, out + c * K);
}

// `sums` is device memory of channels * K doubles.
template <int K, int M = 0, class In, int N, class Out, class F>
void map_sum(const Tensor& x, const Shape s, const Inputs<In, N> in, Out* out, const F& f,
             double* sums) {
  if (s.channels == 0) return;
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t shares = shares_of(s);
  Tensor scratch = torch::stable::new_empty(x, {s.channels * shares * K}, ScalarType::Double);
  double* partial = scratch.mutable_data_ptr<double>();
  const dim3 grid(static_cast<unsigned>(s.channels), static_cast<unsigned>(shares));
  map_sum_kernel<K, M><<<grid, kThreads, 0, stream_of(x)>>>(f, in, out, s, partial);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  sum_shares_kernel<K, M><<<grid.x, kThreads, 0, stream_of(x)>>>(partial, shares, sums);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class F>
__global__ void for_each_kernel(const F f, int64_t n) {
  const int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (i < n) f(i);
}

// f(i) for every i < n, where the tensor is: what is too small to be worth a loop.
template <class F>
void for_each(const Tensor& x, int64_t n, const F& f) {
  if (n == 0) return;
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const int64_t blocks = (n + kThreads - 1) / kThreads;
  for_each_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(x)>>>(f, n);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace amct
