// ops_emulated.cpp - the CUDA ops on the CPU, as the library amct_emulated: the kernels without a
// GPU. Compiled with -DUSE_CUDA and csrc/tests/emulation first among the includes.
#define amct_pytorch amct_emulated
#define AMCT_DEVICE_KEY CPU
#define AMCT_DEVICE_NS emulated
#include <cuda_runtime.h>

#include "../library.cpp"
#include "../ops/all.inl"
