// quantization_errors.inl - what quantizing a tensor loses, and how much of it to clipping.
//
//   sum (x - fake_quantize(x))^2,   sum (x - clamp(x, (qmin - o) s, (qmax - o) s))^2
//
// Values and differences are float32 and float64 as those of fake_quantize and similarity_sums; one
// pass makes no tensor.
#pragma once
#include "fake_quantize.inl"

namespace amct {
namespace AMCT_DEVICE_NS {

struct QuantizationErrors : Quantizer {
  AMCT_HD void operator()(const Factors& f, const float (&in)[1], double (&out)[2]) const {
    const float x = in[0];
    const float clipped =
        clamp(x, (range.min - f.offset) * f.scale, (range.max - f.offset) * f.scale);
    const double rounding = static_cast<double>(x) - amct::fake_quantize(x, f, range);
    const double clipping = static_cast<double>(x) - clipped;
    out[0] = rounding * rounding;
    out[1] = clipping * clipping;
  }
};

Tensor quantization_errors(const Tensor& x_, const Tensor& scale, const Tensor& offset,
                           int64_t num_bits) {
  check_num_bits(num_bits);
  const FactorTensors factors(x_, scale, offset, std::nullopt);
  const Tensor x = dense(x_);
  Tensor sums = torch::stable::new_empty(x, {2}, ScalarType::Double);
  const QuantizationErrors f{factors.quantizer(num_bits)};
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    sum<2, 0, T, 1>(x, shape_of(x, std::nullopt), {{x.const_data_ptr<T>()}}, f,
                    sums.mutable_data_ptr<double>());
  });
  return sums;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("quantization_errors", TORCH_BOX(&quantization_errors));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
