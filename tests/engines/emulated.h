// The instructions that isa/avx512.h names, in plain C++, for processors that lack them. Each does as Intel's
// Intrinsics Guide says. In our namespace they come before the compiler's own, which are of the same names.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

// New memory is full of NaNs: what reads a number that nobody wrote makes one.
namespace std {
inline void* poisoned_alloc(size_t alignment, size_t size) {
  void* p = aligned_alloc(alignment, size);
  return p ? memset(p, 0xff, size) : p;
}
}  // namespace std
#define aligned_alloc poisoned_alloc

#ifdef EMULATE_AMX_TILE
#include "emulated_tiles.h"
#endif

#if defined(EMULATE_AVX512F) || defined(EMULATE_AVX512_VNNI) || defined(EMULATE_AVX512_BF16)
namespace bei {
namespace emulated {

// The bits of a vector as numbers.
template <class T, class V>
struct Lanes {
  static constexpr int kCount = sizeof(V) / sizeof(T);
  T of[kCount];

  explicit Lanes(V v) { std::memcpy(of, &v, sizeof v); }
  T operator[](int i) const { return of[i]; }
};

template <class T, class V>
Lanes<T, V> as(V v) {
  return Lanes<T, V>(v);
}

// The vector whose lanes are f(0), f(1), ...
template <class V, class T, class Fn>
V make(Fn f) {
  constexpr int count = sizeof(V) / sizeof(T);
  T lanes[count];
  for (int i = 0; i < count; i++) lanes[i] = f(i);
  V v;
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

template <class Op>
float reduce(__m512 x, Op op) {
  auto lanes = as<float>(x);
  for (int i = 1; i < 16; i++) lanes.of[0] = op(lanes[0], lanes[i]);
  return lanes[0];
}

// Of the first lanes, which is all that masks are for.
template <class V>
V load_first(uint32_t mask, const void* p, size_t lane_size) {
  V v{};
  std::memcpy(&v, p, __builtin_popcount(mask) * lane_size);
  return v;
}
template <class V>
void store_first(void* p, uint32_t mask, V v, size_t lane_size) {
  std::memcpy(p, &v, __builtin_popcount(mask) * lane_size);
}

inline float widened(uint16_t bits) {
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

}  // namespace emulated

inline __m512 _mm512_setzero_ps() { return __m512{}; }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512 _mm512_set1_ps(float x) {
  return emulated::make<__m512, float>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi32(int x) {
  return emulated::make<__m512i, int32_t>([&](int) { return x; });
}
inline __m512i _mm512_set1_epi16(short x) {
  return emulated::make<__m512i, int16_t>([&](int) { return x; });
}

inline __m512 _mm512_loadu_ps(const void* p) { return emulated::load_first<__m512>(0xffff, p, 4); }
inline __m512i _mm512_loadu_si512(const void* p) { return emulated::load_first<__m512i>(0xffff, p, 4); }
inline __m512i _mm512_load_si512(const void* p) { return *static_cast<const __m512i*>(p); }
inline __m512 _mm512_maskz_loadu_ps(__mmask16 mask, const void* p) { return emulated::load_first<__m512>(mask, p, 4); }
inline __m256i _mm256_maskz_loadu_epi16(__mmask16 mask, const void* p) {
  return emulated::load_first<__m256i>(mask, p, 2);
}
inline __m128i _mm_maskz_loadu_epi8(__mmask16 mask, const void* p) {
  return emulated::load_first<__m128i>(mask, p, 1);
}
inline void _mm512_storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, sizeof v); }
inline void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, sizeof v); }
inline void _mm512_mask_storeu_ps(void* p, __mmask16 mask, __m512 v) { emulated::store_first(p, mask, v, 4); }
inline void _mm256_mask_storeu_epi16(void* p, __mmask16 mask, __m256i v) { emulated::store_first(p, mask, v, 2); }
inline void _mm_mask_storeu_epi8(void* p, __mmask16 mask, __m128i v) { emulated::store_first(p, mask, v, 1); }

inline __m512 _mm512_castsi512_ps(__m512i x) { return (__m512)x; }
inline __m512 _mm512_and_ps(__m512 a, __m512 b) { return (__m512)((__m512i)a & (__m512i)b); }
inline __m512 _mm512_xor_ps(__m512 a, __m512 b) { return (__m512)((__m512i)a ^ (__m512i)b); }
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_slli_epi32(__m512i x, unsigned n) {
  const auto words = emulated::as<uint32_t>(x);
  return emulated::make<__m512i, uint32_t>([&](int i) { return words[i] << n; });
}

inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
  return emulated::make<__m512, float>([&](int i) { return __builtin_fmaf(a[i], b[i], c[i]); });
}
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return a > b ? a : b; }
inline __m512 _mm512_min_ps(__m512 a, __m512 b) { return a < b ? a : b; }
inline __m512 _mm512_abs_ps(__m512 x) { return _mm512_and_ps(x, (__m512)_mm512_set1_epi32(0x7fffffff)); }
inline __m512 _mm512_roundscale_ps(__m512 x, int) {
  return emulated::make<__m512, float>([&](int i) { return __builtin_nearbyintf(x[i]); });
}
inline __m512 _mm512_scalef_ps(__m512 x, __m512 n) {
  return emulated::make<__m512, float>([&](int i) { return std::ldexp(x[i], static_cast<int>(n[i])); });
}
inline __m512 _mm512_mask_mov_ps(__m512 rest, __mmask16 mask, __m512 x) {
  return emulated::make<__m512, float>([&](int i) { return mask >> i & 1 ? x[i] : rest[i]; });
}
inline float _mm512_reduce_add_ps(__m512 x) {
  return emulated::reduce(x, [](float a, float b) { return a + b; });
}
inline float _mm512_reduce_max_ps(__m512 x) {
  return emulated::reduce(x, [](float a, float b) { return a > b ? a : b; });
}
inline float _mm512_reduce_min_ps(__m512 x) {
  return emulated::reduce(x, [](float a, float b) { return a < b ? a : b; });
}

inline __m512 _mm512_cvtepi32_ps(__m512i x) {
  const auto words = emulated::as<int32_t>(x);
  return emulated::make<__m512, float>([&](int i) { return static_cast<float>(words[i]); });
}
inline __m512i _mm512_cvtps_epi32(__m512 x) {
  return emulated::make<__m512i, int32_t>([&](int i) { return static_cast<int32_t>(__builtin_nearbyintf(x[i])); });
}
inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
  const auto halves = emulated::as<uint16_t>(x);
  return emulated::make<__m512i, int32_t>([&](int i) { return halves[i]; });
}
inline __m512i _mm512_cvtepi8_epi32(__m128i x) {
  const auto bytes = emulated::as<int8_t>(x);
  return emulated::make<__m512i, int32_t>([&](int i) { return bytes[i]; });
}
inline __m128i _mm512_cvtusepi32_epi8(__m512i x) {
  const auto words = emulated::as<uint32_t>(x);
  return emulated::make<__m128i, uint8_t>([&](int i) { return words[i] > 255 ? 255 : words[i]; });
}
inline __m512i _mm512_max_epi32(__m512i a, __m512i b) {
  const auto x = emulated::as<int32_t>(a), y = emulated::as<int32_t>(b);
  return emulated::make<__m512i, int32_t>([&](int i) { return x[i] > y[i] ? x[i] : y[i]; });
}
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) {
  const auto x = emulated::as<int32_t>(a), y = emulated::as<int32_t>(b);
  return emulated::make<__m512i, int32_t>([&](int i) { return x[i] + y[i]; });
}
inline __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  const auto x = emulated::as<uint8_t>(a);
  const auto y = emulated::as<int8_t>(b);
  return emulated::make<__m512i, int16_t>([&](int i) {
    const int sum = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
    return sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum;
  });
}
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
  const auto x = emulated::as<int16_t>(a), y = emulated::as<int16_t>(b);
  return emulated::make<__m512i, int32_t>([&](int i) { return x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]; });
}

inline __m512i _mm512_dpbusd_epi32(__m512i acc, __m512i a, __m512i b) {
  const auto sums = emulated::as<int32_t>(acc);
  const auto x = emulated::as<uint8_t>(a);
  const auto y = emulated::as<int8_t>(b);
  return emulated::make<__m512i, int32_t>([&](int i) {
    int32_t sum = sums[i];
    for (int j = 4 * i; j < 4 * i + 4; j++) sum += x[j] * y[j];
    return sum;
  });
}

inline __m512 _mm512_dpbf16_ps(__m512 acc, __m512bh a, __m512bh b) {
  const auto x = emulated::as<uint16_t>(a), y = emulated::as<uint16_t>(b);
  const auto product = [&](int i) { return emulated::widened(x[i]) * emulated::widened(y[i]); };
  return emulated::make<__m512, float>([&](int i) { return acc[i] + product(2 * i + 1) + product(2 * i); });
}
inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
  const auto words = emulated::as<uint32_t>(x);
  return emulated::make<__m256bh, uint16_t>([&](int i) { return (words[i] + 0x7fff + (words[i] >> 16 & 1)) >> 16; });
}

}  // namespace bei

// Only now: before it, the compiler's own header would take them for the processor's.
#ifdef EMULATE_AVX512F
#define __AVX512F__ 1
#endif
#ifdef EMULATE_AVX512_VNNI
#define __AVX512VNNI__ 1
#endif
#ifdef EMULATE_AVX512_BF16
#define __AVX512BF16__ 1
#endif
#endif
