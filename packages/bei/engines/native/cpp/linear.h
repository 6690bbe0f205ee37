// Rows times a packed matrix, and what becomes of each sum before it leaves the registers.
#pragma once
#include <algorithm>

#include "abi.h"
#include "tile.h"

namespace bei {

// Rows of operands, `stride` numbers apart. Bytes are (x / scale) + zero, with a scale and a zero for each row.
template <class T>
struct Rows {
  T* data;
  int stride;
  float *scales = nullptr, *zeros = nullptr;

  T* row(int i) const { return data + static_cast<size_t>(i) * stride; }
};

// One vector of each, for the columns at hand.
struct Affine {
  F scale, sum, bias;
};

inline F finish(F sums, const Affine& column, const Rows<uint8_t>& a, int row) {
  const F exact = fma(splat(-a.zeros[row]), column.sum, sums);
  return fma(exact * splat(a.scales[row]), column.scale, column.bias);
}

template <class T>
inline F finish(F sums, const Affine& column, const Rows<T>&, int) {
  return sums + column.bias;
}

// Calls sink(row, column, values) once for every vector of a * weights + bias; the last vector of a row may reach beyond
// `outputs`, with zeros of the packing. Rows are cut evenly: seven are four and three, not six and one.
template <class T, class Sink>
void linear(const BeiLinear& weights, const Rows<T>& a, int rows, Sink sink) {
  const int words = round_up(weights.inputs, kPerWord<T>) / kPerWord<T>;
  const int columns = round_up(weights.outputs, kLanes), tiles = (rows + kRows - 1) / kRows;
  alignas(64) Sum<T> sums[kRows * kPanel];
  for (int column = 0; column < columns; column += kPanel) {
    const int width = std::min(kPanel, columns - column), vectors = width / kLanes;
    const void* panel = static_cast<const char*>(weights.panels) + static_cast<size_t>(column) * words * 4;
    Affine affine[kVectors];
    for (int j = 0; j < vectors; j++) {
      const int at = column + j * kLanes;
      affine[j].bias = load(weights.bias + at);
      if (sizeof(T) == 1) affine[j].scale = load(weights.scales + at), affine[j].sum = load(weights.sums + at);
    }
    for (int tile = 0; tile < tiles; tile++) {
      const int first = tile * rows / tiles, count = (tile + 1) * rows / tiles - first;
      multiply<T>(a.row(first), a.stride * sizeof(T), count, panel, vectors, words, sums, width);
      for (int i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++) {
          const F value = load(sums + i * width + j * kLanes);
          sink(first + i, column + j * kLanes, finish(value, affine[j], a, first + i));
        }
    }
  }
}

}  // namespace bei
