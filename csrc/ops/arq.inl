// arq.inl - adaptive range quantization: the factors of a weight from its extremes.
//
//   asymmetric: s = (max - min) / (2^b - 1),  o = rint(-2^(b-1) - min / s)
//   symmetric : s = |min| / 2^(b-1) when |min| > |max|, else |max| / (2^(b-1) - 1);  o = 0
//
// min and max include zero; one pair for the tensor, or one per index of `axis`.
#pragma once
#include <cmath>
#include <optional>
#include <tuple>

#include "../ranges.h"
#include "../rows.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct ArqFactors {
  float* scale;
  int32_t* offset;
  int64_t num_bits;
  bool asymmetric;
  AMCT_HD void operator()(int64_t c, float lo, float hi) const {
    const bool finite = -HUGE_VALF < lo && hi < HUGE_VALF;  // false for NaN
    const bool holds = finite && (!asymmetric || hi - lo < HUGE_VALF);
    const ScaleOffset f =
        holds ? factors_of_range(lo, hi, num_bits, asymmetric) : ScaleOffset{HUGE_VALF, 0};
    scale[c] = f.scale;
    offset[c] = f.offset;
  }
};

std::tuple<Tensor, Tensor> arq(const Tensor& weight_, int64_t num_bits, std::optional<int64_t> axis,
                               bool asymmetric) {
  check_num_bits(num_bits);
  const Tensor weight = dense(weight_);
  const std::vector<int64_t> sizes =
      axis.has_value() ? std::vector<int64_t>{weight.size(check_axis(weight, *axis))}
                       : std::vector<int64_t>{};
  Tensor scale = torch::stable::new_empty(weight, sizes, ScalarType::Float);
  Tensor offset = torch::stable::new_empty(weight, sizes, ScalarType::Int);
  const ArqFactors f{scale.mutable_data_ptr<float>(), offset.mutable_data_ptr<int32_t>(), num_bits,
                     asymmetric};
  dispatch_floating(weight, "weight", [&](auto tag) {
    using T = decltype(tag);
    ranges(weight, shape_of(weight, axis), weight.const_data_ptr<T>(), f);
  });
  const Tensor host = torch::stable::to(scale, torch::headeronly::DeviceType::CPU);  // waits
  STD_TORCH_CHECK(all_finite(host.const_data_ptr<float>(), host.numel()),
                  "weight must be finite and its range within float32, got NaN or infinity");
  return {scale, offset};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) { m.impl("arq", TORCH_BOX(&arq)); }

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
