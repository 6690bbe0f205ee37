// Packs matrices: rows of numbers as a checkpoint stores them become panels of any level's layout, or a table of rows. Plain
// C++, which rounds alike at every level.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "abi.h"
#include "kernel/int4_rounding.h"
#include "kernel/numbers.h"

namespace {

using namespace bei::packing;

constexpr float kLeastPeak = 1e-12f;                        // a column of zeros is zeros at any scale
constexpr float kLeastInput = 1e-3f, kLeastWeight = 1e-5f;  // of which a ratio is taken

template <class S, class T>
void convert(const S* from, int n, T* to) {
  for (int i = 0; i < n; i++) from_float(to_float(from[i]), to[i]);
}

void convert(const Bf16* from, int n, Bf16* to) { std::memcpy(to, from, n * sizeof *to); }
void convert(const float* from, int n, float* to) { std::memcpy(to, from, n * sizeof *to); }

// Sizes are compared as the bits of floats, which are in the same order: a compiler makes vectors of that.
float peak_of(const float* x, int n) {
  uint32_t most = 0;
  for (int i = 0; i < n; i++) most = std::max(most, bits_of(x[i]) & kMagnitude);
  return float_of(most);
}

// The largest sum of two neighbors of one sign.
float largest_pair(const float* x, int n) {
  uint32_t most = 0;
  for (int i = 0; i + 1 < n; i += 2) {
    const float above = std::max(x[i], 0.f) + std::max(x[i + 1], 0.f);
    const float below = std::max(-x[i], 0.f) + std::max(-x[i + 1], 0.f);
    most = std::max({most, bits_of(above) & kMagnitude, bits_of(below) & kMagnitude});  // a zero may have a sign
  }
  return float_of(most);
}

// The rotation of encoder/hadamard.h, with the factor of a product's two.
void hadamard(float* x, int n, int size) {
  for (int apart = n / size; apart < n; apart *= 2)
    for (int first = 0; first < n; first += 2 * apart)
      for (int i = first; i < first + apart; i++) {
        const float a = x[i], b = x[i + apart];
        x[i] = a + b, x[i + apart] = a - b;
      }
  for (int i = 0; i < n; i++) x[i] *= 1.f / size;
}

// [width][words] → [words][width], a few words of each column at a time.
template <class Word>
void transpose(const void* columns, int width, int words, void* panel) {
  constexpr int kAtOnce = 64 / sizeof(Word);
  const Word* const from = static_cast<const Word*>(columns);
  Word* const to = static_cast<Word*>(panel);
  for (int first = 0; first < words; first += kAtOnce) {
    const int end = std::min(words, first + kAtOnce);
    for (int j = 0; j < width; j++)
      for (int w = first; w < end; w++)
        to[static_cast<size_t>(w) * width + j] = from[static_cast<size_t>(j) * words + w];
  }
}

template <class S>
class Packing {
 public:
  Packing(const BeiLayout& layout, const BeiMatrix& matrix)
      : layout_(layout),
        matrix_(matrix),
        filled_((matrix.inputs + layout.word_multiple - 1) / layout.word_multiple * layout.word_multiple) {}

  template <class T>
  void run() {
    if (matrix_.input_peaks) smooth();
    std::vector<T> columns(static_cast<size_t>(layout_.panel) * filled_);
    char* to = static_cast<char*>(matrix_.panels);
    for (int first = 0; first < matrix_.columns; first += layout_.panel) {
      const int width = std::min(layout_.panel, matrix_.columns - first);
      for (int j = 0; j < width; j++) convert_column(first + j, columns.data() + static_cast<size_t>(j) * filled_);
      const size_t size = static_cast<size_t>(width) * filled_ * sizeof(T);
      if (width == 1)
        std::memcpy(to, columns.data(), size);
      else if (layout_.row_group * sizeof(T) == sizeof(uint64_t))
        transpose<uint64_t>(columns.data(), width, filled_ / layout_.row_group, to);
      else
        transpose<uint32_t>(columns.data(), width, filled_ / layout_.row_group, to);
      to += size;
    }
  }

  // The layout of kernel/int4.h.
  void run_int4() {
    std::vector<float> columns(static_cast<size_t>(layout_.panel) * filled_);
    uint32_t* to = static_cast<uint32_t*>(matrix_.panels);
    for (int first = 0; first < matrix_.columns; first += layout_.panel) {
      const int width = std::min(layout_.panel, matrix_.columns - first);
      for (int j = 0; j < width; j++) convert_column(first + j, columns.data() + static_cast<size_t>(j) * filled_);
      for (int input = 0; input < filled_; input += bei::kInt4Group) to = write_group(columns.data(), input, width, to);
    }
  }

 private:
  const S* row(int column) const { return static_cast<const S*>(matrix_.rows[column]); }

  template <class T>
  void convert_column(int column, T* to) {
    std::fill_n(to, filled_, T{});
    if (!row(column)) return;
    if (strengths_.empty()) return convert(row(column), matrix_.inputs, to);
    convert(exact(column), matrix_.inputs, to);
  }

