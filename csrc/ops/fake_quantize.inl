// fake_quantize.inl - uniform quantization with given factors.
//
//   quantize      q = clamp(rint(x * fl(1/scale)) + offset, qmin, qmax)
//   dequantize    y = (q - offset) * scale
//   fake_quantize y = dequantize(quantize(x)); gradient 1 where the code did not saturate
//
// A NaN stays NaN in fake_quantize and has code 0 in quantize. The order multiply,
// round, add offset is the AscendQuant operator's, and that of
// torch.fake_quantize_per_tensor_affine, whose bits float32 results have.
#pragma once
#include <optional>

#include "../checks.h"
#include "../layout.h"
#include "../loops.h"
#include "../quant_math.h"

namespace amct {
namespace AMCT_DEVICE_NS {

struct Quantizer {
  const float* scale;
  const int32_t* offset;
  QuantRange range;
  AMCT_HD Factors channel(int64_t c) const { return make_factors(scale[c], offset[c]); }
};

struct Quantize : Quantizer {
  AMCT_HD float operator()(const Factors& f, const float (&in)[1]) const {
    const float q = amct::quantize(in[0], f, range);
    return q == q ? q : 0.0f;  // a NaN: converting it to an integer is undefined
  }
};

struct Dequantize : Quantizer {
  AMCT_HD float operator()(const Factors& f, const float (&in)[1]) const {
    return amct::dequantize(in[0], f);
  }
};

struct FakeQuantize : Quantizer {
  AMCT_HD float operator()(const Factors& f, const float (&in)[1]) const {
    return amct::fake_quantize(in[0], f, range);
  }
};

struct FakeQuantizeBackward : Quantizer {  // inputs: x, grad
  AMCT_HD float operator()(const Factors& f, const float (&in)[2]) const {
    return fake_quantize_grad(in[0], in[1], f, range);
  }
};

// Checked, contiguous factors; owns them while a kernel is enqueued.
struct FactorTensors {
  Tensor scale, offset;
  FactorTensors(const Tensor& x, const Tensor& s, const Tensor& o, std::optional<int64_t> axis)
      : scale((check_factors(x, s, o, axis), dense(s))), offset(dense(o)) {}
  Quantizer quantizer(int64_t num_bits) const {
    return {scale.const_data_ptr<float>(), offset.const_data_ptr<int32_t>(), quant_range(num_bits)};
  }
};

Tensor quantize(const Tensor& x_, const Tensor& scale, const Tensor& offset, int64_t num_bits,
                std::optional<int64_t> axis) {
  check_num_bits(num_bits);
  const FactorTensors factors(x_, scale, offset, axis);
  const Tensor x = dense(x_);
  Tensor q = new_like(x, num_bits <= 8 ? ScalarType::Char : ScalarType::Short);
  const Quantize f{factors.quantizer(num_bits)};
  dispatch_floating(x, "x", [&](auto in) {
    using In = decltype(in);
    dispatch_codes(q, "q", [&](auto out) {
      using Out = decltype(out);
      map<In, 1, Out>(x, shape_of(x, axis), {{x.const_data_ptr<In>()}}, q.mutable_data_ptr<Out>(),
                      f);
    });
  });
  return q;
}

Tensor dequantize(const Tensor& q_, const Tensor& scale, const Tensor& offset,
                  std::optional<int64_t> axis) {
  const FactorTensors factors(q_, scale, offset, axis);
  const Tensor q = dense(q_);
  Tensor y = new_like(q, ScalarType::Float);
  const Dequantize f{factors.quantizer(8)};  // the range plays no part
  dispatch_codes(q, "q", [&](auto in) {
    using In = decltype(in);
    map<In, 1, float>(q, shape_of(q, axis), {{q.const_data_ptr<In>()}}, y.mutable_data_ptr<float>(),
                      f);
  });
  return y;
}

// Into `y`, which lies in memory as the dense `x` does.
inline void fake_quantize_into(const Tensor& x, const FactorTensors& factors, int64_t num_bits,
                               std::optional<int64_t> axis, Tensor& y) {
  const FakeQuantize f{factors.quantizer(num_bits)};
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    map<T, 1, T>(x, shape_of(x, axis), {{x.const_data_ptr<T>()}}, y.mutable_data_ptr<T>(), f);
  });
}

Tensor fake_quantize(const Tensor& x_, const Tensor& scale, const Tensor& offset, int64_t num_bits,
                     std::optional<int64_t> axis) {
  check_num_bits(num_bits);
  const FactorTensors factors(x_, scale, offset, axis);
  const Tensor x = dense(x_);
  Tensor y = new_like(x);
  fake_quantize_into(x, factors, num_bits, axis, y);
  return y;
}

// Whether two dense tensors of the same size share memory.
inline bool overlap(const Tensor& a, const Tensor& b) {
  const auto p = reinterpret_cast<uintptr_t>(a.data_ptr());
  const auto q = reinterpret_cast<uintptr_t>(b.data_ptr());
  return (p < q ? q - p : p - q) < static_cast<uintptr_t>(a.numel()) * a.element_size();
}

void fake_quantize_out(const Tensor& x_, const Tensor& scale, const Tensor& offset,
                       int64_t num_bits, std::optional<int64_t> axis, Tensor out) {
  check_num_bits(num_bits);
  check_same_sizes("out", out, "x", x_);
  const FactorTensors factors(x_, scale, offset, axis);
  const Tensor x = dense(x_);
  // Elements must not be written before they are read. Those of `x` itself are read just before,
  // but a CUDA kernel must not write what it reads through the read-only cache.
  const bool itself = !x.is_cuda() && out.data_ptr() == x.data_ptr();
  const bool direct = is_dense(out) && same_strides(out, x) && (itself || !overlap(x, out));
  Tensor y = direct ? out : new_like(x);
  fake_quantize_into(x, factors, num_bits, axis, y);
  if (!direct) torch::stable::copy_(out, y);
}

Tensor fake_quantize_backward(const Tensor& grad_, const Tensor& x_, const Tensor& scale,
                              const Tensor& offset, int64_t num_bits, std::optional<int64_t> axis) {
  check_num_bits(num_bits);
  const FactorTensors factors(x_, scale, offset, axis);
  const Tensor x = dense(x_);
  check_same_sizes("grad", grad_, "x", x);
  const Tensor grad = dense_as(grad_, x);
  Tensor grad_x = new_like(x);
  const FakeQuantizeBackward f{factors.quantizer(num_bits)};
  dispatch_floating(x, "x", [&](auto tag) {
    using T = decltype(tag);
    map<T, 2, T>(x, shape_of(x, axis), {{x.const_data_ptr<T>(), grad.const_data_ptr<T>()}},
                 grad_x.mutable_data_ptr<T>(), f);
  });
  return grad_x;
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("dequantize", TORCH_BOX(&dequantize));
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize));
  m.impl("fake_quantize.out", TORCH_BOX(&fake_quantize_out));
  m.impl("fake_quantize_backward", TORCH_BOX(&fake_quantize_backward));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
