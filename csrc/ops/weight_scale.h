// weight_scale.h - a weight quantized by one scale, or one for each channel, with offset 0.
#pragma once
#include "../loops.h"
#include "../quant_math.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct QuantizeWeight {
  const float* scale;
  QuantRange range;
  bool learnt;      // kept positive by positive_scale
  bool reciprocal;  // of a learnt scale
  AMCT_HD float channel(int64_t c) const {
    return learnt ? positive_scale(scale[c], reciprocal) : scale[c];
  }
  AMCT_HD float operator()(float s, const float (&in)[1]) const {
    return divide_quantize(in[0], s, 0.0f, range);
  }
};

// `weight` as dense(.., groups) makes it.
inline Tensor quantize_weight(const Tensor& weight, const Shape& shape, const QuantizeWeight& f) {
  Tensor y = new_like(weight);
  dispatch_floating(weight, "weight", [&](auto tag) {
    using T = decltype(tag);
    map<T, 1, T>(weight, shape, {{weight.const_data_ptr<T>()}}, y.mutable_data_ptr<T>(), f);
  });
  return y;
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
