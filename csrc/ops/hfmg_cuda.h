// hfmg_cuda.h - the ranges of rows and their histograms as kernels. Included by hfmg.inl.
#pragma once
#include <cmath>
#include <cstring>
#include <vector>

#include "../loops.h"
#include "../rows.h"
#include "hfmg_bins.h"

namespace amct {
namespace AMCT_DEVICE_NS {
constexpr int64_t kPerBlock = 65536;  // values worth a block of their own

// keys[row] holds the largest ~key and the largest key of a row, from zeros.
__global__ void extents_kernel(const float* x, int64_t length, int64_t blocks, uint32_t* keys) {
  const int64_t row = blockIdx.x / blocks, step = blocks * blockDim.x;
  uint32_t lo = 0, hi = 0;
  for (int64_t i = blockIdx.x % blocks * blockDim.x + threadIdx.x; i < length; i += step) {
    const uint32_t key = sort_key(x[row * length + i]);
    lo = max(lo, ~key);
    hi = max(hi, key);
  }
  atomicMax(keys + 2 * row, lo);
  atomicMax(keys + 2 * row + 1, hi);
}

__global__ void histograms_kernel(const float* x, int64_t length, int64_t blocks,
                                  const Extent* ranges, int n, unsigned long long* counts) {
  extern __shared__ uint32_t table[];
  const int64_t row = blockIdx.x / blocks, step = blocks * blockDim.x;
  for (int i = threadIdx.x; i < n; i += blockDim.x) table[i] = 0;
  __syncthreads();
  const Binning binning(ranges[row], n);
  for (int64_t i = blockIdx.x % blocks * blockDim.x + threadIdx.x; i < length; i += step)
    atomicAdd(table + binning.bin(x[row * length + i]), 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x)
    if (table[i] != 0) atomicAdd(counts + row * n + i, table[i]);
}

inline int64_t blocks_per_row(const Rows& rows) {
  return std::clamp<int64_t>(rows.length / kPerBlock, 1, int64_t{1} << 30);
}

inline std::vector<Extent> extents(const Rows& rows) {
  torch::stable::accelerator::DeviceGuard guard(rows.data.get_device_index());
  const int64_t blocks = blocks_per_row(rows);
  const Tensor keys = torch::stable::new_zeros(rows.data, {rows.count, 2}, ScalarType::Int);
  extents_kernel<<<static_cast<unsigned>(rows.count * blocks), kThreads, 0, stream_of(rows.data)>>>(
      rows.row(0), rows.length, blocks, static_cast<uint32_t*>(keys.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const Tensor host = torch::stable::to(keys, torch::headeronly::DeviceType::CPU);
  const int32_t* key = host.const_data_ptr<int32_t>();
  std::vector<Extent> result(rows.count);
  for (int64_t c = 0; c < rows.count; ++c) {
    result[c] = {value_of_sort_key(~static_cast<uint32_t>(key[2 * c])),
                 value_of_sort_key(static_cast<uint32_t>(key[2 * c + 1]))};
    STD_TORCH_CHECK(std::isfinite(result[c].lo) && std::isfinite(result[c].hi),
                    "x must be finite, got NaN or infinity");
  }
  return result;
}

inline std::vector<int64_t> histograms(const Rows& rows, const std::vector<Extent>& ranges,
                                       int64_t n) {
  torch::stable::accelerator::DeviceGuard guard(rows.data.get_device_index());
  const int64_t blocks = blocks_per_row(rows);
  Tensor host_ranges = torch::stable::empty({rows.count, 2}, ScalarType::Float);
  std::memcpy(host_ranges.mutable_data_ptr<float>(), ranges.data(), rows.count * sizeof(Extent));
  const Tensor device_ranges = torch::stable::to(host_ranges, rows.data.device());
  const Tensor counts = torch::stable::new_zeros(rows.data, {rows.count, n}, ScalarType::Long);
  histograms_kernel<<<static_cast<unsigned>(rows.count * blocks), kThreads, n * sizeof(uint32_t),
                      stream_of(rows.data)>>>(
      rows.row(0), rows.length, blocks, static_cast<const Extent*>(device_ranges.data_ptr()),
      static_cast<int>(n), static_cast<unsigned long long*>(counts.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  const Tensor host = torch::stable::to(counts, torch::headeronly::DeviceType::CPU);
  const int64_t* data = host.const_data_ptr<int64_t>();
  return {data, data + rows.count * n};
}
}  // namespace AMCT_DEVICE_NS
}  // namespace amct
