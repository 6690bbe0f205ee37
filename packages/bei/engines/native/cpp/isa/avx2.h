// Vectors of AVX2 with FMA. Included by isa.h; avx512.h documents the functions.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "isa/bf16.h"

namespace bei {

constexpr int kLanes = 8;
constexpr int kVectors = 2;  // 6 rows of 2 fill 12 of 16 registers

// Whether the products of two neighboring bytes are summed in 16 bits.
#ifdef __AVXVNNI__
constexpr bool kPairsIn16Bits = false;
#else
constexpr bool kPairsIn16Bits = true;
#endif

constexpr float kLeastOperand = 0;  // bytes of operands are unsigned

inline void pause() { _mm_pause(); }

using F = __m256;
using W = __m256i;

inline __m256i first(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline F splat(float x) { return _mm256_set1_ps(x); }
inline F zero() { return _mm256_setzero_ps(); }
inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
inline F max(F a, F b) { return _mm256_max_ps(a, b); }
inline F min(F a, F b) { return _mm256_min_ps(a, b); }
inline F round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline F times_power_of_two(F x, F n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(x, _mm256_castsi256_ps(exponent));
}

template <class Op>
inline float reduce(F x, Op op) {
  __m128 v = op(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  v = op(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(op(v, _mm_movehdup_ps(v)));
}
inline float sum(F x) {
  return reduce(x, [](__m128 a, __m128 b) { return _mm_add_ps(a, b); });
}
inline float largest(F x) {
  return reduce(x, [](__m128 a, __m128 b) { return _mm_max_ps(a, b); });
}
inline float smallest(F x) {
  return reduce(x, [](__m128 a, __m128 b) { return _mm_min_ps(a, b); });
}
inline F negative_as(F x, F sign) { return _mm256_xor_ps(x, _mm256_and_ps(sign, splat(-0.f))); }
inline F absolute(F x) { return _mm256_andnot_ps(splat(-0.f), x); }
inline F select_first(int n, F x, F rest) { return _mm256_blendv_ps(rest, x, _mm256_castsi256_ps(first(n))); }

inline F widen(__m128i bits) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16)); }

inline __m128i to_bytes(F v) {
  const __m256i words = _mm256_cvtps_epi32(v);
  const __m128i shorts = _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm_packus_epi16(shorts, shorts);
}

inline F load(const float* p) { return _mm256_loadu_ps(p); }
inline F load(const int32_t* p) { return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline F load(const bf16* p) { return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline F load(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F load_part(const float* p, int n) { return _mm256_maskload_ps(p, first(n)); }
template <class T>
inline F load_part(const T* p, int n) {
  T whole[kLanes] = {};
  std::memcpy(whole, p, n * sizeof(T));
  return load(whole);
}

inline void store(float* p, F v) { _mm256_storeu_ps(p, v); }
inline void store(int32_t* p, W v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
inline void store(uint8_t* p, F v) { _mm_storel_epi64(reinterpret_cast<__m128i*>(p), to_bytes(v)); }
template <class T>
inline void store_part(T* p, F v, int n) {
  T whole[kLanes];
  store(whole, v);
  std::memcpy(p, whole, n * sizeof(T));
}

inline W load_words(const void* p) { return _mm256_load_si256(static_cast<const __m256i*>(p)); }
inline W splat_word(const void* p) {
  int32_t word;
  std::memcpy(&word, p, sizeof word);
  return _mm256_set1_epi32(word);
}
inline F as_floats(W w) { return _mm256_castsi256_ps(w); }

inline F low_half(W w) { return as_floats(_mm256_slli_epi32(w, 16)); }
inline F high_half(W w) { return as_floats(_mm256_and_si256(w, _mm256_set1_epi32(static_cast<int>(0xffff0000)))); }

template <int Right>
inline W bits_over(W w, int32_t bits, int32_t over) {
  const W there =
      Right < 0 ? _mm256_slli_epi32(w, Right < 0 ? -Right : 0) : _mm256_srli_epi32(w, Right < 0 ? 0 : Right);
  return _mm256_or_si256(_mm256_and_si256(there, _mm256_set1_epi32(bits)), _mm256_set1_epi32(over));
}

inline F dot(F acc, W a, W b, float) { return fma(as_floats(a), as_floats(b), acc); }

inline W dot(W acc, W a, W b, uint8_t) {
#ifdef __AVXVNNI__
  return _mm256_dpbusd_avx_epi32(acc, a, b);
#else
  const __m256i pairs = _mm256_maddubs_epi16(a, b);
  return _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
#endif
}

}  // namespace bei
