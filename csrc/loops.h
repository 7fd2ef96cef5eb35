// loops.h - the loops every kernel is made of, for CPU and CUDA.
//
//   map(x, shape, in, out, f)   out[i] = f(channel, in[0][i], in[1][i], ...)
//   sum<K>(x, shape, in, f, sums)  sums[c * K + k] = sum over channel c of f(channel, in...)[k]
//   sum<K, M>                      the last M of the K are maxima (of values >= 0), not sums
//   map_sum<K>(x, shape, in, out, f, sums)   both in one pass
//
// Tensors are dense blocks seen as the Shape of layout.h. The storage types may
// be float, half, bfloat16, int8 or int16; a functor computes in float:
//
//   struct F {
//     auto channel(int64_t c) const;                                    // constants of a channel
//     float operator()(Channel, const float (&in)[N]) const;            // map
//     void operator()(Channel, const float (&in)[N], double (&out)[K]) const;  // sum
//     float operator()(Channel, const float (&in)[N], double (&out)[K]) const;  // map_sum
//   };
//
// The constants of a channel are floats, or as long as floats. loops_cpu.h: tiles in registers, for
// AVX-512, AVX2 or the baseline, on torch's own thread pool. loops_cuda.h: kernels on the current
// stream of the input's device.
// The order of additions is fixed here, once: a sum has the same bits for every
// instruction set and any number of threads (CPU) and from run to run (CUDA).
#pragma once
#include "loops_common.h"
#if defined(USE_CUDA)
#include "loops_cuda.h"
#else
#include "loops_cpu.h"
#endif

namespace amct {

// map_sum without a result to map.
template <int K, int M = 0, class In, int N, class F>
void sum(const Tensor& x, const Shape s, const Inputs<In, N> in, const F& f, double* sums) {
  map_sum<K, M>(x, s, in, static_cast<float*>(nullptr), f, sums);
}
}  // namespace amct
