// quant_math_test.cpp - the formulas of quant_math.h on numbers that can be checked by hand.
#include "quant_math.h"

#include <cmath>
#include <cstdio>
#include <limits>

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

int failures = 0;

void expect(const char* what, float got, float want) {
  if (got == want || (std::isnan(got) && std::isnan(want))) return;
  std::printf("FAILED %s: got %.9g, expected %.9g\n", what, got, want);
  ++failures;
}

void expect(const char* what, amct::ScaleOffset got, float scale, int32_t offset) {
  expect(what, got.scale, scale);
  expect(what, static_cast<float>(got.offset), static_cast<float>(offset));
}

void rint_rounds_half_to_even() {
  expect("rint 0.5", amct::rint_even(0.5f), 0.0f);
  expect("rint 1.5", amct::rint_even(1.5f), 2.0f);
  expect("rint 2.5", amct::rint_even(2.5f), 2.0f);
  expect("rint -1.5", amct::rint_even(-1.5f), -2.0f);
  expect("rint -2.5", amct::rint_even(-2.5f), -2.0f);
  expect("rint 2.51", amct::rint_even(2.51f), 3.0f);
}

void clamp_keeps_nan() {
  expect("clamp 200", amct::clamp(200.0f, -128.0f, 127.0f), 127.0f);
  expect("clamp -inf", amct::clamp(-kInf, -128.0f, 127.0f), -128.0f);
  expect("clamp 5", amct::clamp(5.0f, -128.0f, 127.0f), 5.0f);
  expect("clamp nan", amct::clamp(kNan, -128.0f, 127.0f), kNan);
}

void codes_span_the_range() {
  expect("qmin, 8 bits", amct::quant_range(8).min, -128.0f);
  expect("qmax, 8 bits", amct::quant_range(8).max, 127.0f);
  expect("qmin, 4 bits", amct::quant_range(4).min, -8.0f);
  expect("qmax, 16 bits", amct::quant_range(16).max, 32767.0f);
}

// Scale 1/4 and offset 3: every product below is exact.
void quantize_and_back() {
  const amct::Factors f = amct::make_factors(0.25f, 3);
  const amct::QuantRange bits4 = amct::quant_range(4);
  expect("quantize 0", amct::quantize(0.0f, f, bits4), 3.0f);
  expect("quantize 0.5", amct::quantize(0.5f, f, bits4), 5.0f);
  expect("quantize 0.625, a tie", amct::quantize(0.625f, f, bits4), 5.0f);
  expect("quantize 0.875, a tie", amct::quantize(0.875f, f, bits4), 7.0f);
  expect("quantize 9", amct::quantize(9.0f, f, bits4), 7.0f);
  expect("quantize -9", amct::quantize(-9.0f, f, bits4), -8.0f);
  expect("dequantize 5", amct::dequantize(5.0f, f), 0.5f);
  expect("dequantize -8", amct::dequantize(-8.0f, f), -2.75f);
  expect("fake_quantize 0.625", amct::fake_quantize(0.625f, f, bits4), 0.5f);
  expect("fake_quantize 9", amct::fake_quantize(9.0f, f, bits4), 1.0f);
  expect("fake_quantize inf", amct::fake_quantize(kInf, f, bits4), 1.0f);
  expect("fake_quantize nan", amct::fake_quantize(kNan, f, bits4), kNan);
}

// 4 bits, scale 1/4, offset 0: codes -8..7 stand for -2..1.75.
void gradient_stops_where_the_code_saturates() {
  const amct::Factors f = amct::make_factors(0.25f, 0);
  const amct::QuantRange bits4 = amct::quant_range(4);
  expect("grad at -2", amct::fake_quantize_grad(-2.0f, 3.0f, f, bits4), 3.0f);
  expect("grad at 1.75", amct::fake_quantize_grad(1.75f, 3.0f, f, bits4), 3.0f);
  expect("grad at 1.8, rounds to 7", amct::fake_quantize_grad(1.8f, 3.0f, f, bits4), 3.0f);
  expect("grad at 2", amct::fake_quantize_grad(2.0f, 3.0f, f, bits4), 0.0f);
  expect("grad at -2.25", amct::fake_quantize_grad(-2.25f, 3.0f, f, bits4), 0.0f);
  expect("grad at nan", amct::fake_quantize_grad(kNan, 3.0f, f, bits4), 0.0f);
}

