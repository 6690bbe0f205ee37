#include <cstdint>
#include <type_traits>
#include <utility>

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

template struct Dot<float>;
#if !BEI_HAS_MMLA
template struct Dot<uint8_t>;
#if BEI_MULTIPLIES_BF16
template struct Dot<bf16>;
#endif
#endif

}  // namespace bei
