// packing.h - codes and factors in the form that the deploy model stores.
//
// Plain C++ on plain memory: no torch, no Python.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace amct {

// ---- int4: two codes in a byte, the even index in the low nibble ----

constexpr int kInt4Min = -8, kInt4Max = 7;

// codes [outer, 2 * pairs, inner] -> packed [outer, pairs, inner]
inline void pack_int4(const int8_t* codes, int64_t outer, int64_t pairs, int64_t inner,
                      int8_t* packed) {
  for (int64_t row = 0; row < outer * pairs; ++row) {
    const int8_t* even = codes + row * 2 * inner;
    const int8_t* odd = even + inner;
    for (int64_t i = 0; i < inner; ++i) {
      for (const int code : {even[i], odd[i]})
        if (code < kInt4Min || code > kInt4Max)
          throw std::invalid_argument("codes must be in [-8, 7], got " + std::to_string(code));
      packed[row * inner + i] = static_cast<int8_t>((odd[i] & 0xf) << 4 | (even[i] & 0xf));
    }
  }
}

// ---- the parameter of AscendDequant: bits 31..0 scale, 39..32 shift, 47..40 offset_w ----

struct Dequant {
  float scale;
  int8_t offset;
  uint8_t shift;
};

inline uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

inline uint64_t dequant_word(const Dequant& d) {
  return uint64_t{static_cast<uint8_t>(d.offset)} << 40 | uint64_t{d.shift} << 32 |
         bits_of(d.scale);
}

inline Dequant dequant_of_word(uint64_t word) {
  return {float_of(static_cast<uint32_t>(word)), static_cast<int8_t>(word >> 40),
          static_cast<uint8_t>(word >> 32)};
}

}  // namespace amct
