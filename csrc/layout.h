// layout.h - tensors as dense blocks of memory, whatever their strides.
//
// An op works on memory in the order in which it lies: an output has the strides of
// empty_like(input), and a channel axis is found by its place in that order. Only a
// tensor with gaps or overlaps (a slice, an expanded tensor) is copied first.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include "checks.h"

namespace amct {

constexpr int64_t kMaxDims = 64;

// A tensor seen as [outer, channels, inner] in the order of its memory.
struct Shape {
  int64_t outer = 1, channels = 1, inner = 1;
  int64_t numel() const { return outer * channels * inner; }
};

// Asks for huge pages behind a large fresh CPU tensor: on first touch the page faults of
// ordinary pages cost several times the arithmetic (measured: 64 MB, 21 ms against 5.5 ms).
inline void advise_huge_pages([[maybe_unused]] const Tensor& t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 4096, kWorthwhile = uintptr_t{4} << 20;
  const uintptr_t bytes = static_cast<uintptr_t>(t.numel()) * t.element_size();
  if (t.is_cuda() || bytes < kWorthwhile) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(t.data_ptr()) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(t.data_ptr()) + bytes) & ~(kPage - 1);
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: may fail
#endif
}

// A new tensor like `t`, as torch.empty_like makes it, optionally of another dtype.
inline Tensor new_like(const Tensor& t, std::optional<ScalarType> dtype = std::nullopt) {
  using torch::stable::detail::from;
  const auto none = from(std::nullopt);
  std::array<StableIValue, 6> stack{from(t), from(dtype), none, none, none, none};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
  advise_huge_pages(result);
  return result;
}

// Dimensions of more than one element, by descending stride.
struct MemoryOrder {
  std::array<int64_t, kMaxDims> dims;
  int64_t count = 0;
};

inline MemoryOrder memory_order(const Tensor& t) {
  MemoryOrder order;
  STD_TORCH_CHECK(t.dim() <= kMaxDims, "tensors have at most ", kMaxDims, " dimensions, got ",
                  t.dim());
  for (int64_t d = 0; d < t.dim(); ++d)
    if (t.size(d) != 1) order.dims[order.count++] = d;
  std::stable_sort(order.dims.begin(), order.dims.begin() + order.count,
                   [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
  return order;
}

// True when the elements fill their memory without gap or overlap, in any order of dimensions.
inline bool is_dense(const Tensor& t) {
  if (t.is_contiguous() || t.numel() == 0) return true;
  const MemoryOrder order = memory_order(t);
  int64_t expected = 1;
  for (int64_t i = order.count - 1; i >= 0; --i) {
    if (t.stride(order.dims[i]) != expected) return false;
    expected *= t.size(order.dims[i]);
  }
  return true;
}

// The tensor itself when it is dense, else a dense copy with the strides of empty_like(t).
inline Tensor dense(const Tensor& t) {
  if (is_dense(t)) return t;
  Tensor copy = new_like(t);
  torch::stable::copy_(copy, t);
  return copy;
}

inline bool same_strides(const Tensor& a, const Tensor& b) {
  for (int64_t d = 0; d < a.dim(); ++d)
    if (a.size(d) != 1 && a.stride(d) != b.stride(d)) return false;
  return true;
}

// `t` in the memory order of `like` (same sizes), without a copy when it is already.
inline Tensor dense_as(const Tensor& t, const Tensor& like) {
  if (same_strides(t, like)) return t;
  Tensor copy = new_like(like);
  torch::stable::copy_(copy, t);
  return copy;
}

// [outer, channels, inner] of a dense tensor around `axis`, in memory order.
inline Shape shape_of(const Tensor& x, std::optional<int64_t> axis) {
  if (!axis.has_value()) return {1, 1, x.numel()};
  const int64_t a = check_axis(x, *axis);
  if (x.size(a) == 1) return {1, 1, x.numel()};
  Shape s;
  s.channels = x.size(a);
  const MemoryOrder order = memory_order(x);
  bool seen = false;
  for (int64_t i = 0; i < order.count; ++i) {
    if (order.dims[i] == a) {
      seen = true;
    } else {
      (seen ? s.inner : s.outer) *= x.size(order.dims[i]);
    }
  }
  return s;
}

}  // namespace amct
