// The vector type and its operations, in which all arithmetic is written: 16 lanes with AVX-512, 8 with AVX2.
#pragma once
#include <initializer_list>
#include <type_traits>

#include "isa/isa.h"

namespace bei {

// The operand of a product with a bf16 matrix: bf16 if there is an instruction for it, else float; the matrix is then
// widened.
using Half = std::conditional_t<kMultipliesBf16, bf16, float>;

template <class T>
constexpr T round_up(T n, T multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// 2^x for x <= 126: 2^whole times a polynomial in the fraction f, in [-1/2, 1/2] (Chebyshev fits of 2^f).
inline F exp2(F x, std::initializer_list<float> polynomial) {
  x = max(x, splat(-126.f));
  const F whole = round(x), f = x - whole;
  F p = zero();
  for (float c : polynomial) p = fma(p, f, splat(c));
  return times_power_of_two(p, whole);
}

// Relative error below 2e-7.
inline F exp2(F x) {
  return exp2(x, {1.3400432e-3f, 9.6760371e-3f, 5.5503272e-2f, 2.4022107e-1f, 6.9314721e-1f, 1.00000008f});
}

// Relative error below 1e-4: less than the rounding of a bf16.
inline F quick_exp2(F x) { return exp2(x, {5.5922036e-2f, 2.4264008e-1f, 6.9312103e-1f, 9.9992448e-1f}); }

inline F exp(F x) { return exp2(min(x, splat(87.f)) * splat(1.44269504f)); }

// Calls f(column, lanes) for each vector of a row of n numbers; `lanes` is kLanes for all but the last one.
template <class Fn>
inline void for_vectors(int n, Fn f) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) f(i, kLanes);
  if (i < n) f(i, n - i);
}

template <class T>
inline F load_lanes(const T* p, int lanes) {
  return lanes == kLanes ? load(p) : load_part(p, lanes);
}

template <class T>
inline void store_lanes(T* p, F v, int lanes) {
  lanes == kLanes ? store(p, v) : store_part(p, v, lanes);
}

}  // namespace bei
