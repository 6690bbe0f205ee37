// Vectors of NEON (ARM64). Included by isa.h; avx512.h documents the functions.
#pragma once
#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "isa/bf16.h"

// Whether instructions multiply two rows with two columns, of bf16 and of bytes (kernel/mmla.cpp).
#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC) && defined(__ARM_FEATURE_MATMUL_INT8)
#define BEI_HAS_MMLA 1
#else
#define BEI_HAS_MMLA 0
#endif

// Whether an instruction multiplies by one lane of a vector.
#define BEI_MULTIPLIES_BY_LANE

namespace bei {

constexpr int kLanes = 4;
constexpr int kVectors = 4;  // 6 rows of 4 fill 24 of 32 registers

// Two products of bytes fit 16 bits where both are signed.
constexpr bool kPairsIn16Bits = false;

// The least byte of an operand: signed bytes are multiplied with signed ones, by mmla.cpp unsigned with signed ones.
constexpr float kLeastOperand = BEI_HAS_MMLA ? 0 : -128;

inline void pause() { asm volatile("yield"); }

using F = float32x4_t;
using W = int32x4_t;

inline uint32x4_t first(int n) {
  const uint32_t lanes[] = {0, 1, 2, 3};
  return vcltq_u32(vld1q_u32(lanes), vdupq_n_u32(n));
}

inline F splat(float x) { return vdupq_n_f32(x); }
inline F zero() { return vdupq_n_f32(0); }
inline F fma(F a, F b, F c) { return vfmaq_f32(c, a, b); }
inline F max(F a, F b) { return vmaxq_f32(a, b); }
inline F min(F a, F b) { return vminq_f32(a, b); }
inline F round(F x) { return vrndnq_f32(x); }
inline F times_power_of_two(F x, F n) {
  const int32x4_t exponent = vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23);
  return vmulq_f32(x, vreinterpretq_f32_s32(exponent));
}
inline float sum(F x) { return vaddvq_f32(x); }
inline float largest(F x) { return vmaxvq_f32(x); }
inline float smallest(F x) { return vminvq_f32(x); }
inline F negative_as(F x, F sign) {
  const uint32x4_t bit = vandq_u32(vreinterpretq_u32_f32(sign), vdupq_n_u32(0x80000000));
  return vreinterpretq_f32_u32(veorq_u32(vreinterpretq_u32_f32(x), bit));
}
inline F absolute(F x) { return vabsq_f32(x); }
inline F select_first(int n, F x, F rest) { return vbslq_f32(first(n), x, rest); }

inline F widen(uint16x4_t bits) { return vreinterpretq_f32_u32(vshll_n_u16(bits, 16)); }

inline F load(const float* p) { return vld1q_f32(p); }
inline F load(const int32_t* p) { return vcvtq_f32_s32(vld1q_s32(p)); }
inline F load(const bf16* p) { return widen(vld1_u16(&p->bits)); }
inline F load(const int8_t* p) {
  int32_t bytes;
  std::memcpy(&bytes, p, sizeof bytes);
  const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bytes)));
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)));
}
template <class T>
inline F load_part(const T* p, int n) {
  T whole[kLanes] = {};
  std::memcpy(whole, p, n * sizeof(T));
  return load(whole);
}

inline void store(float* p, F v) { vst1q_f32(p, v); }
inline void store(int32_t* p, W v) { vst1q_s32(p, v); }
inline void store(uint8_t* p, F v) {
  const int16x4_t shorts = vqmovn_s32(vcvtnq_s32_f32(v));
  const int16x8_t both = vcombine_s16(shorts, shorts);
  const int8x8_t bytes = kLeastOperand < 0 ? vqmovn_s16(both) : vreinterpret_s8_u8(vqmovun_s16(both));
  std::memcpy(p, &bytes, kLanes);
}
#if BEI_HAS_MMLA
// Round to nearest, ties to even.
inline void store(bf16* p, F v) { vst1_u16(&p->bits, vreinterpret_u16_bf16(vcvt_bf16_f32(v))); }
#endif
template <class T>
inline void store_part(T* p, F v, int n) {
  T whole[kLanes];
  store(whole, v);
  std::memcpy(p, whole, n * sizeof(T));
}

inline W load_words(const void* p) { return vld1q_s32(static_cast<const int32_t*>(p)); }
inline W splat_word(const void* p) { return vld1q_dup_s32(static_cast<const int32_t*>(p)); }
inline F as_floats(W w) { return vreinterpretq_f32_s32(w); }

inline F low_half(W w) { return as_floats(vshlq_n_s32(w, 16)); }
inline F high_half(W w) { return as_floats(vandq_s32(w, vdupq_n_s32(static_cast<int>(0xffff0000)))); }

template <int Right>
inline W bits_over(W w, int32_t bits, int32_t over) {
  const W there = vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(w), vdupq_n_s32(-Right)));
  return vorrq_s32(vandq_s32(there, vdupq_n_s32(bits)), vdupq_n_s32(over));
}

inline F dot(F acc, W a, W b, float) { return fma(as_floats(a), as_floats(b), acc); }

// Bytes are signed in both. Without the instruction: two products of bytes are summed in 16 bits, then in 32.
inline W dot(W acc, W a, W b, uint8_t) {
  const int8x16_t x = vreinterpretq_s8_s32(a), y = vreinterpretq_s8_s32(b);
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_s32(acc, x, y);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
  return vpadalq_s16(acc, vpaddq_s16(low, high));
#endif
}

// acc + a * the word of b in one lane. By its intrinsic GCC splats each lane into a register of its own.
template <int Lane>
inline F dot_lane(F acc, W a, W b, float) {
  asm("fmla %0.4s, %1.4s, %2.s[%3]" : "+w"(acc) : "w"(a), "w"(b), "i"(Lane));
  return acc;
}
template <int Lane>
inline W dot_lane(W acc, W a, W b, uint8_t) {
#ifdef __ARM_FEATURE_DOTPROD
  return vdotq_laneq_s32(acc, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b), Lane);
#else
  return dot(acc, vdupq_laneq_s32(b, Lane), a, uint8_t{});
#endif
}

}  // namespace bei
