// Quantizes a tensor with the ops of amct_pytorch, called through torch's dispatcher.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdio>
#include <optional>
#include <tuple>

namespace {

using Axis = std::optional<int64_t>;
using Ifmr = std::tuple<at::Tensor, at::Tensor>(const at::Tensor& x, int64_t num_bits,
                                                bool asymmetric, double max_percentile,
                                                double min_percentile,
                                                at::ArrayRef<double> search_range,
                                                double search_step, Axis axis);
using FakeQuantize = at::Tensor(const at::Tensor& x, const at::Tensor& scale,
                                const at::Tensor& offset, int64_t num_bits, Axis axis);

// The op `name`, whose schema (csrc/library.cpp) has the C++ signature `Signature`.
template <typename Signature>
auto find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

int main() {
  const auto ifmr = find_op<Ifmr>("amct_pytorch::ifmr");
  const auto fake_quantize = find_op<FakeQuantize>("amct_pytorch::fake_quantize");

  const at::Tensor x = at::arange(-16, 48).to(at::kFloat) / 16;  // -1 to 2.9375
  const auto [scale, offset] =
      ifmr.call(x, /*num_bits=*/8, /*asymmetric=*/true, /*max_percentile=*/0.999999,
                /*min_percentile=*/0.999999, /*search_range=*/{0.7, 1.3},
                /*search_step=*/0.01, /*axis=*/std::nullopt);
  const at::Tensor y = fake_quantize.call(x, scale, offset, /*num_bits=*/8, /*axis=*/std::nullopt);

  std::printf("scale %.9g\noffset %d\n", scale.item<float>(), offset.item<int>());
  for (int64_t i = 0; i < x.numel(); ++i)
    std::printf("%.9g -> %.9g\n", x[i].item<float>(), y[i].item<float>());
}
