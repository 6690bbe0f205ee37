// The rounding of a group of numbers to four bits (kernel/int4.h), in plain C++.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "kernel/numbers.h"

namespace bei::packing {

constexpr float kLargestCode = 15, kLeastScale = 1e-12f;  // equal numbers are their offset at any scale
constexpr int kRanges = 8, kFits = 4;                     // that are tried
constexpr float kRangeStep = 0.05f;

inline float as_bf16(float x) {
  Bf16 rounded;
  from_float(x, rounded);
  return to_float(rounded);
}

// A group's numbers, and what a square of each one's error counts. Those behind its own count nothing.
struct Group {
  float numbers[kInt4Group], counts[kInt4Group];
};

// The numbers as scale * code + offset, and the sum of the squares of what is lost.
struct Rounded {
  float scale, offset, lost;
  int32_t codes[kInt4Group];
};

// Sums are kept in parts, of which a compiler makes vectors.
constexpr int kParts = 16;

inline float sum_of(const float* parts) {
  float sum = 0;
  for (int i = 0; i < kParts; i++) sum += parts[i];
  return sum;
}

inline Rounded rounded(const Group& group, float scale, float offset) {
  Rounded found;
  found.scale = as_bf16(std::max(scale, kLeastScale)), found.offset = as_bf16(offset);
  const float by = 1 / found.scale;
  float lost[kParts] = {};
  for (int first = 0; first < kInt4Group; first += kParts)
    for (int i = 0; i < kParts; i++) {
      const float x = group.numbers[first + i];
      const float code = std::min(std::max(0.f, std::rint((x - found.offset) * by)), kLargestCode);
      const float off = x - (found.scale * code + found.offset);
      lost[i] += off * off * group.counts[first + i], found.codes[first + i] = static_cast<int32_t>(code);
    }
  found.lost = sum_of(lost);
  return found;
}

// The scale and offset that lose least with these codes: a regression line.
inline Rounded fitted(const Group& group, const Rounded& found) {
  float all[kParts] = {}, codes[kParts] = {}, squares[kParts] = {}, values[kParts] = {}, products[kParts] = {};
  for (int first = 0; first < kInt4Group; first += kParts)
    for (int i = 0; i < kParts; i++) {
      const float code = static_cast<float>(found.codes[first + i]), count = group.counts[first + i];
      const float value = group.numbers[first + i] * count;
      all[i] += count, codes[i] += code * count, squares[i] += code * code * count;
      values[i] += value, products[i] += code * value;
    }
  const float n = sum_of(all), of_codes = sum_of(codes), of_values = sum_of(values);
  const float spread = n * sum_of(squares) - of_codes * of_codes;
  if (!(spread > 0)) return found;
  const float scale = (n * sum_of(products) - of_codes * of_values) / spread;
  return rounded(group, scale, (of_values - scale * of_codes) / n);
}

// Ranges narrower than the numbers' own are tried, which round most of them less and cut the largest; then those that fit
// the codes best.
inline Rounded round_to_codes(const Group& group) {
  const auto [least, most] = std::minmax_element(group.numbers, group.numbers + kInt4Group);
  const float middle = (*least + *most) / 2, reach = (*most - *least) / 2;
  Rounded best = rounded(group, 2 * reach / kLargestCode, *least);
  for (int i = 1; i < kRanges; i++) {
    const float part = reach * (1 - kRangeStep * i);
    const Rounded narrower = rounded(group, 2 * part / kLargestCode, middle - part);
    if (narrower.lost < best.lost) best = narrower;
  }
  for (int i = 0; i < kFits; i++) {
    const Rounded fitting = fitted(group, best);
    if (!(fitting.lost < best.lost)) break;
    best = fitting;
  }
  return best;
}

// The scale in the lower half of a word, the offset in the upper one.
inline uint32_t pair_of(const Rounded& found) {
  Bf16 scale, offset;
  from_float(found.scale, scale), from_float(found.offset, offset);
  return scale.bits | static_cast<uint32_t>(offset.bits) << 16;
}

}  // namespace bei::packing
