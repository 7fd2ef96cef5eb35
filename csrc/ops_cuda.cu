#define AMCT_DEVICE_KEY CUDA
#define AMCT_DEVICE_NS cuda
#include "ops/all.inl"
