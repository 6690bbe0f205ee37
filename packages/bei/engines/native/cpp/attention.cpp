#include "attention.h"

#include <cmath>

namespace bei {
namespace {

// The row of a panel of this column: how wide the panel is, and where its words begin.
struct Panel {
  int width;
  size_t words;
};

Panel panel_of(int column, int columns, int words) {
  const int start = column / kPanel * kPanel;
  return {std::min(kPanel, columns - start), static_cast<size_t>(start) * words};
}

// Keys as the columns of a packed matrix: [keys / kPanel][words of a head][kPanel].
template <class T>
T* pack_keys(const Head<T>& h, Buffer& buffer) {
  constexpr int per = kPerWord<T>;
  const int words = round_up(h.head_size, per) / per, columns = round_up(h.keys, kLanes);
  T* packed = buffer.get<T>(static_cast<size_t>(columns) * words * per);
  for (int key = 0; key < columns; key++) {
    const Panel panel = panel_of(key, columns, words);
    T* to = packed + (panel.words + key % kPanel) * per;
    const T* from = h.qkv.row(std::min(key, h.keys - 1)) + h.hidden + h.head * h.head_size;
    for (int w = 0; w < words; w++, to += panel.width * per)
      for (int i = 0; i < per; i++) to[i] = w * per + i < h.head_size ? from[w * per + i] : T{};
  }
  return packed;
}

// Values as its rows: [head_size / kPanel][words of keys][kPanel].
template <class T>
T* pack_values(const Head<T>& h, Buffer& buffer) {
  constexpr int per = kPerWord<T>;
  const int words = round_up(h.keys, per) / per, columns = round_up(h.head_size, kLanes);
  T* packed = buffer.get<T>(static_cast<size_t>(columns) * words * per);
  for (int key = 0; key < words * per; key++) {
    const T* from = h.qkv.row(std::min(key, h.keys - 1)) + 2 * h.hidden + h.head * h.head_size;
    for (int start = 0; start < columns; start += kPanel) {
      const Panel panel = panel_of(start, columns, words);
      T* to = packed + (panel.words + static_cast<size_t>(key / per) * panel.width) * per + key % per;
      const int filled = key < h.keys ? std::min(panel.width, h.head_size - start) : 0;
      for (int d = 0; d < filled; d++) to[d * per] = from[start + d];
      for (int d = filled; d < panel.width; d++) to[d * per] = T{};
    }
  }
  return packed;
}

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
    const F p = select_first(lanes, exp2(fma(load(scores + i), splat(log2_e), from)), zero());
    sums = sums + p;
    store(probabilities + i, p);
  });
  return sum(sums);
}

}  // namespace

template <class T>
void attention(const Head<T>& h, int first, int last, Scratch& scratch) {
  const T *keys = pack_keys(h, scratch.keys), *values = pack_values(h, scratch.values);
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
      multiply<T>(queries, h.qkv.stride * sizeof(T), rows, keys + panel.words * kPerWord<T>, panel.width / kLanes,
                  key_words, scores + key, columns);
    }
    for (int i = 0; i < rows; i++) {
      const float* bias = h.bias ? h.bias - (row + i) : nullptr;
      sums[i] = softmax(scores + i * columns, h.keys, scale, bias, probabilities + i * columns);
    }
    for (int start = 0; start < size; start += kPanel) {
      const Panel panel = panel_of(start, size, value_words);
      multiply<T>(probabilities, columns * sizeof(T), rows, values + panel.words * kPerWord<T>, panel.width / kLanes,
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
