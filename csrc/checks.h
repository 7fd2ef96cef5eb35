// checks.h - argument checks shared by every op.
//
// A check names the argument and says what came. Wrong Python types raise TypeError in
// the Python layer, before the op; what is left here guards C++ callers as well.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/macros/Macros.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <cstdio>
#include <optional>
#include <stdexcept>
#include <string>

namespace amct {
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// A number as messages show it: std::to_string makes 0.000000 of a small one.
inline std::string shown(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

inline void check_num_bits(int64_t num_bits) {
  if (num_bits < 2 || num_bits > 16)
    throw std::invalid_argument("num_bits must be in [2, 16], got " + std::to_string(num_bits));
}

// The same shape, dtype and device.
inline void check_same_sizes(const char* name, const Tensor& t, const char* as, const Tensor& ref) {
  STD_TORCH_CHECK(t.dim() == ref.dim(), name, " must have the shape of ", as, ": got ", t.dim(),
                  " dimensions, expected ", ref.dim());
  for (int64_t d = 0; d < t.dim(); ++d)
    STD_TORCH_CHECK(t.size(d) == ref.size(d), name, " must have the shape of ", as, ": dimension ",
                    d, " is ", t.size(d), ", expected ", ref.size(d));
  STD_TORCH_CHECK(t.scalar_type() == ref.scalar_type(), name, " must have the dtype of ", as,
                  ": got ", torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(t.is_cuda() == ref.is_cuda() && t.get_device_index() == ref.get_device_index(),
                  name, " must be on the device of ", as);
}

// float32, `count` elements in at most one dimension, on the device of `of`.
inline void check_float_factors(const char* name, const Tensor& t, int64_t count,
                                const Tensor& of) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32, got ",
                  torch::headeronly::toString(t.scalar_type()));
  STD_TORCH_CHECK(t.dim() <= 1, name, " must be 0-d or 1-d, got ", t.dim(), "-d");
  STD_TORCH_CHECK(t.numel() == count, name, " must have ", count,
                  count == 1 ? " element, got " : " elements, got ", t.numel());
  STD_TORCH_CHECK(t.get_device_index() == of.get_device_index() && t.is_cuda() == of.is_cuda(),
                  name, " must be on the device of the tensor it belongs to");
}

inline int64_t check_axis(const Tensor& x, int64_t axis) {
  const int64_t dims = x.dim();
  if (axis < -dims || axis >= dims)
    throw std::out_of_range("axis " + std::to_string(axis) + " is out of range for a tensor of " +
                            std::to_string(dims) + " dimensions");
  return axis < 0 ? axis + dims : axis;
}

// scale float32 and offset int32: one element without `axis`, one per channel with it.
inline void check_factors(const Tensor& x, const Tensor& scale, const Tensor& offset,
                          std::optional<int64_t> axis) {
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float, "scale must be float32, got ",
                  torch::headeronly::toString(scale.scalar_type()));
  STD_TORCH_CHECK(offset.scalar_type() == ScalarType::Int, "offset must be int32, got ",
                  torch::headeronly::toString(offset.scalar_type()));
  STD_TORCH_CHECK(scale.dim() <= 1, "scale must be 0-d or 1-d, got ", scale.dim(), "-d");
  STD_TORCH_CHECK(offset.dim() <= 1, "offset must be 0-d or 1-d, got ", offset.dim(), "-d");
  STD_TORCH_CHECK(
      scale.get_device_index() == x.get_device_index() && scale.is_cuda() == x.is_cuda(),
      "scale must be on the device of the tensor it quantizes");
  STD_TORCH_CHECK(
      offset.get_device_index() == x.get_device_index() && offset.is_cuda() == x.is_cuda(),
      "offset must be on the device of the tensor it quantizes");
  const int64_t channels = axis.has_value() ? x.size(check_axis(x, *axis)) : 1;
  if (axis.has_value()) {
    STD_TORCH_CHECK(scale.numel() == channels, "scale must have ", channels,
                    " elements, the size of dimension ", *axis, ", got ", scale.numel());
    STD_TORCH_CHECK(offset.numel() == channels, "offset must have ", channels,
                    " elements, the size of dimension ", *axis, ", got ", offset.numel());
  } else {
    STD_TORCH_CHECK(scale.numel() == 1, "scale must have 1 element when axis is None, got ",
                    scale.numel());
    STD_TORCH_CHECK(offset.numel() == 1, "offset must have 1 element when axis is None, got ",
                    offset.numel());
  }
}

}  // namespace amct
