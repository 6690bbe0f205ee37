#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#include "kernel/int4.h"
#include "kernel/kernel.h"

namespace bei {
namespace {

template <class T>
struct Accumulator {
  F vector;
};
template <>
struct Accumulator<uint8_t> {
  W vector;
};

#ifdef BEI_MULTIPLIES_BY_LANE
// A vector of each row times the columns of its words, one vector of columns at a time.
template <class T, int Rows, int Vectors, class Sums, int... Columns>
inline void by_lanes(const char* a, size_t stride, const char* panel, Sums& sums,
                     std::integer_sequence<int, Columns...>) {
  W rows[Rows];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++) rows[i] = load_words(a + i * stride);
  const auto multiply = [&](auto column) {
    constexpr int lane = decltype(column)::value / Vectors, j = decltype(column)::value % Vectors;
    const W columns = load_words(panel + decltype(column)::value * sizeof(W));
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++) sums[i][j] = dot_lane<lane>(sums[i][j], columns, rows[i], T{});
    asm volatile("" ::: "memory");  // all columns loaded at once would leave too few registers
  };
  (multiply(std::integral_constant<int, Columns>()), ...);
}
#endif

// The sums stay in registers: the loops over them have constant bounds, and the compiler unrolls them completely.
template <class T, int Rows, int Vectors>
void tile(const char* a, size_t stride, const char* panel, int words, Sum<T>* out, size_t out_stride) {
  using Vector = decltype(Accumulator<T>::vector);
  Vector sums[Rows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; j++) sums[i][j] = Vector{};
  int k = 0;
#ifdef BEI_MULTIPLIES_BY_LANE
  for (; k + kLanes <= words; k += kLanes, panel += kLanes * Vectors * sizeof(W))
    by_lanes<T, Rows, Vectors>(a + 4 * k, stride, panel, sums, std::make_integer_sequence<int, kLanes * Vectors>());
#endif
  for (; k < words; k++, panel += Vectors * sizeof(W)) {
    W columns[Vectors];
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; j++) columns[j] = load_words(panel + j * sizeof(W));
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++) {
      const W row = splat_word(a + i * stride + 4 * k);
#pragma GCC unroll 8
      for (int j = 0; j < Vectors; j++) sums[i][j] = dot(sums[i][j], row, columns[j], T{});
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; j++) store(out + i * out_stride + j * kLanes, sums[i][j]);
}

// A vector of bits has those of a word of all columns.
template <class T, int Rows>
void int4_tile(const char* a, size_t stride, const uint32_t* packed, int words, const float* of_inputs, int of_stride,
               float* totals) {
  constexpr int kWords = kInt4Group / Dot<T>::kGroup, kPanel = Dot<T>::kPanel;
  static_assert(kVectors * kInt4Group == kWords * 8, "as above");
  for (int first = 0; first < words; first += kWords, packed += kPanel * (1 + kInt4Group / 8), of_inputs += of_stride) {
    F sums[Rows][kVectors];
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++)
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; j++) sums[i][j] = zero();
    const uint32_t* bits = packed + kPanel;
    for (int k = first; k < std::min(words, first + kWords); k++, bits += kLanes) {
      __builtin_prefetch(bits + kPrefetched);
      const W word = load_words(bits);
      const W columns[] = {numbers_of<0>(word, T{}), numbers_of<1>(word, T{}), numbers_of<2>(word, T{}),
                           numbers_of<3>(word, T{})};
#pragma GCC unroll 8
      for (int i = 0; i < Rows; i++) {
        const W row = splat_word(a + i * stride + 4 * k);
#pragma GCC unroll 8
        for (int j = 0; j < kVectors; j++) sums[i][j] = dot(sums[i][j], row, columns[j], T{});
      }
    }
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; j++) {
      const Int4Scales scales(packed + j * kLanes);
#pragma GCC unroll 8
      for (int i = 0; i < Rows; i++) scales.add(sums[i][j], of_inputs[i], totals + i * kPanel + j * kLanes);
    }
  }
}

template <class T>
using Tile = void (*)(const char*, size_t, const char*, int, Sum<T>*, size_t);

template <class T, int... Sizes>
constexpr Tile<T> tile_of(int size, std::integer_sequence<int, Sizes...>) {
  constexpr Tile<T> tiles[] = {tile<T, Sizes / kVectors + 1, Sizes % kVectors + 1>...};
  return tiles[size];
}

}  // namespace

template <class T>
void Dot<T>::multiply(Session&, const T* a, int stride, int row_count, const void* panel, int columns, int words,
                      Sum<T>* out, int out_stride) {
  const auto sizes = std::make_integer_sequence<int, kRows * kVectors>();
  const Tile<T> tile = tile_of<T>((row_count - 1) * kVectors + columns / kLanes - 1, sizes);
  tile(reinterpret_cast<const char*>(a), stride * sizeof(T), static_cast<const char*>(panel), words, out, out_stride);
}

template <class T>
void Dot<T>::multiply_int4(const T* a, int stride, int row_count, const uint32_t* packed, int words,
                           const float* of_inputs, int of_stride, float* totals) {
  if constexpr (std::is_same_v<T, bf16>) {
    constexpr decltype(&int4_tile<T, 1>) kTiles[] = {int4_tile<T, 1>, int4_tile<T, 2>, int4_tile<T, 3>,
                                                     int4_tile<T, 4>, int4_tile<T, 5>, int4_tile<T, 6>};
    const auto tile = kTiles[row_count - 1];
    tile(reinterpret_cast<const char*>(a), stride * sizeof(T), packed, words, of_inputs, of_stride, totals);
  }
}

template struct Dot<float>;
#if !BEI_HAS_MMLA
template struct Dot<uint8_t>;
#if BEI_MULTIPLIES_BF16
template struct Dot<bf16>;
#endif
#endif

}  // namespace bei
