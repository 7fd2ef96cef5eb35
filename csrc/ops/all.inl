// The ops, in the order of library.cpp; compiled once as C++ and once as CUDA.
// The includer sets AMCT_DEVICE_KEY (dispatch key) and AMCT_DEVICE_NS (namespace).
#include "ada_round.inl"
#include "ada_scale.inl"
#include "arq.inl"
#include "arq_fake_quantize.inl"
#include "dmq.inl"
#include "fake_quantize.inl"
#include "hfmg.inl"
#include "ifmr.inl"
#include "shift.inl"
#include "similarity.inl"
#include "ulq.inl"
#include "ulq_scale.inl"
