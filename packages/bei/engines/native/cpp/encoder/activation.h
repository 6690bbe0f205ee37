// Activations of a vector. They are exact to float32's rounding, except GELU whose result is stored in 16 or 8 bits.
#pragma once
#include "abi.h"
#include "isa/vectors.h"

namespace bei {

inline F sigmoid(F x) { return splat(1.f) / (splat(1.f) + exp(zero() - x)); }
inline F tanh(F x) { return splat(1.f) - splat(2.f) / (splat(1.f) + exp(x + x)); }

// Abramowitz and Stegun, 7.1.26: |error| <= 1.5e-7.
inline F erf(F x) {
  const F size = absolute(x), t = splat(1.f) / fma(size, splat(0.3275911f), splat(1.f));
  F p = splat(1.061405429f);
  for (float c : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) p = fma(p, t, splat(c));
  return negative_as(splat(1.f) - p * t * exp(zero() - size * size), x);
}

inline F gelu(F x) { return splat(0.5f) * x * (splat(1.f) + erf(x * splat(0.70710678f))); }

// x * (1/2 + c P(c²)) with c = x clamped to ±4, exact at ±4: |error| <= 1.9e-4 (a minimax fit of x Φ(x)).
inline F quick_gelu(F x) {
  const F c = min(max(x, splat(-4.f)), splat(4.f)), square = c * c;
  F p = splat(2.2588328e-8f);
  for (float k : {-1.5888331e-6f, 4.7764001e-5f, -8.121886e-4f, 8.7636979e-3f, -6.4554441e-2f, 0.39787033f})
    p = fma(p, square, splat(k));
  return x * fma(c, p, splat(0.5f));
}

// Hendrycks and Gimpel, arXiv:1606.08415, §2.
inline F gelu_tanh(F x) {
  const F inner = splat(0.79788456f) * fma(splat(0.044715f) * x * x, x, x);
  return x * sigmoid(inner + inner);
}

// Calls run(f) with the activation as a function; `rounded` says that the result is stored in 16 bits or less.
template <class Run>
void with_activation(int activation, bool rounded, Run run) {
  switch (activation) {
    case BEI_GELU:
      return rounded ? run([](F x) { return quick_gelu(x); }) : run([](F x) { return gelu(x); });
    case BEI_GELU_TANH:
      return run([](F x) { return gelu_tanh(x); });
    case BEI_RELU:
      return run([](F x) { return max(x, zero()); });
    case BEI_SILU:
      return run([](F x) { return x * sigmoid(x); });
    case BEI_TANH:
      return run([](F x) { return tanh(x); });
    case BEI_SIGMOID:
      return run([](F x) { return sigmoid(x); });
    default:
      return run([](F x) { return x; });
  }
}

}  // namespace bei
