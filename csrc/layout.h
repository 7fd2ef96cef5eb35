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
#include "quant_math.h"

namespace amct {

constexpr int64_t kMaxDims = 64;

// A tensor seen as [groups, outer, channels / groups, inner] in the order of its memory. A row
// is `inner` elements, all of one channel; every group has channels of its own.
struct Shape {
  int64_t outer = 1, channels = 1, inner = 1, groups = 1;
  AMCT_HD int64_t numel() const { return outer * channels * inner; }
  AMCT_HD int64_t width() const { return channels / groups; }  // channels of one group
  AMCT_HD int64_t channel_of(int64_t row) const {
    if (groups == 1) return row % channels;
    return row / (outer * width()) * width() + row % width();
  }
  // Where element t of the outer * inner elements of a channel lies.
  AMCT_HD int64_t position(int64_t channel, int64_t t) const {
    if (channels == 1) return t;
    const int64_t line = groups == 1 ? t / inner : channel / width() * outer + t / inner;
    return (line * width() + channel % width()) * inner + t % inner;
  }
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

// A new tensor of these sizes and strides on the device of `t`, straight from the allocator:
// new_empty and empty_like take four times as long on their way through the dispatcher.
inline Tensor new_strided(const Tensor& t, int64_t dims, const int64_t* sizes,
                          const int64_t* strides, ScalarType dtype) {
  int32_t device_type;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      dims, sizes, strides, torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      device_type, t.get_device_index(), &handle));
  return Tensor(handle);
}

// A new tensor without dimensions, and one of `size` elements, on the device of `t`.
inline Tensor new_scalar(const Tensor& t, ScalarType dtype) {
  return new_strided(t, 0, nullptr, nullptr, dtype);
}

inline Tensor new_vector(const Tensor& t, int64_t size, ScalarType dtype) {
  constexpr int64_t kStride = 1;
  return new_strided(t, 1, &size, &kStride, dtype);
}

// A new tensor like `t`, as torch.empty_like makes it, optionally of another dtype.
inline Tensor new_like(const Tensor& t, std::optional<ScalarType> dtype = std::nullopt) {
  if (is_dense(t) && t.numel() > 0) {  // one without elements may have any strides
    Tensor result = new_strided(t, t.dim(), t.sizes().data(), t.strides().data(),
                                dtype.value_or(t.scalar_type()));
    advise_huge_pages(result);
    return result;
  }
  using torch::stable::detail::from;
  const auto none = from(std::nullopt);
  std::array<StableIValue, 6> stack{from(t), from(dtype), none, none, none, none};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
  advise_huge_pages(result);
  return result;
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

// The Shape of a dense tensor around `axis`.
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

// With groups > 1, `axis` is 1 and dimension 0 holds that many blocks with channels of their
// own, as in the weight of a transposed convolution: factor block * size(1) + j belongs to
// index j of dimension 1 in a block of dimension 0.
inline void check_groups(const Tensor& x, std::optional<int64_t> axis, int64_t groups) {
  if (groups == 1) return;
  if (groups < 1)
    throw std::invalid_argument("groups must be at least 1, got " + std::to_string(groups));
  if (!axis.has_value() || check_axis(x, *axis) != 1)
    throw std::invalid_argument("groups above 1 go with axis 1, got " +
                                (axis.has_value() ? "axis " + std::to_string(*axis) : "no axis"));
  if (x.size(0) % groups != 0)
    throw std::invalid_argument("groups must divide dimension 0, " + std::to_string(x.size(0)) +
                                ", got " + std::to_string(groups));
}

// Factors of a tensor: one without `axis`, one per channel with it.
inline int64_t count_factors(const Tensor& x, std::optional<int64_t> axis, int64_t groups) {
  check_groups(x, axis, groups);
  return axis.has_value() ? groups * x.size(check_axis(x, *axis)) : 1;
}

// What shape_of takes: groups are blocks of memory only where dimension 0 comes first.
inline Tensor dense(const Tensor& x, int64_t groups) {
  return groups == 1 ? dense(x) : torch::stable::contiguous(x);
}

inline Shape shape_of(const Tensor& x, std::optional<int64_t> axis, int64_t groups) {
  if (groups == 1) return shape_of(x, axis);
  Shape s{x.size(0) / groups, groups * x.size(1), 1, groups};
  for (int64_t d = 2; d < x.dim(); ++d) s.inner *= x.size(d);
  if (s.width() == 1) return {1, groups, s.outer * s.inner};
  return s;
}

}  // namespace amct
