// The micro-kernel of this level for each type of number: a few rows times one panel of a packed matrix.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "isa/vectors.h"
#include "kernel/numbers.h"

namespace bei {

// The largest byte of an operand less the least, and the largest size of a byte of a matrix.
constexpr float kOperandRange = 255, kLargestWeight = 127;

// The largest sum of two neighboring weights of one sign, before they are rounded: so two products fit 16 bits. 0: any.
constexpr float largest_pair(bool pairs_in_16_bits) { return pairs_in_16_bits ? 32767 / kOperandRange - 1 : 0; }
constexpr float kLargestPair = largest_pair(kPairsIn16Bits);

// Rows that go through a layer together, each time that its matrices arrive. Tiles multiply so fast that a matrix from
// beyond the second cache would keep fewer rows waiting (benchmarks/README.md, "With AMX").
constexpr int block_rows(bool tiles) { return tiles ? 448 : 96; }
constexpr int kBlockRows = block_rows(kMultipliesTiles);

// The type of its products' sums.
template <class T>
using Sum = std::conditional_t<std::is_same_v<T, uint8_t>, int32_t, float>;

// The shape of the tiles of a thread, which is set anew only for another number of rows. The processor has it, so between
// two calls of end() only one thread may use it.
class TileSession {
 public:
  ~TileSession() { end(); }
  void set_rows(int rows) {
    if (rows != rows_) shape(rows);
  }
  void end();

 private:
  void shape(int rows);
  int rows_ = 0;
};

struct NoSession {
  void end() {}
};

// The state of a thread between products. It calls end() when it multiplies no more for now.
struct Session : std::conditional_t<kMultipliesTiles, TileSession, NoSession> {};

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

  // For bf16, with a whole panel of four bits (int4.h), which is unpacked in registers: added to totals[row_count][kPanel].
  // of_inputs: the sums of the inputs of each group, `of_stride` apart.
  static void multiply_int4(const T* a, int stride, int row_count, const uint32_t* packed, int words,
                            const float* of_inputs, int of_stride, float* totals);
};

// AMX: two tiles of rows at a time. A panel is four tiles of columns side by side, as it is packed for vectors.
template <class T>
struct Tiles {
  using Number = T;
  using Word = uint32_t;
  static constexpr int kRows = 32;
  static constexpr int kRowMultiple = 16;
  static constexpr int kPanel = 64;
  static constexpr int kGroup = sizeof(Word) / sizeof(T);
  static constexpr int kWordMultiple = 64 / sizeof(T);  // a row of a tile
  static void multiply(Session& session, const T* a, int stride, int row_count, const void* panel, int columns,
                       int words, Sum<T>* out, int out_stride);
};

constexpr int panel_of_mmla(int lanes) { return 2 * lanes; }

// Matrices of two rows and two columns (ARM's BFMMLA and USMMLA). It reads pairs of rows, word by word.
template <class T>
struct Mmla {
  using Number = T;
  using Word = uint64_t;
  static constexpr int kRows = 12;
  static constexpr int kRowMultiple = 2;
  static constexpr int kPanel = panel_of_mmla(kLanes);
  static constexpr int kGroup = sizeof(Word) / sizeof(T);
  static constexpr int kWordMultiple = kGroup;

  // Rows of so many numbers as `multiply` reads them: [pairs of rows][words][2]. `to` has a number of rows that is even, of
  // whole words each; what follows the numbers is zero.
  static void arrange(const T* a, int stride, int row_count, int numbers, T* to);

  // a: rows that are arranged, from an even one on; out: an even number of rows.
  static void multiply(Session& session, const T* a, int stride, int row_count, const void* panel, int columns,
                       int words, Sum<T>* out, int out_stride);
};

template <class T>
using Kernel = std::conditional_t<kMultipliesTiles && sizeof(T) < sizeof(float), Tiles<T>,
                                  std::conditional_t<BEI_HAS_MMLA && !std::is_same_v<T, float>, Mmla<T>, Dot<T>>>;

// The words of n numbers.
template <class Kernel>
constexpr int words_of(int n) {
  return round_up(n, Kernel::kWordMultiple) / Kernel::kGroup;
}

// The word of n numbers, the rest of it zero.
template <class Word, class T>
inline Word word_of(const T* numbers, int n) {
  Word word = 0;
  std::memcpy(&word, numbers, n * sizeof(T));
  return word;
}

}  // namespace bei
