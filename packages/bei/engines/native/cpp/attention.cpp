#include "attention.h"

#include <cmath>

namespace bei {
namespace {

// The panel that a column is in: how wide it is, and where it begins, in words.
struct Panel {
  int width;
  size_t words;
};

Panel panel_of(int column, int columns, int words) {
  const int start = column / kPanel * kPanel;
  return {std::min(kPanel, columns - start), static_cast<size_t>(start) * words};
}

uint32_t word_at(const void* p) {
  uint32_t word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Keys as the columns of a packed matrix: [keys / kPanel][words of a head][kPanel]. Columns beyond the last key repeat it.
template <class T>
const uint32_t* pack_keys(const Head<T>& h, Buffer& buffer) {
  constexpr int per = kPerWord<T>;
  const int words = round_up(h.head_size, per) / per, columns = round_up(h.keys, kLanes);
  uint32_t* packed = buffer.get<uint32_t>(static_cast<size_t>(columns) * words);
  for (int start = 0; start < columns; start += kLanes) {
    const Panel panel = panel_of(start, columns, words);
    uint32_t* to = packed + panel.words + start % kPanel;
    const T* from[kLanes];
    for (int i = 0; i < kLanes; i++)
      from[i] = h.qkv.row(std::min(start + i, h.keys - 1)) + h.hidden + h.head * h.head_size;
    for (int w = 0; w < h.head_size / per; w++, to += panel.width)
      for (int i = 0; i < kLanes; i++) to[i] = word_at(from[i] + w * per);
    if (h.head_size % per)  // half a word, of bf16
      for (int i = 0; i < kLanes; i++) to[i] = word_at(from[i] + h.head_size - 1) & 0xffff;
  }
  return packed;
}

// One word of each column, from the rows of values that share it.
void pack_words(const float* const* rows, int n, uint32_t* to) { std::memcpy(to, rows[0], n * sizeof(float)); }

void pack_words(const bf16* const* rows, int n, uint32_t* to) {
  for (int d = 0; d < n; d++) to[d] = rows[0][d].bits | static_cast<uint32_t>(rows[1][d].bits) << 16;
}

// Values as its rows: [head_size / kPanel][words of keys][kPanel]. Rows beyond the last key are zero.
template <class T>
const uint32_t* pack_values(const Head<T>& h, Buffer& buffer) {
  constexpr int per = kPerWord<T>;
  const int words = round_up(h.keys, per) / per, columns = round_up(h.head_size, kLanes);
  uint32_t* packed = buffer.get<uint32_t>(static_cast<size_t>(columns) * words);
  const std::vector<T> none(h.head_size);
  for (int w = 0; w < words; w++) {
    const T* rows[per];
    for (int i = 0; i < per; i++) {
      const int key = w * per + i;
      rows[i] = key < h.keys ? h.qkv.row(key) + 2 * h.hidden + h.head * h.head_size : none.data();
    }
    for (int start = 0; start < columns; start += kPanel) {
      const Panel panel = panel_of(start, columns, words);
      uint32_t* to = packed + panel.words + static_cast<size_t>(w) * panel.width;
      const int filled = std::min(panel.width, h.head_size - start);
      pack_words(rows, filled, to);
      std::fill(to + filled, to + panel.width, 0);
      for (const T*& row : rows) row += kPanel;
    }
  }
  return packed;
}

F exp2_for(F x, float) { return exp2(x); }
F exp2_for(F x, bf16) { return quick_exp2(x); }

// One row of scores to probabilities short of their sum, which is returned. `bias` is the one of the first key.
template <class T>
float softmax(float* scores, int keys, float scale, const float* bias, T* probabilities) {
  constexpr float log2_e = 1.44269504f;
  F most = splat(-INFINITY);
  for_vectors(keys, [&](int i, int lanes) {
    F score = load(scores + i) * splat(scale);
    if (bias) score = score + load_lanes(bias + i, lanes);
    store(scores + i, score);
    most = max(most, select_first(lanes, score, most));
  });
  const F from = splat(-largest(most) * log2_e);
  F sums = zero();
  for_vectors(keys, [&](int i, int lanes) {
    const F p = select_first(lanes, exp2_for(fma(load(scores + i), splat(log2_e), from), T{}), zero());
    sums = sums + p;
    store(probabilities + i, p);
  });
  return sum(sums);
}

}  // namespace

template <class T>
void attention(const Head<T>& h, int first, int last, Scratch& scratch) {
  const uint32_t *keys = pack_keys(h, scratch.keys), *values = pack_values(h, scratch.values);
  const int columns = round_up(h.keys, kLanes), size = round_up(h.head_size, kLanes);
  const int key_words = round_up(h.head_size, kPerWord<T>) / kPerWord<T>;
  const int value_words = round_up(h.keys, kPerWord<T>) / kPerWord<T>;
  float* scores = scratch.scores.get<float>(static_cast<size_t>(kRows) * columns);
  T* probabilities = scratch.probabilities.get<T>(static_cast<size_t>(kRows) * columns);
  const float scale = 1 / std::sqrt(static_cast<float>(h.head_size));
  float sums[kRows];
  alignas(64) float products[kRows * kPanel];

  for (int row = first; row < last; row += kRows) {
    const int rows = std::min(kRows, last - row);
    const T* queries = h.qkv.row(row) + h.head * h.head_size;
    for (int key = 0; key < columns; key += kPanel) {
      const Panel panel = panel_of(key, columns, key_words);
      multiply<T>(queries, h.qkv.stride * sizeof(T), rows, keys + panel.words, panel.width / kLanes,
                  key_words, scores + key, columns);
    }
    for (int i = 0; i < rows; i++) {
      const float* bias = h.bias ? h.bias - (row + i) : nullptr;
      sums[i] = softmax(scores + i * columns, h.keys, scale, bias, probabilities + i * columns);
    }
    for (int start = 0; start < size; start += kPanel) {
      const Panel panel = panel_of(start, size, value_words);
      multiply<T>(probabilities, columns * sizeof(T), rows, values + panel.words, panel.width / kLanes,
                  value_words, products, panel.width);
      for (int i = 0; i < rows; i++) {
        T* to = h.context.row(row + i) + h.head * h.head_size + start;
        for_vectors(std::min(panel.width, h.head_size - start), [&](int d, int lanes) {
          store_lanes(to + d, load(products + i * panel.width + d) * splat(1 / sums[i]), lanes);
        });
      }
    }
  }
}

template void attention<float>(const Head<float>&, int, int, Scratch&);
template void attention<bf16>(const Head<bf16>&, int, int, Scratch&);

}  // namespace bei
