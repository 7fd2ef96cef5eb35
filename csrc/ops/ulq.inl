// ulq.inl - quantization to a clip range that is learnt (ULQ), and its gradients.
//
//   asymmetric: s = (max - min) / (2^b - 1),  o = rint(-2^(b-1) - min / s)
//   symmetric : s = |min| / 2^(b-1) when |min| > |max|, else |max| / (2^(b-1) - 1);  o = 0
//   y = (clip(rint(x / s + o), qmin, qmax) - o) s
//
// The clips lie on the device of x and are guarded there (guard_clips); nothing is read on
// the host. The gradients are those of ulq_clip_gradients, all from one pass over x and grad.
#pragma once
#include <optional>
#include <tuple>

#include "../checks.h"
#include "../layout.h"
#include "../loops.h"
#include "../quant_math.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct UlqFactors {
  const float *max, *min, *previous_max, *previous_min;  // the last two may be null
  int64_t num_bits;
  bool fixed_min, asymmetric;
  float* scale;
  int32_t* offset;
  float *guarded_max, *guarded_min;
  AMCT_HD void operator()(int64_t) const {
    const Clips previous = previous_max ? Clips{*previous_max, *previous_min} : Clips{0.0f, 0.0f};
    const Clips clips = guard_clips({*max, *min}, previous, fixed_min);
    const ScaleOffset f = factors_of_range(clips.min, clips.max, num_bits, asymmetric);
    *scale = f.scale;
    *offset = f.offset;
    *guarded_max = clips.max;
    *guarded_min = clips.min;
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> ulq_factors(const Tensor& clip_max,
                                                       const Tensor& clip_min, int64_t num_bits,
                                                       bool fixed_min, bool asymmetric,
                                                       const std::optional<Tensor>& previous_max,
                                                       const std::optional<Tensor>& previous_min) {
  check_num_bits(num_bits);
  check_float_factors("clip_max", clip_max, 1, clip_max);
  check_float_factors("clip_min", clip_min, 1, clip_max);
  STD_TORCH_CHECK(previous_max.has_value() == previous_min.has_value(),
                  "previous must have both ends or none");
  if (previous_max.has_value()) {
    check_float_factors("previous clip_max", *previous_max, 1, clip_max);
    check_float_factors("previous clip_min", *previous_min, 1, clip_max);
  }
  auto pointer = [](const std::optional<Tensor>& t) {
    return t.has_value() ? t->const_data_ptr<float>() : nullptr;
  };
  Tensor scale = new_scalar(clip_max, ScalarType::Float);
  Tensor offset = new_scalar(clip_max, ScalarType::Int);
  Tensor guarded_max = new_scalar(clip_max, ScalarType::Float);
  Tensor guarded_min = new_scalar(clip_max, ScalarType::Float);
  for_each(
      clip_max, 1,
      UlqFactors{clip_max.const_data_ptr<float>(), clip_min.const_data_ptr<float>(),
                 pointer(previous_max), pointer(previous_min), num_bits, fixed_min, asymmetric,
                 scale.mutable_data_ptr<float>(), offset.mutable_data_ptr<int32_t>(),
                 guarded_max.mutable_data_ptr<float>(), guarded_min.mutable_data_ptr<float>()});
  return {scale, offset, guarded_max, guarded_min};
}

struct Ulq {
  const float* scale;
  const int32_t* offset;
  QuantRange range;
  AMCT_HD Factors channel(int64_t) const {
    return {*scale, 0.0f, static_cast<float>(*offset)};  // the inverse plays no part
  }
  AMCT_HD float operator()(const Factors& f, const float (&in)[1]) const {
    return divide_quantize(in[0], f.scale, f.offset, range);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> ulq(const Tensor& x_, const Tensor& clip_max,
                                                       const Tensor& clip_min, int64_t num_bits,
                                                       bool fixed_min, bool asymmetric,
                                                       const std::optional<Tensor>& previous_max,
                                                       const std::optional<Tensor>& previous_min) {
  check_float_factors("clip_max", clip_max, 1, x_);
  const auto [scale, offset, guarded_max, guarded_min] =
      ulq_factors(clip_max, clip_min, num_bits, fixed_min, asymmetric, previous_max, previous_min);
  const Tensor x = dense(x_);
  Tensor y = new_like(x);
  const Ulq f{scale.const_data_ptr<float>(), offset.const_data_ptr<int32_t>(),
              quant_range(num_bits)};
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    map<T, 1, T>(x, shape_of(x, std::nullopt), {{x.const_data_ptr<T>()}}, y.mutable_data_ptr<T>(),
                 f);
  });
  return {y, scale, offset, guarded_max, guarded_min};
}

struct UlqBackward {  // inputs: x, grad
  const float *max, *min;
  int64_t num_bits;
  bool asymmetric;
  AMCT_HD ScaleOffset factors() const { return factors_of_range(*min, *max, num_bits, asymmetric); }
  AMCT_HD UlqRange channel(int64_t) const { return ulq_range(factors(), quant_range(num_bits)); }
  AMCT_HD float operator()(const UlqRange& range, const float (&in)[2],
                           double (&out)[kUlqSums]) const {
    return ulq_terms(in[0], in[1], range, out);
  }
};

struct UlqClipGradients {
  UlqBackward of;
  bool fixed_min;
  const double* sums;
  float *grad_max, *grad_min;
  AMCT_HD void operator()(int64_t) const {
    const double total[kUlqSums] = {sums[0], sums[1], sums[2]};
    const ClipGradients g = ulq_clip_gradients(total, {*of.max, *of.min}, of.factors(),
                                               quant_range(of.num_bits), of.asymmetric);
    *grad_max = static_cast<float>(g.max);
    *grad_min = fixed_min ? 0.0f : static_cast<float>(g.min);
  }
};

// The clips are those that ulq returned: guarded.
std::tuple<Tensor, Tensor, Tensor> ulq_backward(const Tensor& grad_, const Tensor& x_,
                                                const Tensor& clip_max, const Tensor& clip_min,
                                                int64_t num_bits, bool fixed_min, bool asymmetric) {
  check_num_bits(num_bits);
  check_float_factors("clip_max", clip_max, 1, x_);
  check_float_factors("clip_min", clip_min, 1, x_);
  const Tensor x = dense(x_);
  check_same_sizes("grad", grad_, "x", x);
  const Tensor grad = dense_as(grad_, x);
  Tensor grad_x = new_like(x), grad_max = new_like(clip_max), grad_min = new_like(clip_min);
  Tensor sums = new_vector(x, kUlqSums, ScalarType::Double);
  const UlqBackward f{clip_max.const_data_ptr<float>(), clip_min.const_data_ptr<float>(), num_bits,
                      asymmetric};
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    map_sum<kUlqSums, 0, T, 2, T>(x, shape_of(x, std::nullopt),
                                  {{x.const_data_ptr<T>(), grad.const_data_ptr<T>()}},
                                  grad_x.mutable_data_ptr<T>(), f, sums.mutable_data_ptr<double>());
  });
  for_each(
      x, 1,
      UlqClipGradients{f, fixed_min, sums.const_data_ptr<double>(),
                       grad_max.mutable_data_ptr<float>(), grad_min.mutable_data_ptr<float>()});
  return {grad_x, grad_max, grad_min};
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("ulq_factors", TORCH_BOX(&ulq_factors));
  m.impl("ulq", TORCH_BOX(&ulq));
  m.impl("ulq_backward", TORCH_BOX(&ulq_backward));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
