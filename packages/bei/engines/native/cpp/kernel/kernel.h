// The micro-kernel of this level for each type of number: a few rows times one panel of a packed matrix.
#pragma once
#include <cstdint>
#include <type_traits>

#include "isa/vectors.h"

namespace bei {

// The largest byte of an operand, and the largest size of a byte of a matrix.
constexpr float kLargestOperand = 255, kLargestWeight = 127;

// The largest sum of two neighboring weights of one sign, before they are rounded: so two products fit 16 bits. 0: any.
constexpr float kLargestPair = kPairsIn16Bits ? 32767 / kLargestOperand - 1 : 0;

// What its products sum up to.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, uint8_t>, int32_t, float>;

// What a thread keeps between products; nothing for the vectors of dot.cpp.
struct Session {
  // The thread multiplies no more for now.
  void end() {}
};

// A way of multiplying Numbers. A matrix is packed as [panels][words][columns of a panel][kGroup numbers], and the kGroup
// numbers are one Word. Operands and columns are filled up to a multiple of kWordMultiple numbers, with zeros. A product may
// have any number of rows up to kRows; a multiple of kRowMultiple wastes none.
//
// multiply: out[row_count][columns] = a[row_count][words] * panel[words][columns]; the product of two words is the sum over
// their numbers. `columns` is a multiple of kLanes, at most kPanel. a: rows `stride` numbers apart; panel: aligned to a
// vector; out: rows `out_stride` numbers apart.

// Vectors: each word of a row is splatted, and multiplied into the columns lane by lane.
template <class T>
struct Dot {
  using Number = T;
  using Word = uint32_t;
  static constexpr int kRows = 6;  // rows that fit the registers
  static constexpr int kRowMultiple = 1;
  static constexpr int kPanel = kLanes * kVectors;
  static constexpr int kGroup = sizeof(Word) / sizeof(T);
  static constexpr int kWordMultiple = kGroup;

  static void multiply(Session& session, const T* a, int stride, int row_count, const void* panel, int columns,
                       int words, Sum<T>* out, int out_stride);
};

template <class T>
using Kernel = Dot<T>;

// The words of n numbers.
template <class Kernel>
constexpr int words_of(int n) {
  return round_up(n, Kernel::kWordMultiple) / Kernel::kGroup;
}

}  // namespace bei
