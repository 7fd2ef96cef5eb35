// arq_fake_quantize.inl - a weight quantized to the range it has, at every step of training.
//
//   s = |min| / 2^(b-1) when |min| > |max|, else |max| / (2^(b-1) - 1);  y = clip(rint(w / s)) s
//
// The scale is that of arq, symmetric; nothing is read on the host, so that a NaN or infinity
// is not refused: it makes its channel NaN.
#pragma once
#include <cmath>
#include <optional>
#include <tuple>

#include "../ranges.h"
#include "weight_scale.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct ArqScale {
  float* scale;
  int64_t num_bits;
  AMCT_HD void operator()(int64_t c, float lo, float hi) const {
    const bool known = lo == lo && hi == hi;
    scale[c] = known ? factors_of_range(lo, hi, num_bits, false).scale : lo + hi;
  }
};

std::tuple<Tensor, Tensor> arq_fake_quantize(const Tensor& weight_, int64_t num_bits,
                                             std::optional<int64_t> axis, int64_t groups) {
  check_num_bits(num_bits);
  const int64_t count = count_factors(weight_, axis, groups);
  const Tensor weight = dense(weight_, groups);
  const Shape shape = shape_of(weight, axis, groups);
  Tensor scale = axis.has_value() ? new_vector(weight, count, ScalarType::Float)
                                  : new_scalar(weight, ScalarType::Float);
  const ArqScale f{scale.mutable_data_ptr<float>(), num_bits};
  dispatch_floating(weight, "weight", [&](auto tag) {
    using T = decltype(tag);
    ranges(weight, shape, weight.const_data_ptr<T>(), f);
  });
  const QuantizeWeight by{scale.const_data_ptr<float>(), quant_range(num_bits), false, false};
  return {quantize_weight(weight, shape, by), scale};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("arq_fake_quantize", TORCH_BOX(&arq_fake_quantize));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
