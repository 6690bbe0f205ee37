// Products with matrices of four bits. A number is q * scale + offset, where q is 0 to 15, and each kInt4Group inputs of a
// column have a scale and an offset, of 16 bits each. A panel is
//
//   [groups]: [columns] words, the scale in the lower half and the offset in the upper one; then the q of the group, in the
//             order of a panel of the numbers that are multiplied.
//
// A vector of words has the bits of several vectors of such numbers, lane by lane, the first in the lowest bits; where two
// numbers make a word, those of the second are 16 bits higher.
//
// The numbers 128 + q, which need no arithmetic, are multiplied. The sums of a group are scaled, and what an offset adds is
// the sum of the group's inputs times it.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "abi.h"
#include "kernel/kernel.h"
#include "memory.h"

namespace bei {

constexpr float kLeadingBit = 128;
constexpr int kPrefetched = 1024;  // words ahead

// The groups of a column, and the words of all of them.
constexpr int int4_groups(int inputs) { return (inputs + kInt4Group - 1) / kInt4Group; }
constexpr int int4_words(int inputs) { return int4_groups(inputs) * (1 + kInt4Group / 8); }

// The n-th vector of those whose bits are in a word: kLeadingBit plus each.
template <int N>
inline W numbers_of(W word, bf16) {
  return bits_over<4 * N>(word, 0xf000f, 0x43004300);
}
template <int N>
inline W numbers_of(W word, float) {
  return bits_over<4 * N - 16>(word, 0xf0000, 0x43000000);
}

template <class T, int... N>
inline void unpack(W word, int32_t* to, std::integer_sequence<int, N...>) {
  (store(to + N * kLanes, numbers_of<N>(word, T{})), ...);
}

// A group of so many columns.
template <class T>
inline void unpack(const uint32_t* packed, int width, T* panel) {
  constexpr int kVectors = 2 * sizeof(T);  // of a vector of bits
  const uint32_t* const end = packed + width * (kInt4Group / 8);
  for (int32_t* to = reinterpret_cast<int32_t*>(panel); packed < end; packed += kLanes, to += kVectors * kLanes) {
    __builtin_prefetch(packed + kPrefetched);
    unpack<T>(load_words(packed), to, std::make_integer_sequence<int, kVectors>());
  }
}

// The scales and offsets of a vector of columns.
struct Int4Scales {
  explicit Int4Scales(const uint32_t* pairs)
      : scale(low_half(load_words(pairs))), offset(fma(splat(-kLeadingBit), scale, high_half(load_words(pairs)))) {}

  // Adds the products of a group to their total.
  void add(F sums, float of_inputs, float* total) const {
    store(total, fma(sums, scale, fma(splat(of_inputs), offset, load(total))));
  }

  F scale, offset;
};

// The sums of each group's inputs: [groups][rows].
template <class T>
inline const float* sums_of_groups(const MatrixView<T>& a, int row_count, int inputs, Buffer& buffer) {
  float* const sums = buffer.get<float>(static_cast<size_t>(int4_groups(inputs)) * row_count);
  for (int first = 0, group = 0; first < inputs; first += kInt4Group, group++)
    for (int row = 0; row < row_count; row++) {
      F parts = zero();
      for_vectors(std::min(kInt4Group, inputs - first),
                  [&](int i, int lanes) { parts = parts + load_lanes(a.row(row) + first + i, lanes); });
      sums[group * row_count + row] = sum(parts);
    }
  return sums;
}

}  // namespace bei
