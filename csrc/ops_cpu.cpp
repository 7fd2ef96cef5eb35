#define AMCT_DEVICE_KEY CPU
#define AMCT_DEVICE_NS cpu
#include "ops/all.inl"