  void convert_column(int column, int8_t* to) {
    const float* const x = exact(column);
    float scale = std::max(peak_of(x, filled_), kLeastPeak) / layout_.largest;
    if (layout_.largest_pair > 0) scale = std::max(scale, largest_pair(x, filled_) / layout_.largest_pair);
    int32_t sum = 0;
    for (int i = 0; i < filled_; i++) {
      const float rounded = std::rint(x[i] / scale);
      from_float(rounded, to[i]);
      sum += static_cast<int32_t>(rounded);
    }
    matrix_.scales[column] = scale;
    if (matrix_.sums) matrix_.sums[column] = static_cast<float>(sum);
  }

  // The group that begins at an input, of each column, which are `filled_` numbers apart. Returns the end of what it
  // writes.
  uint32_t* write_group(const float* columns, int input, int width, uint32_t* to) const {
    const int size = bei::kInt4Group, together = layout_.row_group, lanes = layout_.lanes;
    const int halves = std::min(together, 2), vectors = 8 / halves;  // numbers of a word, and vectors of their bits
    uint32_t* const nibbles = to + width;
    uint32_t* const end = nibbles + static_cast<size_t>(width) * size / 8;
    std::fill(nibbles, end, 0);
    for (int j = 0; j < width; j++) {
      const Rounded found = round_to_codes(group_of(columns + static_cast<size_t>(j) * filled_, input));
      to[j] = pair_of(found);
      for (int i = 0; i < size; i++) {
        const int at = (i / together * width + j) * together + i % together, word = at / halves;
        uint32_t& bits = nibbles[word / lanes / vectors * lanes + word % lanes];
        bits |= static_cast<uint32_t>(found.codes[i]) << (4 * (word / lanes % vectors) + 16 * (at % halves));
      }
    }
    return end;
  }

  // An error counts by the square of the input that it is multiplied with.
  Group group_of(const float* column, int input) const {
    const int count = std::min(bei::kInt4Group, matrix_.inputs - input);
    Group group{};
    std::copy_n(column + input, count, group.numbers);
    std::fill(group.numbers + count, group.numbers + bei::kInt4Group, column[input]);
    for (int i = 0; i < count; i++) {
      const float peak = matrix_.input_peaks ? std::max(matrix_.input_peaks[input + i], kLeastInput) : 1;
      group.counts[i] = peak * peak;
    }
    return group;
  }

  // The numbers of a column, smoothed, rotated, and filled up with zeros.
  const float* exact(int column) {
    floats_.assign(filled_, 0);
    float* const x = floats_.data();
    if (row(column)) convert(row(column), matrix_.inputs, x);
    if (!strengths_.empty())
      for (int i = 0; i < matrix_.inputs; i++) x[i] *= strengths_[i];
    if (matrix_.hadamard > 1) hadamard(x, matrix_.inputs, matrix_.hadamard);
    return x;
  }

  // Inputs with high peaks are scaled down and their weights up, so that the others keep more of a byte's range
  // (SmoothQuant, arXiv:2211.10438, eq. 4, with alpha = 1/2).
  void smooth() {
    const int n = matrix_.inputs;
    std::vector<uint32_t> most(n);
    std::vector<float> x(n);
    for (int column = 0; column < matrix_.columns; column++) {
      if (!row(column)) continue;
      convert(row(column), n, x.data());
      for (int i = 0; i < n; i++) most[i] = std::max(most[i], bits_of(x[i]) & kMagnitude);
    }
    strengths_.resize(n);
    double sum = 0;
    for (int i = 0; i < n; i++) {
      const float peak = std::max(matrix_.input_peaks[i], kLeastInput),
                  weight = std::max(float_of(most[i]), kLeastWeight);
      sum += strengths_[i] = std::sqrt(peak / weight);
    }
    for (int i = 0; i < n; i++) {
      strengths_[i] = static_cast<float>(strengths_[i] * n / sum);
      matrix_.input_scales[i] = 1 / strengths_[i];
    }
  }

  const BeiLayout& layout_;
  const BeiMatrix& matrix_;
  const int filled_;  // numbers of a column
  std::vector<float> floats_, strengths_;
};

template <class S>
void pack(const BeiLayout& layout, const BeiMatrix& matrix) {
  Packing<S> packing(layout, matrix);
  switch (matrix.precision) {
    case BEI_BF16:
      return packing.template run<Bf16>();
    case BEI_INT4:
      return packing.run_int4();
    case BEI_INT8:
      return packing.template run<int8_t>();
    default:
      return packing.template run<float>();
  }
}

}  // namespace

extern "C" int32_t bei_pack(const BeiLayout* layout, const BeiMatrix* matrix) noexcept {
  try {
    switch (matrix->stored) {
      case BEI_STORED_BF16:
        return pack<Bf16>(*layout, *matrix), BEI_OK;
      case BEI_STORED_FP16:
        return pack<Fp16>(*layout, *matrix), BEI_OK;
      default:
        return pack<float>(*layout, *matrix), BEI_OK;
    }
  } catch (const std::bad_alloc&) {
    return BEI_OUT_OF_MEMORY;
  }
}
