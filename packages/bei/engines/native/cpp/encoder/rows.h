// Operations on one row: rounding to operands, norms, rotation.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "encoder/hadamard.h"
#include "kernel/linear.h"

namespace bei {

// Set the rest of the last word of n operands to zero: a NaN there would not vanish against the zeros of the matrix.
template <class T>
inline void end_words(T* operands, int n) {
  for (; n % Kernel<T>::kWordMultiple; n++) operands[n] = T{};
}

// Round a row of floats, or of bf16, to the operands of the product with `weights`.
template <class S, class T>
inline void to_operands(const S* x, const BeiLinear& weights, const MatrixView<T>& to, int row, Scratch&) {
  T* y = to.row(row);
  for_vectors(weights.inputs, [&](int i, int lanes) { store_lanes(y + i, load_lanes(x + i, lanes), lanes); });
  end_words(y, weights.inputs);
}

// Round to bytes, with a scale per row: a scale shared by all rows ruins embeddings (cosine 0.97 instead of 0.999).
template <class Values>
inline void round_to_bytes(int n, const MatrixView<uint8_t>& to, int row, Values values) {
  F low = zero(), high = zero();
  for_vectors(n, [&](int i, int lanes) {
    const F v = values(i, lanes);
    low = min(low, v), high = max(high, v);
  });
  const float least = smallest(low);
  const float scale = std::max((largest(high) - least) / kOperandRange, 1e-12f);
  const float offset = std::nearbyint(-least / scale) + kLeastOperand;
  to.scales[row] = scale, to.zeros[row] = offset;
  const F by = splat(1.f / scale), from = splat(offset), most = splat(kLeastOperand + kOperandRange);
  for_vectors(
      n, [&](int i, int lanes) { store_lanes(to.row(row) + i, min(fma(values(i, lanes), by, from), most), lanes); });
  end_words(to.row(row), n);
}

template <class S>
inline void to_operands(const S* x, const BeiLinear& weights, const MatrixView<uint8_t>& to, int row,
                        Scratch& scratch) {
  const float* scales = weights.input_scales;
  const auto scaled = [&](int i, int lanes) {
    const F v = load_lanes(x + i, lanes);
    return scales ? v * load_lanes(scales + i, lanes) : v;
  };
  if (weights.hadamard < 2) return round_to_bytes(weights.inputs, to, row, scaled);
  float* const rotated = scratch.rotated.get<float>(weights.inputs);
  for_vectors(weights.inputs, [&](int i, int lanes) { store_lanes(rotated + i, scaled(i, lanes), lanes); });
  hadamard(rotated, weights.inputs, weights.hadamard);
  round_to_bytes(weights.inputs, to, row, [&](int i, int lanes) { return load_lanes(rotated + i, lanes); });
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias. x and y may be the same row.
template <class S, class T>
inline void layer_norm(const BeiNorm& norm, const S* x, T* y) {
  const int n = norm.size;
  F sums = zero();
  for_vectors(n, [&](int i, int lanes) { sums = sums + load_lanes(x + i, lanes); });
  const F mean = splat(sum(sums) / n);
  F squares = zero();
  for_vectors(n, [&](int i, int lanes) {
    const F d = select_first(lanes, load_lanes(x + i, lanes) - mean, zero());
    squares = fma(d, d, squares);
  });
  const F by = splat(1 / std::sqrt(sum(squares) / n + norm.eps));
  for_vectors(n, [&](int i, int lanes) {
    const F d = (load_lanes(x + i, lanes) - mean) * by;
    const F bias = norm.bias ? load_lanes(norm.bias + i, lanes) : zero();
    store_lanes(y + i, fma(d, load_lanes(norm.weight + i, lanes), bias), lanes);
  });
}

// y = x / sqrt(mean(x²) + eps) * weight (arXiv:1910.07467). x and y may be the same row.
template <class S, class T>
inline void rms_norm(const BeiNorm& norm, const S* x, T* y) {
  F squares = zero();
  for_vectors(norm.size, [&](int i, int lanes) {
    const F v = load_lanes(x + i, lanes);
    squares = fma(v, v, squares);
  });
  const F by = splat(1 / std::sqrt(sum(squares) / norm.size + norm.eps));
  for_vectors(norm.size, [&](int i, int lanes) {
    store_lanes(y + i, load_lanes(x + i, lanes) * by * load_lanes(norm.weight + i, lanes), lanes);
  });
}

// y = x * weight + bias (arXiv:2004.02984, §3.3). x and y may be the same row.
template <class S, class T>
inline void affine(const BeiNorm& norm, const S* x, T* y) {
  for_vectors(norm.size, [&](int i, int lanes) {
    const F bias = norm.bias ? load_lanes(norm.bias + i, lanes) : zero();
    store_lanes(y + i, fma(load_lanes(x + i, lanes), load_lanes(norm.weight + i, lanes), bias), lanes);
  });
}

template <class S, class T>
inline void normalize(const BeiNorm& norm, const S* x, T* y) {
  switch (norm.kind) {
    case BEI_RMS:
      return rms_norm(norm, x, y);
    case BEI_AFFINE:
      return affine(norm, x, y);
    default:
      return layer_norm(norm, x, y);
  }
}

// Rotate the query or key of one head in place. Pair i is (i, i + pairs); `cos_sin` has `pairs` cosines, then the sines.
template <class T>
inline void rotate(T* x, const float* cos_sin, int pairs) {
  for_vectors(pairs, [&](int i, int lanes) {
    const F a = load_lanes(x + i, lanes), b = load_lanes(x + pairs + i, lanes);
    const F cos = load_lanes(cos_sin + i, lanes), sin = load_lanes(cos_sin + pairs + i, lanes);
    store_lanes(x + i, fma(a, cos, zero() - b * sin), lanes);
    store_lanes(x + pairs + i, fma(b, cos, a * sin), lanes);
  });
}

// x += y, of n numbers. x is padded to whole vectors.
inline void add(float* x, const float* y, int n) {
  for_vectors(n, [&](int i, int lanes) { store(x + i, load(x + i) + load_lanes(y + i, lanes)); });
}

// x / max(‖x‖₂, 1e-12), as torch.nn.functional.normalize.
inline void l2_normalize(const float* x, int n, float* y) {
  F squares = zero();
  for_vectors(n, [&](int i, int lanes) {
    const F v = load_lanes(x + i, lanes);
    squares = fma(v, v, squares);
  });
  const F by = splat(1 / std::max(std::sqrt(sum(squares)), 1e-12f));
  for_vectors(n, [&](int i, int lanes) { store_lanes(y + i, load_lanes(x + i, lanes) * by, lanes); });
}

}  // namespace bei
