// ranges_cuda.h - ranges of ranges.h as kernels. Included by ranges.h.
#pragma once
#include "loops.h"

namespace amct {

// The range of a channel as it grows: order_keys, turned so that both are maxima and start
// from zero, which stands for no value.
struct KeyRange {
  uint32_t below = 0, above = 0;
  AMCT_HD void extend(float v) {
    const uint32_t key = static_cast<uint32_t>(order_key(v)) ^ 0x80000000u;
    below = below > ~key ? below : ~key;
    above = above > key ? above : key;
  }
  AMCT_HD void extend(uint32_t other_below, uint32_t other_above) {
    below = below > other_below ? below : other_below;
    above = above > other_above ? above : other_above;
  }
  AMCT_HD int32_t least_key() const { return static_cast<int32_t>(~below ^ 0x80000000u); }
  AMCT_HD int32_t greatest_key() const { return static_cast<int32_t>(above ^ 0x80000000u); }
};

__device__ __forceinline__ void extend(KeyRange* of_channel, const KeyRange& e) {
  atomicMax(&of_channel->below, e.below);
  atomicMax(&of_channel->above, e.above);
}

template <int V, class In>
__global__ void __launch_bounds__(kThreads)
    key_ranges_of_rows_kernel(const Inputs<In, 1> in, const RowTiles tiles, const unsigned aligned,
                              KeyRange* key_ranges) {
  const RowTask task = tiles.task(blockIdx.x, threadIdx.x);
  if (task.index >= tiles.tasks()) return;  // whole warps
  KeyRange own;
  walk_rows<V>(
      in, tiles, task, aligned, [] {},
      [&](int64_t, const Loaded<In, 1, V>& loaded, const auto& part) {
#pragma unroll
        for (int k = 0; k < V; ++k)
          if (part.has(k)) own.extend(static_cast<float>(loaded.x[0].get(k)));
      });
  for (int distance = kWarp / 2; distance > 0; distance >>= 1)
    own.extend(__shfl_xor_sync(0xffffffffu, own.below, distance),
               __shfl_xor_sync(0xffffffffu, own.above, distance));
  if (threadIdx.x % kWarp == 0) extend(key_ranges + task.channel, own);
}

template <int V, class In>
__global__ void __launch_bounds__(kThreads)
    key_ranges_of_lines_kernel(const Inputs<In, 1> in, const LineTiles tiles,
                               const unsigned aligned, KeyRange* key_ranges) {
  const LineTask task = tiles.task(blockIdx.x, threadIdx.x);
  KeyRange own[V];
  walk_lines<V>(in, tiles, task, aligned, [&](int64_t, const Loaded<In, 1, V>& loaded) {
#pragma unroll
    for (int k = 0; k < V; ++k) own[k].extend(static_cast<float>(loaded.x[0].get(k)));
  });
  if (task.is_idle()) return;
  tiles.template for_each_channel<V>(
      task, [&](int k, int64_t channel) { extend(key_ranges + channel, own[k]); });
}

template <int V, class In>
void key_ranges_of_lines(const Tensor& x, const Shape s, const Inputs<In, 1> in,
                         KeyRange* key_ranges) {
  const LineTiles tiles(s.outer, s.channels, s.inner, s.groups, V, true);
  launch(x, key_ranges_of_lines_kernel<V, In>, {tiles.blocks()}, in, tiles,
         unsigned{is_aligned<V>(in[0])}, key_ranges);
}

// The KeyRange of every channel, in new device memory.
template <class In>
Tensor key_ranges_of(const Tensor& x, const Shape s, const In* in) {
  constexpr int V = kVector<In>;
  Tensor result = torch::stable::new_zeros(x, {s.channels, 2}, ScalarType::Int);
  auto* key_ranges = static_cast<KeyRange*>(result.data_ptr());
  if (s.numel() == 0) return result;
  const Inputs<In, 1> inputs{{in}};
  if (!LineTiles::suit(s.outer, s.channels, s.inner)) {
    const auto tiles = RowTiles::of_loop(s.outer, s.channels, s.inner, s.groups, V, true);
    launch(x, key_ranges_of_rows_kernel<V, In>, {tiles.blocks()}, inputs, tiles,
           unsigned{is_aligned<V>(in)}, key_ranges);
  } else if (s.width() * s.inner % V == 0) {
    key_ranges_of_lines<V>(x, s, inputs, key_ranges);
  } else {
    key_ranges_of_lines<1>(x, s, inputs, key_ranges);
  }
  return result;
}

template <class F>
struct RangeResult {
  F f;
  const KeyRange* key_ranges;
  bool empty;
  AMCT_HD void operator()(int64_t c) const {
    const int32_t least = empty ? kZeroKey : key_ranges[c].least_key();
    const int32_t greatest = empty ? kZeroKey : key_ranges[c].greatest_key();
    f(c, value_of_key(least < kZeroKey ? least : kZeroKey),
      value_of_key(greatest > kZeroKey ? greatest : kZeroKey));
  }
};

template <class In, class F>
void ranges(const Tensor& x, const Shape s, const In* in, const F& f) {
  if (s.channels == 0) return;
  const Tensor key_ranges = key_ranges_of(x, s, in);
  for_each(x, s.channels,
           RangeResult<F>{f, static_cast<const KeyRange*>(key_ranges.data_ptr()), s.numel() == 0});
}
}  // namespace amct
