// Rows times a packed matrix. Scales and bias are applied to the sums while they are in registers.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "abi.h"
#include "kernel/int4.h"
#include "kernel/kernel.h"
#include "memory.h"

namespace bei {

// A vector of each, for the current columns.
struct Affine {
  F scale, sum, bias;
};

inline F finish(F sums, const Affine& column, const MatrixView<uint8_t>& a, int row) {
  const F exact = fma(splat(-a.zeros[row]), column.sum, sums);
  return fma(exact * splat(a.scales[row]), column.scale, column.bias);
}

template <class T>
inline F finish(F sums, const Affine& column, const MatrixView<T>&, int) {
  return sums + column.bias;
}

// Convert a panel of bf16 to floats.
inline const float* widen(const void* panel, int width, int words, Buffer& buffer) {
  const uint32_t* const packed = static_cast<const uint32_t*>(panel);
  float* const floats = buffer.get<float>(2 * static_cast<size_t>(words) * width);
  for (int w = 0; w < words; w++)
    for (int j = 0; j < width; j += kLanes) {
      const W pairs = load_words(packed + w * width + j);
      store(floats + 2 * w * width + j, low_half(pairs));
      store(floats + (2 * w + 1) * width + j, high_half(pairs));
    }
  return floats;
}

// Rows of so many numbers as a kernel reads them.
template <class K, class T>
inline MatrixView<const T> arranged(const T* a, int stride, int row_count, int numbers, Buffer& buffer) {
  if constexpr (std::is_same_v<K, Mmla<T>>) {
    const int width = round_up(numbers, K::kWordMultiple);
    T* to = buffer.get<T>(static_cast<size_t>(round_up(row_count, K::kRowMultiple)) * width);
    K::arrange(a, stride, row_count, numbers, to);
    return {to, width};
  } else {
    return {a, stride};
  }
}

// Where a tile begins. Tiles have equal heights: seven rows are four and three, not six and one.
template <class Kernel>
inline int first_row(int row_count, int tile, int tiles) {
  return std::min(row_count, round_up(tile * row_count / tiles, Kernel::kRowMultiple));
}

// The columns [first, last) of a product: whole panels, but for the last one.
struct Columns {
  int first, last;
};

inline Columns all_columns(const BeiLinear& weights) { return {0, round_up(weights.outputs, kLanes)}; }

// totals += rows * a panel of four bits; [row_count][width]. A group is unpacked once for all rows.
template <class K, class T>
void add_int4(const MatrixView<const T>& rows, int row_count, const uint32_t* packed, int width, int words,
              const float* of_inputs, Session& session, float* totals) {
  constexpr int kWords = kInt4Group / K::kGroup, kTogether = std::is_same_v<K, Mmla<T>> ? K::kRowMultiple : 1;
  const int tiles = (row_count + K::kRows - 1) / K::kRows;
  alignas(64) float sums[K::kRows * K::kPanel];
  alignas(64) T panel[kInt4Group * K::kPanel];
  for (int at = 0; at < words; at += kWords, packed += width * (1 + kInt4Group / 8), of_inputs += row_count) {
    unpack(packed + width, width, panel);
    for (int tile = 0; tile < tiles; tile++) {
      const int first = first_row<K>(row_count, tile, tiles), count = first_row<K>(row_count, tile + 1, tiles) - first;
      K::multiply(session, rows.row(first) + at * K::kGroup * kTogether, rows.stride, count, panel, width,
                  std::min(kWords, words - at), sums, width);
      for (int j = 0; j < width; j += kLanes) {
        const Int4Scales scales(packed + j);
        for (int i = 0; i < count; i++)
          scales.add(load(sums + i * width + j), of_inputs[first + i], totals + (first + i) * width + j);
      }
    }
  }
}

// The same with a whole panel, which each tile of Dot<bf16> unpacks in registers that it has left.
template <class K, class T>
void add_int4_in_registers(const MatrixView<const T>& rows, int row_count, const uint32_t* packed, int words,
                           const float* of_inputs, float* totals) {
  if constexpr (std::is_same_v<K, Dot<bf16>>) {
    const int tiles = (row_count + K::kRows - 1) / K::kRows;
    for (int tile = 0; tile < tiles; tile++) {
      const int first = first_row<K>(row_count, tile, tiles), count = first_row<K>(row_count, tile + 1, tiles) - first;
      K::multiply_int4(rows.row(first), rows.stride, count, packed, words, of_inputs + first, row_count,
                       totals + first * K::kPanel);
    }
  }
}

// `linear` with a matrix of four bits.
template <class T, class Sink>
void linear_int4(const BeiLinear& weights, const MatrixView<T>& a, int row_count, Columns columns, Scratch& scratch,
                 Sink sink) {
  using K = Kernel<T>;
  const int words = words_of<K>(weights.inputs);
  const MatrixView<const T> rows = arranged<K, T>(a.data, a.stride, row_count, weights.inputs, scratch.arranged);
  const float* const of_inputs = sums_of_groups(a, row_count, weights.inputs, scratch.group_sums);
  float* const totals = scratch.panel.get<float>(static_cast<size_t>(row_count) * K::kPanel);
  for (int column = columns.first; column < columns.last; column += K::kPanel) {
    const int width = std::min(K::kPanel, columns.last - column);
    const uint32_t* const packed =
        static_cast<const uint32_t*>(weights.panels) + static_cast<size_t>(column) * int4_words(weights.inputs);
    for (int row = 0; row < row_count; row++) std::copy_n(weights.bias + column, width, totals + row * width);
    if (std::is_same_v<K, Dot<bf16>> && width == K::kPanel)
      add_int4_in_registers<K>(rows, row_count, packed, words, of_inputs, totals);
    else
      add_int4<K>(rows, row_count, packed, width, words, of_inputs, scratch.session, totals);
    for (int row = 0; row < row_count; row++)
      for (int j = 0; j < width; j += kLanes) sink(row, column + j, load(totals + row * width + j));
  }
}

// Calls sink(row, column, values) once for every vector of these columns of a * weights + bias. The last vector of a row may
// extend beyond `outputs`, into the zeros of the packing.
template <class T, class Sink>
void linear(const BeiLinear& weights, const MatrixView<T>& a, int row_count, Columns columns, Scratch& scratch,
            Sink sink) {
  if constexpr (std::is_same_v<T, Half>)
    if (weights.precision == BEI_INT4) return linear_int4(weights, a, row_count, columns, scratch, sink);
  const bool widens = std::is_same_v<T, float> && std::is_same_v<T, Half> && weights.precision == BEI_BF16;
  using K = Kernel<T>;
  const int words = words_of<K>(weights.inputs);
  const int packed_words = widens ? words_of<Kernel<bf16>>(weights.inputs) : words;
  const int tiles = (row_count + K::kRows - 1) / K::kRows;
  const MatrixView<const T> rows = arranged<K, T>(a.data, a.stride, row_count, weights.inputs, scratch.arranged);
  alignas(64) Sum<T> sums[K::kRows * K::kPanel];
  for (int column = columns.first; column < columns.last; column += K::kPanel) {
    const int width = std::min(K::kPanel, columns.last - column), vectors = width / kLanes;
    const void* panel =
        static_cast<const typename K::Word*>(weights.panels) + static_cast<size_t>(column) * packed_words;
    if (widens) panel = widen(panel, width, packed_words, scratch.panel);
    Affine affine[K::kPanel / kLanes];
    for (int j = 0; j < vectors; j++) {
      const int at = column + j * kLanes;
      affine[j].bias = load(weights.bias + at);
      if (sizeof(T) == 1) affine[j].scale = load(weights.scales + at), affine[j].sum = load(weights.sums + at);
    }
    for (int tile = 0; tile < tiles; tile++) {
      const int first = first_row<K>(row_count, tile, tiles), count = first_row<K>(row_count, tile + 1, tiles) - first;
      K::multiply(scratch.session, rows.row(first), rows.stride, count, panel, width, words, sums, width);
      for (int i = 0; i < count; i++)
        for (int j = 0; j < vectors; j++) {
          const F value = load(sums + i * width + j * kLanes);
          sink(first + i, column + j * kLanes, finish(value, affine[j], a, first + i));
        }
    }
  }
}

// All columns.
template <class T, class Sink>
void linear(const BeiLinear& weights, const MatrixView<T>& a, int row_count, Scratch& scratch, Sink sink) {
  linear(weights, a, row_count, all_columns(weights), scratch, sink);
}

}  // namespace bei
