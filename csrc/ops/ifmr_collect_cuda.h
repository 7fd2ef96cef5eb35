// ifmr_collect_cuda.h - the sketch of a tensor and the values beyond its edges, on CUDA.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "../loops.h"
#include "ifmr_sketch.h"

namespace amct {
namespace AMCT_DEVICE_NS {

template <class T>
__global__ void sketch_kernel(const T* x, int64_t n, unsigned long long* counts,
                              unsigned long long* sums, int32_t* used) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += step) {
    const uint32_t bits = float_bits(static_cast<float>(x[i]));
    if (bits == 0) continue;
    used[bits >> kPageShift] = 1;
    atomicAdd(counts + (bits >> kLowBits), 1ull);
    atomicAdd(sums + (bits >> kLowBits), static_cast<unsigned long long>(bits & kLowMask));
  }
}

template <class T>
__global__ void values_beyond_kernel(const T* x, int64_t n, float edge, bool negative, float* found,
                                     unsigned long long* count) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < n; i += step) {
    const float v = static_cast<float>(x[i]);
    if (negative ? v <= edge : v >= edge) found[atomicAdd(count, 1ull)] = v;
  }
}

inline int64_t blocks_for(int64_t n) { return std::min(ceil_div(n, kThreads), kMostBlocks); }

// Rows of a device tensor, on the host.
inline Tensor selected(const Tensor& rows, const Tensor& ids) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(rows), from(int64_t{0}), from(ids)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::index_select", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::to(torch::stable::detail::to<Tensor>(stack[0]),
                           torch::headeronly::DeviceType::CPU);
}

inline Sketch sketch_of(const Tensor& x) {
  const Tensor counts = torch::stable::new_zeros(x, {kPages, kBuckets}, ScalarType::Long);
  const Tensor sums = torch::stable::new_zeros(x, {kPages, kBuckets}, ScalarType::Long);
  const Tensor used = torch::stable::new_zeros(x, {kPages}, ScalarType::Int);
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    launch(x, sketch_kernel<T>, {blocks_for(x.numel())}, x.const_data_ptr<T>(), x.numel(),
           static_cast<unsigned long long*>(counts.data_ptr()),
           static_cast<unsigned long long*>(sums.data_ptr()),
           static_cast<int32_t*>(used.data_ptr()));
  });
  const Tensor host_used = torch::stable::to(used, torch::headeronly::DeviceType::CPU);
  std::vector<int64_t> ids{0};  // of zeros, which the kernel leaves out
  for (int64_t id = 1; id < kPages; ++id)
    if (host_used.const_data_ptr<int32_t>()[id] != 0) ids.push_back(id);
  check_finite(ids);
  const Sketch all = new_sketch(ids);
  const Tensor pages = torch::stable::to(all.pages, x.device());
  const Sketch sketch(all.pages, selected(counts, pages), selected(sums, pages));
  sketch.count[0] += x.numel() - sketch.size();
  return sketch;
}

inline std::vector<float> values_beyond(const Tensor& x, const Tail& tail, bool negative) {
  if (tail.gathered == 0) return {};
  const Tensor found = torch::stable::new_empty(x, {tail.gathered}, ScalarType::Float);
  const Tensor count = torch::stable::new_zeros(x, {1}, ScalarType::Long);
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    launch(x, values_beyond_kernel<T>, {blocks_for(x.numel())}, x.const_data_ptr<T>(), x.numel(),
           tail.edge, negative, static_cast<float*>(found.data_ptr()),
           static_cast<unsigned long long*>(count.data_ptr()));
  });
  const Tensor host = torch::stable::to(found, torch::headeronly::DeviceType::CPU);
  const float* values = host.const_data_ptr<float>();
  return {values, values + tail.gathered};
}

inline Extremes values_beyond(const Tensor& x, const Tail& low, const Tail& high) {
  return {values_beyond(x, low, true), values_beyond(x, high, false)};
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
