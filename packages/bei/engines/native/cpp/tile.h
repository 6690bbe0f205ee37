// The micro-kernel: a few rows times one panel of a packed matrix.
#pragma once
#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace bei {

constexpr int kPanel = kLanes * kVectors;  // columns
constexpr int kRows = 6;                   // rows that fit the registers

// How many numbers of a type share a 32-bit word.
template <class T>
constexpr int kPerWord = 4 / sizeof(T);

// What its products sum up to.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, uint8_t>, int32_t, float>;

// out[rows][width] = a[rows][words] * panel[words][width], where width is `vectors` * kLanes and a word of `a` meets the
// word of each column: one float, two bf16 or four bytes.
// a: rows `stride` bytes apart; panel: aligned to a vector; rows <= kRows, vectors <= kVectors; out: rows `out_stride`
// numbers apart.
template <class T>
void multiply(const void* a, size_t stride, int rows, const void* panel, int vectors, int words, Sum<T>* out,
              size_t out_stride);

}  // namespace bei
