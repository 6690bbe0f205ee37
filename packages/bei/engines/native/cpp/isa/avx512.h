// Vectors of AVX-512 (F, BW, VL, DQ). Included by isa.h.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa/bf16.h"

namespace bei {

constexpr int kLanes = 16;
constexpr int kVectors = 4;  // width of a panel of weights, in vectors: 6 rows of 4 fill 24 of 32 registers

// Whether the products of two neighboring bytes are summed in 16 bits.
#ifdef __AVX512VNNI__
constexpr bool kPairsIn16Bits = false;
#else
constexpr bool kPairsIn16Bits = true;
#endif

constexpr float kLeastOperand = 0;  // bytes of operands are unsigned

// Between two looks at what another thread writes: fewer looks slow that thread less.
inline void pause() { _mm_pause(); }

using F = __m512;   // floats
using W = __m512i;  // 32-bit words: a float, two bf16 or four bytes

inline __mmask16 first(int n) { return static_cast<__mmask16>((1u << n) - 1); }

inline F splat(float x) { return _mm512_set1_ps(x); }
inline F zero() { return _mm512_setzero_ps(); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm512_max_ps(a, b); }
inline F min(F a, F b) { return _mm512_min_ps(a, b); }
inline F round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_power_of_two(F x, F n) { return _mm512_scalef_ps(x, n); }
inline float sum(F x) { return _mm512_reduce_add_ps(x); }
inline float largest(F x) { return _mm512_reduce_max_ps(x); }
inline float smallest(F x) { return _mm512_reduce_min_ps(x); }
inline F negative_as(F x, F sign) { return _mm512_xor_ps(x, _mm512_and_ps(sign, splat(-0.f))); }
inline F absolute(F x) { return _mm512_abs_ps(x); }
inline F select_first(int n, F x, F rest) { return _mm512_mask_mov_ps(rest, first(n), x); }

inline F widen(__m256i bits) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16)); }

inline __m128i to_bytes(F v) {
  return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_cvtps_epi32(v), _mm512_setzero_si512()));
}

inline F load(const float* p) { return _mm512_loadu_ps(p); }
inline F load(const int32_t* p) { return _mm512_cvtepi32_ps(_mm512_loadu_si512(p)); }
inline F load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
inline F load_part(const float* p, int n) { return _mm512_maskz_loadu_ps(first(n), p); }
inline F load_part(const bf16* p, int n) { return widen(_mm256_maskz_loadu_epi16(first(n), p)); }
inline F load_part(const int8_t* p, int n) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
}

inline void store(float* p, F v) { _mm512_storeu_ps(p, v); }
inline void store(int32_t* p, W v) { _mm512_storeu_si512(p, v); }
inline void store(uint8_t* p, F v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), to_bytes(v)); }
inline void store_part(float* p, F v, int n) { _mm512_mask_storeu_ps(p, first(n), v); }
inline void store_part(uint8_t* p, F v, int n) { _mm_mask_storeu_epi8(p, first(n), to_bytes(v)); }

inline W load_words(const void* p) { return _mm512_load_si512(p); }
inline W splat_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm512_set1_epi32(word);
}
inline F as_floats(W w) { return _mm512_castsi512_ps(w); }

// The first and the second of two bf16.
inline F low_half(W w) { return as_floats(_mm512_slli_epi32(w, 16)); }
inline F high_half(W w) { return as_floats(_mm512_and_si512(w, _mm512_set1_epi32(static_cast<int>(0xffff0000)))); }

// These bits of each word, so far to the right or, if less than zero, to the left; over other bits.
template <int Right>
inline W bits_over(W w, int32_t bits, int32_t over) {
  const W there =
      Right < 0 ? _mm512_slli_epi32(w, Right < 0 ? -Right : 0) : _mm512_srli_epi32(w, Right < 0 ? 0 : Right);
  return _mm512_or_si512(_mm512_and_si512(there, _mm512_set1_epi32(bits)), _mm512_set1_epi32(over));
}

// acc + a * b, lane by lane. A lane is one float;
inline F dot(F acc, W a, W b, float) { return fma(as_floats(a), as_floats(b), acc); }

// or four bytes, unsigned in a and signed in b, summed in 32 bits;
inline W dot(W acc, W a, W b, uint8_t) {
#ifdef __AVX512VNNI__
  return _mm512_dpbusd_epi32(acc, a, b);
#else
  const __m512i pairs = _mm512_maddubs_epi16(a, b);  // pack.cpp's scales keep two products within its 16 bits
  return _mm512_add_epi32(acc, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#endif
}

// or two bf16.
#ifdef __AVX512BF16__
inline F dot(F acc, W a, W b, bf16) { return _mm512_dpbf16_ps(acc, (__m512bh)a, (__m512bh)b); }

// Round to nearest, ties to even.
inline __m256i narrow(F v) { return (__m256i)_mm512_cvtneps_pbh(v); }
inline void store(bf16* p, F v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(v)); }
inline void store_part(bf16* p, F v, int n) { _mm256_mask_storeu_epi16(p, first(n), narrow(v)); }
#endif

}  // namespace bei
