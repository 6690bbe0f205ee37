// The micro-kernel: a few rows times one panel of a packed matrix.
#pragma once
#include <cstdint>
#include <type_traits>

#include "vec.h"

namespace bei {

constexpr int kPanel = kLanes * kVectors;  // columns
constexpr int kTileRows = 6;               // rows that fit the registers

// How many numbers of a type share a 32-bit word.
template <class T>
constexpr int kPerWord = 4 / sizeof(T);

// Operands and columns are filled up to a multiple of so many numbers.
template <class T>
constexpr int kWordMultiple = kPerWord<T>;

// The largest byte of an operand, and the largest size of a byte of a matrix.
constexpr float kLargestOperand = 255, kLargestWeight = 127;

// The largest sum of two neighboring weights of one sign, before they are rounded: so two products fit 16 bits. 0: any.
constexpr float kLargestPair = kPairsIn16Bits ? 32767 / kLargestOperand - 1 : 0;

// What its products sum up to.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, uint8_t>, int32_t, float>;

// out[row_count][width] = a[row_count][words] * panel[words][width], with width = vectors * kLanes. A word is one float, two
// bf16 or four bytes; the product of two words is the sum over their numbers.
// a: rows `stride` bytes apart; panel: aligned to a vector; out: rows `out_stride` numbers apart.
// row_count <= kTileRows, vectors <= kVectors.
template <class T>
void multiply(const void* a, size_t stride, int row_count, const void* panel, int vectors, int words, Sum<T>* out,
              size_t out_stride);

}  // namespace bei
