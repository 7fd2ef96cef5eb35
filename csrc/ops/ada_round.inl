// ada_round.inl - a weight rounded up or down as a variable of its own says (AdaRound).
//
//   y = clamp(floor(w / s) + h(a), -2^(b-1), 2^(b-1) - 1) s
//   h(a) = clamp(1.2 sigmoid(a) - 0.1, 0, 1);  hard: h(a) >= 1/2 instead
//   start: a = -ln(1.2 / (w / s - floor(w / s) + 0.1) - 1), with which y = w
//   undecided: sum of 1 - |2 h(a) - 1|^beta
//
// The gradient is that of `a` alone; it is zero where h or the code is clamped.
#pragma once
#include <optional>

#include "../checks.h"
#include "../layout.h"
#include "../loops.h"

namespace amct {
namespace AMCT_DEVICE_NS {

inline void check_float32(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32, got ",
                  torch::headeronly::toString(t.scalar_type()));
}

struct AdaRound {  // inputs: weight, alpha
  const float* scale;
  QuantRange range;
  bool hard;
  AMCT_HD float channel(int64_t c) const { return scale[c]; }
  AMCT_HD float operator()(float s, const float (&in)[2]) const {
    const float soft = ada_rounding(in[1]).up;
    const float up = hard ? (soft >= 0.5f ? 1.0f : 0.0f) : soft;
    return clamp(ada_code(in[0], s, up), range.min, range.max) * s;
  }
};

struct AdaRoundSlope {  // inputs: weight, alpha, grad
  const float* scale;
  QuantRange range;
  AMCT_HD float channel(int64_t c) const { return scale[c]; }
  AMCT_HD float operator()(float s, const float (&in)[3]) const {
    const Rounding rounding = ada_rounding(in[1]);
    const float code = ada_code(in[0], s, rounding.up);
    return code >= range.min && code <= range.max ? in[2] * s * rounding.slope : 0.0f;
  }
};

struct AdaStart {
  const float* scale;
  AMCT_HD float channel(int64_t c) const { return scale[c]; }
  AMCT_HD float operator()(float s, const float (&in)[1]) const { return ada_start(in[0], s); }
};

struct AdaUndecided {
  float beta;
  AMCT_HD int channel(int64_t) const { return 0; }
  AMCT_HD void operator()(int, const float (&in)[1], double (&out)[1]) const {
    out[0] = ada_undecided(in[0], beta);
  }
};

struct AdaUndecidedSlope {
  const float* grad;
  float beta;
  AMCT_HD float channel(int64_t) const { return grad[0]; }
  AMCT_HD float operator()(float g, const float (&in)[1]) const {
    return g * ada_undecided_slope(in[0], beta);
  }
};

struct ToFloat {
  const double* from;
  float* to;
  AMCT_HD void operator()(int64_t i) const { to[i] = static_cast<float>(from[i]); }
};

Tensor ada_round(const Tensor& weight_, const Tensor& alpha_, const Tensor& scale_,
                 int64_t num_bits, std::optional<int64_t> axis, int64_t groups, bool hard) {
  check_num_bits(num_bits);
  check_float32("weight", weight_);
  check_float_factors("scale", scale_, count_factors(weight_, axis, groups), weight_);
  const Tensor weight = dense(weight_, groups), scale = dense(scale_);
  check_same_sizes("alpha", alpha_, "weight", weight);
  const Tensor alpha = dense_as(alpha_, weight);
  Tensor y = new_like(weight);
  map<float, 2, float>(weight, shape_of(weight, axis, groups),
                       {{weight.const_data_ptr<float>(), alpha.const_data_ptr<float>()}},
                       y.mutable_data_ptr<float>(),
                       AdaRound{scale.const_data_ptr<float>(), quant_range(num_bits), hard});
  return y;
}

Tensor ada_round_backward(const Tensor& grad_, const Tensor& weight_, const Tensor& alpha_,
                          const Tensor& scale_, int64_t num_bits, std::optional<int64_t> axis,
                          int64_t groups) {
  check_num_bits(num_bits);
  check_float32("weight", weight_);
  check_float_factors("scale", scale_, count_factors(weight_, axis, groups), weight_);
  const Tensor weight = dense(weight_, groups), scale = dense(scale_);
  check_same_sizes("alpha", alpha_, "weight", weight);
  check_same_sizes("grad", grad_, "weight", weight);
  const Tensor alpha = dense_as(alpha_, weight), grad = dense_as(grad_, weight);
  Tensor grad_alpha = new_like(weight);
  map<float, 3, float>(weight, shape_of(weight, axis, groups),
                       {{weight.const_data_ptr<float>(), alpha.const_data_ptr<float>(),
                         grad.const_data_ptr<float>()}},
                       grad_alpha.mutable_data_ptr<float>(),
                       AdaRoundSlope{scale.const_data_ptr<float>(), quant_range(num_bits)});
  return grad_alpha;
}

Tensor ada_round_start(const Tensor& weight_, const Tensor& scale_, std::optional<int64_t> axis,
                       int64_t groups) {
  check_float32("weight", weight_);
  check_float_factors("scale", scale_, count_factors(weight_, axis, groups), weight_);
  const Tensor weight = dense(weight_, groups), scale = dense(scale_);
  Tensor alpha = new_like(weight);
  map<float, 1, float>(weight, shape_of(weight, axis, groups), {{weight.const_data_ptr<float>()}},
                       alpha.mutable_data_ptr<float>(), AdaStart{scale.const_data_ptr<float>()});
  return alpha;
}

Tensor ada_round_undecided(const Tensor& alpha_, double beta) {
  check_float32("alpha", alpha_);
  const Tensor alpha = dense(alpha_);
  Tensor total = torch::stable::new_empty(alpha, {}, ScalarType::Double);
  Tensor result = torch::stable::new_empty(alpha, {}, ScalarType::Float);
  sum<1, 0, float, 1>(alpha, shape_of(alpha, std::nullopt), {{alpha.const_data_ptr<float>()}},
                      AdaUndecided{static_cast<float>(beta)}, total.mutable_data_ptr<double>());
  for_each(alpha, 1, ToFloat{total.const_data_ptr<double>(), result.mutable_data_ptr<float>()});
  return result;
}

Tensor ada_round_undecided_backward(const Tensor& grad, const Tensor& alpha_, double beta) {
  check_float32("alpha", alpha_);
  check_float_factors("grad", grad, 1, alpha_);
  const Tensor alpha = dense(alpha_);
  Tensor grad_alpha = new_like(alpha);
  map<float, 1, float>(alpha, shape_of(alpha, std::nullopt), {{alpha.const_data_ptr<float>()}},
                       grad_alpha.mutable_data_ptr<float>(),
                       AdaUndecidedSlope{grad.const_data_ptr<float>(), static_cast<float>(beta)});
  return grad_alpha;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ada_round", TORCH_BOX(&ada_round));
  m.impl("ada_round_backward", TORCH_BOX(&ada_round_backward));
  m.impl("ada_round_start", TORCH_BOX(&ada_round_start));
  m.impl("ada_round_undecided", TORCH_BOX(&ada_round_undecided));
  m.impl("ada_round_undecided_backward", TORCH_BOX(&ada_round_undecided_backward));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
