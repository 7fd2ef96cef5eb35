// shift.inl - what a layer's results lose where 32-bit accumulators are stored as 16 bits.
//
//   s32 = clip(rint(out / deq_scale), int32);  s16(N) = clip(floor(s32 / 2^N), int16)
//   errors[c, N - 1] = sum over channel c of (s32 - s16(N) 2^N)^2,  N = 1..16
#pragma once
#include <optional>

#include "../checks.h"
#include "../layout.h"
#include "../loops.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct ShiftErrors {
  const float* deq_scale;
  AMCT_HD float channel(int64_t c) const { return deq_scale[c]; }
  AMCT_HD void operator()(float scale, const float (&in)[1], double (&out)[kShifts]) const {
    const double accumulator = accumulator_of(in[0], scale);
    for (int n = 1; n <= kShifts; ++n) out[n - 1] = shift_error(accumulator, n);
  }
};

Tensor shift_errors(const Tensor& out_, const Tensor& deq_scale_, std::optional<int64_t> axis) {
  const int64_t channels = count_factors(out_, axis, 1);
  check_float_factors("deq_scale", deq_scale_, channels, out_);
  const Tensor out = dense(out_), deq_scale = dense(deq_scale_);
  Tensor errors = torch::stable::new_empty(out, {channels, kShifts}, ScalarType::Double);
  dispatch_floating(out, "out", [&](auto tag) {
    using T = decltype(tag);
    sum<kShifts, 0, T, 1>(out, shape_of(out, axis), {{out.const_data_ptr<T>()}},
                          ShiftErrors{deq_scale.const_data_ptr<float>()},
                          errors.mutable_data_ptr<double>());
  });
  return errors;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("shift_errors", TORCH_BOX(&shift_errors));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
