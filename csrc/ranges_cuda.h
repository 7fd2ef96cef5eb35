// ranges_cuda.h - ranges of ranges.h as a kernel. Included by ranges.h.
#pragma once
#include "loops.h"

namespace amct {
constexpr int kWarp = 32;

// keys holds lo and hi of every channel; blockIdx.x is the channel, blockIdx.y a share of it.
template <class In>
__global__ void ranges_kernel(const In* in, const Shape s, int32_t* keys) {
  const int64_t c = blockIdx.x, step = static_cast<int64_t>(gridDim.y) * blockDim.x;
  int32_t lo = kZeroKey, hi = kZeroKey;
  for (int64_t t = blockIdx.y * static_cast<int64_t>(blockDim.x) + threadIdx.x;
       t < s.outer * s.inner; t += step) {
    const int32_t key = order_key(static_cast<float>(in[s.position(c, t)]));
    lo = min(lo, key);
    hi = max(hi, key);
  }
  for (int lane = kWarp / 2; lane > 0; lane >>= 1) {
    lo = min(lo, __shfl_xor_sync(0xffffffff, lo, lane));
    hi = max(hi, __shfl_xor_sync(0xffffffff, hi, lane));
  }
  if (threadIdx.x % kWarp == 0) {
    atomicMin(keys + 2 * c, lo);
    atomicMax(keys + 2 * c + 1, hi);
  }
}

template <class F>
__global__ void ranges_result_kernel(const F f, const int32_t* keys, int64_t channels) {
  const int64_t c = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (c < channels) f(c, value_of_key(keys[2 * c]), value_of_key(keys[2 * c + 1]));
}

template <class In, class F>
void ranges(const Tensor& x, const Shape s, const In* in, const F& f) {
  if (s.channels == 0) return;
  torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor zeros = torch::stable::new_zeros(x, {2 * s.channels}, ScalarType::Int);
  int32_t* keys = zeros.mutable_data_ptr<int32_t>();
  const dim3 grid(static_cast<unsigned>(s.channels), static_cast<unsigned>(shares_of(s)));
  ranges_kernel<<<grid, kThreads, 0, stream_of(x)>>>(in, s, keys);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const int64_t blocks = (s.channels + kThreads - 1) / kThreads;
  ranges_result_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream_of(x)>>>(f, keys,
                                                                                     s.channels);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}
}  // namespace amct
