// similarity.inl - how far tensor b is from tensor a, as sums for the host to finish.
//
//   sum a^2, sum b^2, sum (a - b)^2, sum (a - b)(a + b), max |a - b|
//
// Products with the difference a - b, which float64 holds exactly or nearly so, keep what
// the sums of a * b would cancel when the tensors are close.
#pragma once
#include "../checks.h"
#include "../layout.h"
#include "../loops.h"

namespace amct {
namespace AMCT_DEVICE_NS {

constexpr int kSimilaritySums = 5;

struct SimilarityTerms {
  AMCT_HD int channel(int64_t) const { return 0; }
  AMCT_HD void operator()(int, const float (&in)[2], double (&out)[kSimilaritySums]) const {
    const double a = in[0], b = in[1], difference = a - b;
    out[0] = a * a;
    out[1] = b * b;
    out[2] = difference * difference;
    out[3] = difference * (a + b);
    out[4] = difference < 0 ? -difference : difference;
  }
};

Tensor similarity_sums(const Tensor& a_, const Tensor& b_) {
  const Tensor a = dense(a_);
  check_same_sizes("b", b_, "a", a);
  const Tensor b = dense_as(b_, a);
  Tensor sums = torch::stable::new_empty(a, {kSimilaritySums}, ScalarType::Double);
  dispatch_floating(a, "a", [&](auto tag) {
    using T = decltype(tag);
    sum<kSimilaritySums, 1, T, 2>(a, shape_of(a, std::nullopt),
                                  {{a.const_data_ptr<T>(), b.const_data_ptr<T>()}},
                                  SimilarityTerms{}, sums.mutable_data_ptr<double>());
  });
  return sums;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("similarity_sums", TORCH_BOX(&similarity_sums));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
