// ulq_scale.inl - a weight quantized by a scale that is learnt.
//
//   s = scale, or 1 / scale;  y = clip(rint(w / s)) s
//   d scale = sum over its n elements of grad * d / sqrt(n (2^(b-1) - 1))
//   d = 2^(b-1) - 1 where w > s (2^(b-1) - 1), -2^(b-1) where w < -s 2^(b-1), else rint(w/s) - w/s
//   (times -s^2 for a reciprocal)
//
// The gradient of the weight is that of the result, unmasked, and takes no kernel.
#pragma once
#include <cmath>
#include <optional>

#include "weight_scale.h"

namespace amct {
namespace AMCT_DEVICE_NS {

Tensor ulq_scale(const Tensor& weight_, const Tensor& scale_, int64_t num_bits,
                 std::optional<int64_t> axis, bool reciprocal, int64_t groups) {
  check_num_bits(num_bits);
  check_float_factors("scale", scale_, count_factors(weight_, axis, groups), weight_);
  const Tensor weight = dense(weight_, groups), scale = dense(scale_);
  return quantize_weight(weight, shape_of(weight, axis, groups),
                         {scale.const_data_ptr<float>(), quant_range(num_bits), true, reciprocal});
}

struct ScaleSlopes {  // inputs: weight, grad
  const float* scale;
  QuantRange range;
  bool reciprocal;
  AMCT_HD float channel(int64_t c) const { return positive_scale(scale[c], reciprocal); }
  AMCT_HD void operator()(float s, const float (&in)[2], double (&out)[1]) const {
    out[0] = static_cast<double>(in[1]) * scale_slope(in[0], s, range);
  }
};

struct ScaleGradient {
  ScaleSlopes slopes;
  const double* sums;
  double factor;
  float* grad;
  AMCT_HD void operator()(int64_t c) const {
    const double s = slopes.channel(c);
    grad[c] = static_cast<float>(sums[c] * factor * (slopes.reciprocal ? -s * s : 1.0));
  }
};

Tensor ulq_scale_backward(const Tensor& grad_, const Tensor& weight_, const Tensor& scale_,
                          int64_t num_bits, std::optional<int64_t> axis, bool reciprocal,
                          int64_t groups) {
  check_num_bits(num_bits);
  const int64_t count = count_factors(weight_, axis, groups);
  check_float_factors("scale", scale_, count, weight_);
  const Tensor weight = dense(weight_, groups), scale = dense(scale_);
  check_same_sizes("grad", grad_, "weight", weight);
  const Tensor grad = dense_as(grad_, weight);
  Tensor sums = new_vector(weight, count, ScalarType::Double);
  Tensor grad_scale = new_like(scale);
  const ScaleSlopes f{scale.const_data_ptr<float>(), quant_range(num_bits), reciprocal};
  dispatch_floating(weight, "weight", [&](auto tag) {
    using T = decltype(tag);
    sum<1, 0, T, 2>(weight, shape_of(weight, axis, groups),
                    {{weight.const_data_ptr<T>(), grad.const_data_ptr<T>()}}, f,
                    sums.mutable_data_ptr<double>());
  });
  const double shared = count == 0 ? 0 : static_cast<double>(weight.numel() / count);
  const double factor = shared == 0 ? 0 : 1 / std::sqrt(shared * f.range.max);
  for_each(weight, count,
           ScaleGradient{f, sums.const_data_ptr<double>(), factor,
                         grad_scale.mutable_data_ptr<float>()});
  return grad_scale;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ulq_scale", TORCH_BOX(&ulq_scale));
  m.impl("ulq_scale_backward", TORCH_BOX(&ulq_scale_backward));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
