// Packs matrices: rows of numbers as a checkpoint stores them become panels of any level's layout, or a table of rows. Plain
// C++, which rounds alike at every level.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "abi.h"

namespace {

// bf16 is the upper half of a float, fp16 is IEEE 754's binary16; both are known by their bits.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

constexpr uint32_t kMagnitude = 0x7fffffff, kInfinity = 0x7f800000;
constexpr float kLeastPeak = 1e-12f;                        // a column of zeros is zeros at any scale
constexpr float kLeastInput = 1e-3f, kLeastWeight = 1e-5f;  // of which a ratio is taken

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline float to_float(float x) { return x; }
inline float to_float(Bf16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

// The exponent's bias is 112 smaller than a float's, which a product makes up for; also where the exponent is zero.
inline float to_float(Fp16 x) {
  const uint32_t magnitude = (x.bits & 0x7fffu) << 13, sign = (x.bits & 0x8000u) << 16;
  const uint32_t special = magnitude >= 0x0f800000 ? kInfinity : 0;
  return float_of(bits_of(float_of(magnitude) * 0x1p112f) | special | sign);
}

inline void from_float(float x, float& to) { to = x; }

// To nearest, ties to even.
inline void from_float(float x, Bf16& to) {
  const uint32_t bits = bits_of(x), rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  to.bits = static_cast<uint16_t>((bits & kMagnitude) > kInfinity ? bits >> 16 | 0x40 : rounded);
}

inline void from_float(float x, int8_t& to) { to = static_cast<int8_t>(static_cast<int32_t>(x)); }

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
