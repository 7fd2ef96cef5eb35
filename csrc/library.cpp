// Every op of the namespace, in one place: the schema string is the contract.
// Importing the Python module built from this file registers them; a C++
// program loads the library that CMake builds from the same file.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(amct_pytorch, m) {
  m.def("quantize(Tensor x, Tensor scale, Tensor offset, int num_bits, int? axis) -> Tensor");
  m.def("dequantize(Tensor q, Tensor scale, Tensor offset, int? axis) -> Tensor");
  m.def("fake_quantize(Tensor x, Tensor scale, Tensor offset, int num_bits, int? axis) -> Tensor");
  m.def(
      "fake_quantize.out(Tensor x, Tensor scale, Tensor offset, int num_bits, int? axis, *, "
      "Tensor(a!) out) -> ()");
  m.def(
      "fake_quantize_backward(Tensor grad, Tensor x, Tensor scale, Tensor offset, int num_bits, "
      "int? axis) -> Tensor");
  m.def(
      "ada_round(Tensor weight, Tensor alpha, Tensor scale, int num_bits, int? axis, int groups, "
      "bool hard) -> Tensor");
  m.def(
      "ada_round_backward(Tensor grad, Tensor weight, Tensor alpha, Tensor scale, int num_bits, "
      "int? axis, int groups) -> Tensor");
  m.def("ada_round_start(Tensor weight, Tensor scale, int? axis, int groups) -> Tensor");
  m.def("ada_round_undecided(Tensor alpha, float beta) -> Tensor");
  m.def("ada_round_undecided_backward(Tensor grad, Tensor alpha, float beta) -> Tensor");
  m.def("ada_scale(Tensor weight, int num_bits, int? axis) -> Tensor");
  m.def(
      "arq(Tensor weight, int num_bits, int? axis, bool asymmetric) -> (Tensor scale, Tensor "
      "offset)");
  m.def(
      "arq_fake_quantize(Tensor weight, int num_bits, int? axis, int groups) -> (Tensor weight, "
      "Tensor scale)");
  m.def("dmq_factor(Tensor act_max, Tensor weight_max, float migration_strength) -> Tensor");
  m.def(
      "ifmr(Tensor x, int num_bits, bool asymmetric, float max_percentile, float min_percentile, "
      "float[] search_range, float search_step, int? axis) -> (Tensor scale, Tensor offset)");
  m.def(
      "ifmr_update(Tensor x, Tensor(a!) tops, Tensor(b!) counts, Tensor(c!) sums, Tensor(d!) low, "
      "Tensor(e!) high, int? axis) -> ()");
  m.def("ifmr_count(Tensor x, Tensor(a!) counts) -> ()");
  m.def(
      "ifmr_merge(Tensor(a!) tops, Tensor(b!) counts, Tensor(c!) sums, Tensor(d!) low, Tensor(e!) "
      "high, Tensor other_tops, Tensor other_counts, Tensor other_sums, Tensor other_low, Tensor "
      "other_high) -> ()");
  m.def(
      "ifmr_add_counts(Tensor half_counts, bool is_bfloat16, Tensor(a!) tops, Tensor(b!) counts, "
      "Tensor(c!) sums, Tensor(d!) low, Tensor(e!) high) -> ()");
  m.def(
      "ifmr_search(Tensor tops, Tensor counts, Tensor sums, Tensor low, Tensor high, int num_bits, "
      "bool asymmetric, float max_percentile, float min_percentile, float[] search_range, float "
      "search_step) -> (Tensor scale, Tensor offset, Tensor certified)");
  m.def(
      "ifmr_search_counts(Tensor counts, bool is_bfloat16, int num_bits, bool asymmetric, float "
      "max_percentile, float min_percentile, float[] search_range, float search_step) -> (Tensor "
      "scale, Tensor offset)");
  m.def(
      "hfmg(Tensor x, int num_bits, bool asymmetric, int num_of_bins, int? axis) -> (Tensor scale, "
      "Tensor offset)");
  m.def(
      "hfmg_update(Tensor x, Tensor ranges, Tensor counts, int? axis) -> (Tensor ranges, Tensor "
      "counts)");
  m.def(
      "hfmg_merge(Tensor ranges, Tensor counts, Tensor other_ranges, Tensor other_counts) -> "
      "(Tensor ranges, Tensor counts)");
  m.def(
      "hfmg_search(Tensor ranges, Tensor counts, int num_bits, bool asymmetric) -> (Tensor scale, "
      "Tensor offset)");
  m.def("quantization_errors(Tensor x, Tensor scale, Tensor offset, int num_bits) -> Tensor");
  m.def("shift_errors(Tensor out, Tensor deq_scale, int? axis) -> Tensor");
  m.def("similarity_sums(Tensor a, Tensor b) -> Tensor");
  m.def(
      "ulq_factors(Tensor clip_max, Tensor clip_min, int num_bits, bool fixed_min, bool "
      "asymmetric, Tensor? previous_max, Tensor? previous_min) -> (Tensor scale, Tensor offset, "
      "Tensor clip_max, Tensor clip_min)");
  m.def(
      "ulq(Tensor x, Tensor clip_max, Tensor clip_min, int num_bits, bool fixed_min, bool "
      "asymmetric, Tensor? previous_max, Tensor? previous_min) -> (Tensor y, Tensor scale, Tensor "
      "offset, Tensor clip_max, Tensor clip_min)");
  m.def(
      "ulq_backward(Tensor grad, Tensor x, Tensor clip_max, Tensor clip_min, int num_bits, bool "
      "fixed_min, bool asymmetric) -> (Tensor grad_x, Tensor grad_clip_max, Tensor "
      "grad_clip_min)");
  m.def(
      "ulq_scale(Tensor weight, Tensor scale, int num_bits, int? axis, bool reciprocal, int "
      "groups) -> Tensor");
  m.def(
      "ulq_scale_backward(Tensor grad, Tensor weight, Tensor scale, int num_bits, int? axis, bool "
      "reciprocal, int groups) -> Tensor");
}

#if !defined(AMCT_NO_PYTHON)
#include <Python.h>
extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static PyModuleDef def = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&def);
}
#endif
