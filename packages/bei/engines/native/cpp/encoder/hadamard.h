// The rotation of a row that spreads its outliers, so that bytes suffice for it (QuaRot, arXiv:2404.00456, §3).
#pragma once
#include "isa/vectors.h"

namespace bei {

// The transforms of `Radix` numbers each, which are `apart` numbers apart.
template <int Radix>
inline void butterflies(float* x, int n, int apart) {
  for (int first = 0; first < n; first += Radix * apart)
    for_vectors(apart, [&](int i, int lanes) {
      float* const at = x + first + i;
      F v[Radix];
#pragma GCC unroll 8
      for (int j = 0; j < Radix; j++) v[j] = load_lanes(at + j * apart, lanes);
#pragma GCC unroll 3
      for (int half = 1; half < Radix; half *= 2)
#pragma GCC unroll 8
        for (int j = 0; j < Radix; j++)
          if (!(j & half)) {
            const F a = v[j], b = v[j + half];
            v[j] = a + b, v[j + half] = a - b;
          }
#pragma GCC unroll 8
      for (int j = 0; j < Radix; j++) store_lanes(at + j * apart, v[j], lanes);
    });
}

// Walsh-Hadamard transforms of `size` numbers each, n / size apart, in place. `size` is a power of two that divides n. The
// factor 1 / size of the two transforms of a product is in the matrix (kernel/pack.cpp).
inline void hadamard(float* x, int n, int size) {
  int apart = n / size;
  for (; 8 * apart <= n; apart *= 8) butterflies<8>(x, n, apart);
  if (4 * apart <= n) butterflies<4>(x, n, apart), apart *= 4;
  if (2 * apart <= n) butterflies<2>(x, n, apart);
}

}  // namespace bei
