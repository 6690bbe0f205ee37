#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "kernel/kernel.h"

#if BEI_HAS_MMLA

namespace bei {
namespace {

// The products of two rows and two columns: (0, 0), (0, 1), (1, 0), (1, 1).
template <class T>
using Square = std::conditional_t<std::is_same_v<T, uint8_t>, int32x4_t, float32x4_t>;

// Two words of two rows and of two columns.
inline int32x4_t square(int32x4_t sums, uint8x16_t rows, uint8x16_t columns) {
  return vusmmlaq_s32(sums, rows, vreinterpretq_s8_u8(columns));
}
inline float32x4_t square(float32x4_t sums, uint8x16_t rows, uint8x16_t columns) {
  return vbfmmlaq_f32(sums, vreinterpretq_bf16_u8(rows), vreinterpretq_bf16_u8(columns));
}

// Rows of four columns, from two squares.
inline void store_rows(int32_t* out, size_t stride, int32x4_t left, int32x4_t right) {
  const int64x2_t a = vreinterpretq_s64_s32(left), b = vreinterpretq_s64_s32(right);
  vst1q_s32(out, vreinterpretq_s32_s64(vzip1q_s64(a, b)));
  vst1q_s32(out + stride, vreinterpretq_s32_s64(vzip2q_s64(a, b)));
}
inline void store_rows(float* out, size_t stride, float32x4_t left, float32x4_t right) {
  const int64x2_t a = vreinterpretq_s64_f32(left), b = vreinterpretq_s64_f32(right);
  vst1q_f32(out, vreinterpretq_f32_s64(vzip1q_s64(a, b)));
  vst1q_f32(out + stride, vreinterpretq_f32_s64(vzip2q_s64(a, b)));
}

constexpr int kBytes = 16;  // of two words

// The sums stay in registers, as in dot.cpp: 6 pairs of rows by 4 pairs of columns fill 24 of 32.
template <class T, int Pairs, int Vectors>
void square_tile(const uint8_t* a, size_t pair_stride, const uint8_t* panel, int words, Sum<T>* out,
                 size_t out_stride) {
  constexpr int kSquares = 2 * Vectors;
  Square<T> sums[Pairs][kSquares];
#pragma GCC unroll 8
  for (int i = 0; i < Pairs; i++)
#pragma GCC unroll 8
    for (int j = 0; j < kSquares; j++) sums[i][j] = Square<T>{};
  for (int k = 0; k < words; k++, panel += kSquares * kBytes) {
    uint8x16_t columns[kSquares];
#pragma GCC unroll 8
    for (int j = 0; j < kSquares; j++) columns[j] = vld1q_u8(panel + j * kBytes);
#pragma GCC unroll 8
    for (int i = 0; i < Pairs; i++) {
      const uint8x16_t rows = vld1q_u8(a + i * pair_stride + static_cast<size_t>(k) * kBytes);
#pragma GCC unroll 8
      for (int j = 0; j < kSquares; j++) sums[i][j] = square(sums[i][j], rows, columns[j]);
      asm volatile("" ::: "memory");  // all rows loaded at once would leave too few registers
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < Pairs; i++)
#pragma GCC unroll 8
    for (int j = 0; j < Vectors; j++)
      store_rows(out + 2 * i * out_stride + j * kLanes, out_stride, sums[i][2 * j], sums[i][2 * j + 1]);
}

template <class T>
using SquareTile = void (*)(const uint8_t*, size_t, const uint8_t*, int, Sum<T>*, size_t);

template <class T, int... Sizes>
constexpr SquareTile<T> square_tile_of(int size, std::integer_sequence<int, Sizes...>) {
  constexpr SquareTile<T> tiles[] = {square_tile<T, Sizes / 2 + 1, Sizes % 2 + 1>...};
  return tiles[size];
}

}  // namespace

template <class T>
void Mmla<T>::arrange(const T* a, int stride, int row_count, int numbers, T* to) {
  const int whole = numbers / kGroup * kGroup;
  for (int row = 0; row < row_count; row += kRowMultiple) {
    const T *upper = a + static_cast<size_t>(row) * stride, *lower = row + 1 < row_count ? upper + stride : upper;
    for (int i = 0; i < whole; i += kGroup, to += 2 * kGroup) {
      const Word words[] = {word_of<Word>(upper + i, kGroup), word_of<Word>(lower + i, kGroup)};
      std::memcpy(to, words, kBytes);
    }
    if (whole == numbers) continue;
    const Word words[] = {word_of<Word>(upper + whole, numbers - whole), word_of<Word>(lower + whole, numbers - whole)};
    std::memcpy(to, words, kBytes);
    to += 2 * kGroup;
  }
}

template <class T>
void Mmla<T>::multiply(Session&, const T* a, int stride, int row_count, const void* panel, int columns, int words,
                       Sum<T>* out, int out_stride) {
  constexpr int kVectors = kPanel / kLanes;
  const auto sizes = std::make_integer_sequence<int, kRows / 2 * kVectors>();
  const SquareTile<T> tile = square_tile_of<T>((row_count - 1) / 2 * kVectors + columns / kLanes - 1, sizes);
  tile(reinterpret_cast<const uint8_t*>(a), 2 * stride * sizeof(T), static_cast<const uint8_t*>(panel), words, out,
       out_stride);
}

template struct Mmla<uint8_t>;
template struct Mmla<bf16>;

}  // namespace bei

#endif
