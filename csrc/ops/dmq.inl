// dmq.inl - the factors that move range from the channels of an activation into the weight.
//
//   f = a^s / w^(1-s) of a channel with the largest magnitudes a of its input and w of its weight,
//   those of channels where a or w is zero by the peaks of the others (quant_math.h)
//
// A few numbers per layer, computed on the host: CPU and CUDA tensors give the same bits.
#pragma once
#include <stdexcept>
#include <string>
#include <vector>

#include "../checks.h"
#include "../loops.h"
#include "../quant_math.h"

namespace amct {
namespace AMCT_DEVICE_NS {

std::vector<double> magnitudes(const char* name, const Tensor& t) {
  STD_TORCH_CHECK(t.dim() == 1, name, " must have 1 dimension, got ", t.dim());
  const Tensor host =
      torch::stable::contiguous(torch::stable::to(t, torch::headeronly::DeviceType::CPU));
  std::vector<double> values(static_cast<size_t>(t.size(0)));
  dispatch_floating(host, name, [&](auto tag) {
    const auto* in = host.const_data_ptr<decltype(tag)>();
    for (size_t c = 0; c < values.size(); ++c) {
      const double v = static_cast<float>(in[c]);
      STD_TORCH_CHECK(v >= 0 && v < HUGE_VAL, name,
                      " must hold finite magnitudes, not below 0, got ", v, " for channel ", c);
      values[c] = v;
    }
  });
  return values;
}

Tensor dmq_factor(const Tensor& act_max, const Tensor& weight_max, double migration_strength) {
  if (!(migration_strength >= kDmqWeakest && migration_strength <= kDmqStrongest))
    throw std::invalid_argument("migration_strength must be in [" + shown(kDmqWeakest) + ", " +
                                shown(kDmqStrongest) + "], got " + shown(migration_strength));
  const std::vector<double> act = magnitudes("act_max", act_max);
  const std::vector<double> weight = magnitudes("weight_max", weight_max);
  if (act.size() != weight.size())
    throw std::invalid_argument("weight_max must have the length of act_max, " +
                                std::to_string(act.size()) + ", got " +
                                std::to_string(weight.size()));
  DmqPeaks peaks;
  for (size_t c = 0; c < act.size(); ++c) peaks.extend(act[c], weight[c], migration_strength);
  Tensor factors =
      torch::stable::to(torch::stable::new_empty(act_max, {act_max.size(0)}, ScalarType::Float),
                        torch::headeronly::DeviceType::CPU);
  float* out = factors.mutable_data_ptr<float>();
  for (size_t c = 0; c < act.size(); ++c) {
    out[c] = static_cast<float>(dmq_factor_of(act[c], weight[c], migration_strength, peaks));
    STD_TORCH_CHECK(kScaleFloor < out[c] && out[c] < 1 / kScaleFloor, "the factor of channel ", c,
                    " must be in (", shown(kScaleFloor), ", ", shown(1 / kScaleFloor), "), got ",
                    shown(out[c]), ": the largest magnitudes of activation and weight are ",
                    shown(act[c]), " and ", shown(weight[c]));
  }
  return torch::stable::to(factors, act_max.device());
}

STABLE_TORCH_LIBRARY_IMPL(amct_pytorch, AMCT_DEVICE_KEY, m) {
  m.impl("dmq_factor", TORCH_BOX(&dmq_factor));
}

}  // namespace AMCT_DEVICE_NS
}  // namespace amct
