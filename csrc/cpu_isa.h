// cpu_isa.h - loops compiled for three instruction sets, of which one is chosen at run time.
//
//   with_isa([&](auto isa) { decltype(isa)::map_run(...); })
//
// cpu_tiles.inl is compiled for the baseline of the compiler, x86-64-v3 (AVX2, F16C) and x86-64-v4
// (AVX-512). All give the same bits: no operation is contracted or reordered. Functions marked
// AMCT_CLONES are cloned and chosen by the compiler alone. The environment variable that torch
// knows, ATEN_CPU_CAPABILITY=default or avx2, chooses a smaller set for the tiles.
#pragma once
#include <cstdlib>
#include <cstring>

#include "loops_common.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define AMCT_X86 1
#define AMCT_CLONES \
  __attribute__((noinline, target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define AMCT_X86 0
#define AMCT_CLONES __attribute__((noinline))
#endif

namespace amct {

constexpr int kLanes = 16;  // elements of a tile, and running sums
constexpr int kLines = 4;   // runs that share their constants

#define AMCT_ISA Baseline
#define AMCT_ISA_LEVEL 1
#include "cpu_tiles.inl"
#undef AMCT_ISA
#undef AMCT_ISA_LEVEL

#if AMCT_X86
#pragma GCC push_options
#pragma GCC target("arch=x86-64-v3")
#define AMCT_ISA Avx2
#define AMCT_ISA_LEVEL 3
#include "cpu_tiles.inl"
#undef AMCT_ISA
#undef AMCT_ISA_LEVEL
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("arch=x86-64-v4,prefer-vector-width=512")
#define AMCT_ISA Avx512
#define AMCT_ISA_LEVEL 4
#include "cpu_tiles.inl"
#undef AMCT_ISA
#undef AMCT_ISA_LEVEL
#pragma GCC pop_options

inline int isa_level() {
  static const int level = [] {
    const char* wanted = std::getenv("ATEN_CPU_CAPABILITY");
    const auto at_most = [&](const char* name) {
      return wanted != nullptr && std::strcmp(wanted, name) == 0;
    };
    __builtin_cpu_init();
    if (at_most("default") || !__builtin_cpu_supports("x86-64-v3")) return 1;
    return at_most("avx2") || !__builtin_cpu_supports("x86-64-v4") ? 3 : 4;
  }();
  return level;
}
#endif

template <class Fn>
void with_isa(Fn&& fn) {
#if AMCT_X86
  if (isa_level() == 4) return fn(Avx512{});
  if (isa_level() == 3) return fn(Avx2{});
#endif
  fn(Baseline{});
}

}  // namespace amct
