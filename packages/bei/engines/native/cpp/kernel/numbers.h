// The numbers of checkpoints and of packed matrices, in plain C++: converted alike at every level.
#pragma once
#include <cstdint>
#include <cstring>

namespace bei {

// Inputs of a column that share a scale and an offset, in four bits.
constexpr int kInt4Group = 32;

}  // namespace bei

namespace bei::packing {

// bf16 is the upper half of a float, fp16 is IEEE 754's binary16; both are known by their bits.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

// The exponent's bias is 112 smaller than a float's, which a product makes up for; also where the exponent is zero.
inline float to_float(Fp16 x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const uint32_t special = magnitude >= 0x0f800000 ? kInfinity : 0;
  return float_of(bits_of(float_of(magnitude) * 0x1p112f) | special | sign);
}

inline void from_float(float x, float& to) { to = x; }

// To nearest, ties to even.
inline void from_float(float x, Bf16& to) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>((bits & kMagnitude) > kInfinity ? bits >> 16 | 0x40 : rounded);
}

inline void from_float(float x, int8_t& to) { to = static_cast<int8_t>(static_cast<int32_t>(x)); }

}  // namespace bei::packing