void factors_of_a_range() {
  constexpr bool kSymmetric = false, kAsymmetric = true;
  expect("[-1, 0.5]", amct::factors_of_range(-1.0f, 0.5f, 8, kSymmetric), 1.0f / 128.0f, 0);
  expect("[-0.5, 1]", amct::factors_of_range(-0.5f, 1.0f, 8, kSymmetric), 1.0f / 127.0f, 0);
  expect("[-2, -1], 4 bits", amct::factors_of_range(-2.0f, -1.0f, 4, kSymmetric), 0.25f, 0);
  expect("[-1, 0.5] asym", amct::factors_of_range(-1.0f, 0.5f, 8, kAsymmetric), 1.5f / 255.0f, 42);
  expect("[-2, -1] asym", amct::factors_of_range(-2.0f, -1.0f, 8, kAsymmetric), 2.0f / 255.0f, 127);
  expect("[5, 5] asym", amct::factors_of_range(5.0f, 5.0f, 8, kAsymmetric), 5.0f / 255.0f, -128);
  expect("empty range", amct::factors_of_range(0.0f, 0.0f, 8, kSymmetric), 1.0f, 0);
  expect("empty range asym", amct::factors_of_range(0.0f, 0.0f, 8, kAsymmetric), 1.0f, -128);
}

void divide_quantize_adds_the_offset_before_rounding() {
  const amct::QuantRange bits4 = amct::quant_range(4);
  expect("0.5, offset 1", amct::divide_quantize(0.5f, 1.0f, 1.0f, bits4), 1.0f);
  expect("0.625 by 0.25, offset 3", amct::divide_quantize(0.625f, 0.25f, 3.0f, bits4), 0.75f);
  expect("9 by 0.25, offset 3", amct::divide_quantize(9.0f, 0.25f, 3.0f, bits4), 1.0f);
  expect("-inf by 0.25", amct::divide_quantize(-kInf, 0.25f, 0.0f, bits4), -2.0f);
  expect("nan", amct::divide_quantize(kNan, 0.25f, 0.0f, bits4), kNan);
}

void expect(const char* what, amct::Clips got, float max, float min) {
  expect(what, got.max, max);
  expect(what, got.min, min);
}

void clips_that_are_no_range_give_way() {
  const amct::Clips last = {4.0f, -5.0f};
  expect("a range", amct::guard_clips({1.0f, -2.0f}, last, false), 1.0f, -2.0f);
  expect("above zero", amct::guard_clips({3.0f, 2.0f}, last, false), 3.0f, 0.0f);
  expect("inverted", amct::guard_clips({-1.0f, 1.0f}, last, false), 4.0f, -5.0f);
  expect("nan", amct::guard_clips({1.0f, kNan}, last, false), 4.0f, -5.0f);
  expect("infinite", amct::guard_clips({kInf, 0.0f}, last, false), 4.0f, -5.0f);
  expect("infinite, without last", amct::guard_clips({kInf, 0.0f}, {kNan, 0.0f}, false), 0.0f,
         0.0f);
  expect("fixed min", amct::guard_clips({1.0f, kNan}, last, true), 1.0f, 0.0f);
  expect("fixed min, inverted", amct::guard_clips({-1.0f, -2.0f}, last, true), 4.0f, 0.0f);
  expect("eps wide", amct::guard_clips({amct::kScaleFloor, 0.0f}, last, false), 4.0f, -5.0f);
}

