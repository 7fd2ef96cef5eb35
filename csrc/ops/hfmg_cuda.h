// hfmg_cuda.h - the ranges of rows and their histograms as kernels. Included by hfmg.inl.
//
// A block counts in tables of 32 bits in shared memory, as many as fit, so that its warps seldom
// wait for each other, and adds them to the 64-bit counts. The host waits twice: for the ranges,
// and for the counts.
#pragma once
#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "../loops.h"
#include "../ranges.h"
#include "hfmg_bins.h"

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int kTableEntries = 8192;         // of all tables of a block, the most bins there are
constexpr int64_t kCountedByBlock = 16384;  // values that pay for emptying the tables
constexpr int64_t kExtentsOfLaunch = 256;   // 2 KB of kernel arguments

// A tensor whose channels are the rows.
struct DeviceRows {
  Tensor data;  // dense
  Shape shape;
  int64_t axis, count;
};

inline DeviceRows histogram_rows(const Tensor& x, std::optional<int64_t> axis) {
  const Tensor data = dense(x);
  const int64_t a = axis.has_value() ? check_axis(x, *axis) : 0;
  return {data, shape_of(data, axis), a, axis.has_value() ? x.size(a) : 1};
}

inline std::vector<Extent> extents(const DeviceRows& rows) {
  Tensor keys;
  dispatch_floating(rows.data, "x", [&](auto tag) {
    keys = key_ranges_of(rows.data, rows.shape, rows.data.const_data_ptr<decltype(tag)>());
  });
  const Tensor host = torch::stable::to(keys, torch::headeronly::DeviceType::CPU);
  const auto* range = static_cast<const KeyRange*>(host.data_ptr());
  std::vector<Extent> result(static_cast<size_t>(rows.count));
  for (size_t c = 0; c < result.size(); ++c) {
    result[c] = {value_of_key(range[c].least_key()), value_of_key(range[c].greatest_key())};
    STD_TORCH_CHECK(std::isfinite(result[c].lo) && std::isfinite(result[c].hi),
                    "x must be finite, got NaN or infinity");
  }
  return result;
}

// Takes extents to the device as arguments of a kernel: a copy would make the host wait.
struct WriteExtents {
  Extent from[kExtentsOfLaunch];
  Extent* to;
  AMCT_HD void operator()(int64_t i) const { to[i] = from[i]; }
};

inline Tensor on_device(const Tensor& x, const std::vector<Extent>& extents) {
  const auto count = static_cast<int64_t>(extents.size());
  Tensor result = torch::stable::new_empty(x, {count, 2}, ScalarType::Float);
  for (int64_t first = 0; first < count; first += kExtentsOfLaunch) {
    const int64_t n = std::min(kExtentsOfLaunch, count - first);
    WriteExtents write{{}, static_cast<Extent*>(result.data_ptr()) + first};
    std::copy_n(extents.begin() + first, n, write.from);
    for_each(x, n, write);
  }
  return result;
}

// A block counts a share of one row.
template <int V, class In>
__global__ void __launch_bounds__(kThreads)
    histograms_kernel(const Inputs<In, 1> in, const RowTiles tiles, const unsigned aligned,
                      const Extent* extents, const int bins, unsigned long long* counts) {
  uint32_t* tables = shared_memory<uint32_t>();
  const RowTask task = tiles.task(blockIdx.x, threadIdx.x);
  for (int i = threadIdx.x; i < kTableEntries; i += kThreads) tables[i] = 0;
  __syncthreads();
  const int copies = kTableEntries / bins;
  uint32_t* table = tables + threadIdx.x / kWarp % copies * bins;
  const Binning binning(extents[task.channel], bins);
  walk_rows<V>(
      in, tiles, task, aligned, [] {},
      [&](int64_t, const Loaded<In, 1, V>& loaded, const auto& part) {
#pragma unroll
        for (int k = 0; k < V; ++k)
          if (part.has(k))
            atomicAdd(table + binning.bin(static_cast<float>(loaded.x[0].get(k))), 1u);
      });
  __syncthreads();
  for (int i = threadIdx.x; i < bins; i += kThreads) {
    unsigned long long count = 0;
    for (int t = 0; t < copies; ++t) count += tables[t * bins + i];
    if (count != 0) atomicAdd(counts + task.channel * bins + i, count);
  }
}

// [rows, bins] in host memory. Where rows lie in short pieces, a copy brings them together.
inline std::vector<int64_t> histograms(const DeviceRows& rows, const std::vector<Extent>& ranges,
                                       int64_t bins) {
  Tensor x = rows.data;
  Shape s = rows.shape;
  const Tensor extents = on_device(x, ranges);
  const Tensor counts = torch::stable::new_zeros(x, {rows.count, bins}, ScalarType::Long);
  if (s.channels > 1 && s.outer > 1 && s.inner < kLongRow) {
    x = torch::stable::contiguous(torch::stable::transpose(x, 0, rows.axis));
    s = {1, s.channels, s.outer * s.inner};
  }
  dispatch_floating(x, "x", [&](auto tag) {
    using In = decltype(tag);
    constexpr int V = kVector<In>;
    const Inputs<In, 1> in{{x.const_data_ptr<In>()}};
    const RowTiles tiles(s.outer, s.channels, s.inner, s.groups, V, kThreads, kCountedByBlock,
                         kMostBlocks);
    launch(x, histograms_kernel<V, In>, {tiles.blocks(), kTableEntries * sizeof(uint32_t)}, in,
           tiles, unsigned{is_aligned<V>(in[0])}, static_cast<const Extent*>(extents.data_ptr()),
           static_cast<int>(bins), static_cast<unsigned long long*>(counts.data_ptr()));
  });
  const Tensor host = torch::stable::to(counts, torch::headeronly::DeviceType::CPU);
  const int64_t* data = host.const_data_ptr<int64_t>();
  return {data, data + rows.count * bins};
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