// 2 bits, clips [0, 1.5]: scale 1/2, offset -2. Inside errs by +-1/8 of a scale.
void gradients_of_the_clips() {
  const amct::QuantRange bits2 = amct::quant_range(2);
  const amct::Clips clips = {1.5f, 0.0f};
  const amct::ScaleOffset f = amct::factors_of_range(clips.min, clips.max, 2, true);
  const amct::UlqRange range = amct::ulq_range(f, bits2);
  expect("low", range.low, 0.0f);
  expect("high", range.high, 1.5f);
  double terms[amct::kUlqSums];
  expect("grad inside", amct::ulq_terms(0.4375f, 8.0f, range, terms), 8.0f);
  expect("error inside", static_cast<float>(terms[0]), 1.0f);
  expect("grad above", amct::ulq_terms(1.75f, 8.0f, range, terms), 0.0f);
  expect("term above", static_cast<float>(terms[1]), 8.0f);
  expect("grad below", amct::ulq_terms(-kInf, 8.0f, range, terms), 0.0f);
  expect("term below", static_cast<float>(terms[2]), 8.0f);
  expect("no error below", static_cast<float>(terms[0]), 0.0f);

  const double sums[] = {3.0, 8.0, 4.0};
  const amct::ClipGradients free = amct::ulq_clip_gradients(sums, clips, f, bits2, true);
  expect("dmax", static_cast<float>(free.max), 9.0f);  // 3 / 3 + 8
  expect("dmin", static_cast<float>(free.min), 3.0f);  // 4 - 3 / 3
  const amct::ScaleOffset g = amct::factors_of_range(-2.0f, 0.5f, 2, false);
  const amct::ClipGradients tied = amct::ulq_clip_gradients(sums, {0.5f, -2.0f}, g, bits2, false);
  expect("dmax, symmetric", static_cast<float>(tied.max), 0.0f);
  expect("dmin, symmetric", static_cast<float>(tied.min), -1.5f);  // (3 + 8 - 2 4) / -2
}

void learnt_scale() {
  const amct::QuantRange bits4 = amct::quant_range(4);
  expect("positive", amct::positive_scale(0.5f, false), 0.5f);
  expect("reciprocal", amct::positive_scale(4.0f, true), 0.25f);
  expect("negative", amct::positive_scale(-0.5f, false), amct::kScaleFloor);
  expect("nan", amct::positive_scale(kNan, false), kNan);
  expect("slope inside", amct::scale_slope(0.6875f, 0.5f, bits4), -0.375f);
  expect("slope at the end", amct::scale_slope(3.5f, 0.5f, bits4), 0.0f);
  expect("slope above", amct::scale_slope(3.75f, 0.5f, bits4), 7.0f);
  expect("slope below", amct::scale_slope(-4.25f, 0.5f, bits4), -8.0f);
}

void shifted_accumulators() {
  const auto error = [](double accumulator, int n) {
    return static_cast<float>(amct::shift_error(accumulator, n));
  };
  expect("accumulator", static_cast<float>(amct::accumulator_of(2.5f, 1.0f)), 2.0f);
  expect("int32 ends", static_cast<float>(amct::accumulator_of(kInf, 1.0f)), 2147483647.0f);
  expect("7 >> 1", error(7.0, 1), 1.0f);
  expect("7 >> 2", error(7.0, 2), 9.0f);
  expect("-3 >> 2", error(-3.0, 2), 1.0f);
  expect("65536 >> 1, saturated", error(65536.0, 1), 4.0f);
}

// Strength 1/2: channel 0 has f = sqrt(4 / 1) = 2, channel 1 sqrt(1 / 4) = 1/2.
void balanced_channels() {
  amct::DmqPeaks peaks;
  peaks.extend(4.0, 1.0, 0.5);
  peaks.extend(1.0, 4.0, 0.5);
  peaks.extend(100.0, 0.0, 0.5);  // zero: no peak
  peaks.extend(0.0, 100.0, 0.5);
  const auto factor = [&](double act, double weight) {
    return static_cast<float>(amct::dmq_factor_of(act, weight, 0.5, peaks));
  };
  expect("peak of activations", static_cast<float>(peaks.act), 2.0f);
  expect("peak of weights", static_cast<float>(peaks.weight), 2.0f);
  expect("4 and 1", factor(4.0, 1.0), 2.0f);
  expect("1 and 4", factor(1.0, 4.0), 0.5f);
  expect("100 and zero", factor(100.0, 0.0), 50.0f);
  expect("zero and 100", factor(1e-9, 100.0), 0.02f);
  expect("zero and zero", factor(0.0, 0.0), 1.0f);
  expect("no peak", static_cast<float>(amct::dmq_factor_of(1.0, 0.0, 0.5, {})), 1.0f);
}

}  // namespace

int main() {
  rint_rounds_half_to_even();
  clamp_keeps_nan();
  codes_span_the_range();
  quantize_and_back();
  gradient_stops_where_the_code_saturates();
  factors_of_a_range();
  divide_quantize_adds_the_offset_before_rounding();
  clips_that_are_no_range_give_way();
  gradients_of_the_clips();
  learnt_scale();
  shifted_accumulators();
  balanced_channels();
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}
