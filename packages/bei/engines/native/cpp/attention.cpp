#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "activation.h"
#include "tile.h"

namespace bei {
namespace {

// The panel of a column: its width in columns, and its offset in words.
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

// Keys [first, last) as the columns of a packed matrix: [keys / kPanel][words of a head][kPanel]. Columns beyond the last
// key repeat it.
template <class T>
const uint32_t* pack_keys(const KeyValueGroup<T>& group, int first, int last, Buffer& buffer) {
  constexpr int per = kPerWord<T>;
  const int words = round_up(group.head_size, per) / per, columns = round_up(last - first, kLanes);
  uint32_t* packed = buffer.get<uint32_t>(static_cast<size_t>(columns) * words);
  for (int start = 0; start < columns; start += kLanes) {
    const Panel panel = panel_of(start, columns, words);
    uint32_t* to = packed + panel.words + start % kPanel;
    const T* from[kLanes];
    for (int i = 0; i < kLanes; i++) from[i] = group.key(std::min(first + start + i, last - 1));
    for (int w = 0; w < group.head_size / per; w++, to += panel.width)
      for (int i = 0; i < kLanes; i++) to[i] = word_at(from[i] + w * per);
    if (group.head_size % per)  // half a word, of bf16
      for (int i = 0; i < kLanes; i++) to[i] = word_at(from[i] + group.head_size - 1) & 0xffff;
  }
  return packed;
}

// One word of each column, from the rows of values that share the word.
template <class T>
void pack_words(const T* const* rows, int n, uint32_t* to) {
  if constexpr (std::is_same_v<T, bf16>) {
    for (int d = 0; d < n; d++) to[d] = rows[0][d].bits | static_cast<uint32_t>(rows[1][d].bits) << 16;
  } else {
    float* words = reinterpret_cast<float*>(to);
    for_vectors(n, [&](int d, int lanes) { store_lanes(words + d, load_lanes(rows[0] + d, lanes), lanes); });
  }
}

// Values [first, last) as its rows: [head_size / kPanel][words of keys][kPanel]. Rows beyond the last key are zero.
template <class T>
const uint32_t* pack_values(const KeyValueGroup<T>& group, int first, int last, Buffer& buffer) {
  constexpr int per = kPerWord<T>;
  const int words = round_up(last - first, per) / per, columns = round_up(group.head_size, kLanes);
  uint32_t* packed = buffer.get<uint32_t>(static_cast<size_t>(columns) * words);
  const std::vector<T> none(group.head_size);
  for (int w = 0; w < words; w++) {
    const T* rows[per];
    for (int i = 0; i < per; i++) {
      const int key = first + w * per + i;
      rows[i] = key < last ? group.value(key) : none.data();
    }
    for (int start = 0; start < columns; start += kPanel) {
      const Panel panel = panel_of(start, columns, words);
      uint32_t* to = packed + panel.words + static_cast<size_t>(w) * panel.width;
      const int filled = std::min(panel.width, group.head_size - start);
      pack_words(rows, filled, to);
      std::fill(to + filled, to + panel.width, 0);
      for (const T*& row : rows) row += kPanel;
    }
  }
  return packed;
}

// 2^x as exactly as T can hold it.
template <class T>
F exp2_for(F x) {
  return std::is_same_v<T, bf16> ? quick_exp2(x) : exp2(x);
}

// Unnormalized probabilities of a row of scores; returns their sum. `scale` is positive; `bias` points to the bias of the
// first key; `sink`, null for none, to a number that is in the sum alone.
template <class T>
float softmax(float* scores, int keys, float scale, float soft_cap, const float* bias, const float* sink,
              T* probabilities) {
  if (soft_cap > 0 || bias) {
    for_vectors(keys, [&](int i, int lanes) {
      F score = load(scores + i) * splat(scale);
      if (soft_cap > 0) score = splat(soft_cap) * tanh(score * splat(1 / soft_cap));
      if (bias) score = score + load_lanes(bias + i, lanes);
      store(scores + i, score);
    });
    scale = 1;
  }
  F most = splat(-INFINITY);
  for_vectors(keys, [&](int i, int lanes) { most = max(most, select_first(lanes, load(scores + i), most)); });
  const float peak = sink ? std::max(largest(most), *sink / scale) : largest(most);
  const F by = splat(scale * 1.44269504f), from = splat(-peak) * by;  // e^x is 2^(x log2(e))
  F sums = zero();
  for_vectors(keys, [&](int i, int lanes) {
    const F p = select_first(lanes, exp2_for<T>(fma(load(scores + i), by, from)), zero());
    sums = sums + p;
    store(probabilities + i, p);
  });
  return sum(sums) + (sink ? std::exp(*sink - peak * scale) : 0);
}

// Packed keys and values of the tokens [first, last), and room for the scores of a few queries, `stride` numbers apart.
template <class T>
struct Packed {
  const uint32_t *keys, *values;
  int first, last, stride;
  float* scores;
  T* probabilities;
};

// The context of one head and of `query_count` queries from `row` on. Scores are computed for whole panels of keys, from
// the first key that any of these queries sees to the last. The probability of a key that a query does not see is zero.
template <class T>
void attend(const KeyValueGroup<T>& group, int head, int row, int query_count, const Packed<T>& t) {
  constexpr int per = kPerWord<T>;
  const int keys = t.last - t.first, columns = round_up(keys, kLanes), key_words = round_up(group.head_size, per) / per;
  const int start = (group.begin(row) - t.first) / kPanel * kPanel, stop = group.end(row + query_count - 1) - t.first;
  const T* queries = group.queries.row(row - group.prefix) + head * group.head_size;
  for (int key = start; key < stop; key += kPanel) {
    const Panel panel = panel_of(key, columns, key_words);
    multiply<T>(queries, group.queries.stride * sizeof(T), query_count, t.keys + panel.words, panel.width / kLanes,
                key_words, t.scores + key, t.stride);
  }
  float sums[kTileRows];
  for (int i = 0; i < query_count; i++) {
    const int begin = group.begin(row + i) - t.first, end = group.end(row + i) - t.first;
    const float* bias = group.bias ? group.bias + head * group.bias_stride - (row + i) + t.first + begin : nullptr;
    T* probabilities = t.probabilities + static_cast<size_t>(i) * t.stride;
    float* scores = t.scores + static_cast<size_t>(i) * t.stride;
    const float* sink = group.sinks ? group.sinks + head : nullptr;
    sums[i] = softmax(scores + begin, end - begin, group.scale_of(row + i), group.soft_cap, bias, sink,
                      probabilities + begin);
    std::fill(probabilities + start, probabilities + begin, T{});
    std::fill(probabilities + end, probabilities + round_up(stop, per), T{});
  }
  alignas(64) float products[kTileRows * kPanel];
  const int value_words = round_up(keys, per) / per, words = round_up(stop, per) / per - start / per;
  const int size = round_up(group.head_size, kLanes);
  for (int column = 0; column < size; column += kPanel) {
    const Panel panel = panel_of(column, size, value_words);
    const uint32_t* values = t.values + panel.words + static_cast<size_t>(start / per) * panel.width;
    multiply<T>(t.probabilities + start, t.stride * sizeof(T), query_count, values, panel.width / kLanes, words,
                products, panel.width);
    for (int i = 0; i < query_count; i++) {
      T* to = group.context.row(row - group.prefix + i) + head * group.head_size + column;
      for_vectors(std::min(panel.width, group.head_size - column), [&](int d, int lanes) {
        store_lanes(to + d, load(products + i * panel.width + d) * splat(1 / sums[i]), lanes);
      });
    }
  }
}

}  // namespace

template <class T>
void attention(const KeyValueGroup<T>& group, int first, int last, Scratch& scratch) {
  Packed<T> packed;
  packed.first = group.begin(first), packed.last = group.end(last - 1);
  packed.keys = pack_keys(group, packed.first, packed.last, scratch.keys);
  packed.values = pack_values(group, packed.first, packed.last, scratch.values);
  packed.stride = round_up(packed.last - packed.first, kLanes) + kLanes;  // a row that begins late ends as late
  packed.scores = scratch.scores.get<float>(static_cast<size_t>(kTileRows) * packed.stride);
  packed.probabilities = scratch.probabilities.get<T>(static_cast<size_t>(kTileRows) * packed.stride);
  for (int head = 0; head < group.heads; head++)
    for (int row = first; row < last; row += kTileRows)
      attend(group, head, row, std::min(kTileRows, last - row), packed);
}

template void attention<float>(const KeyValueGroup<float>&, int, int, Scratch&);
#ifdef __AVX512BF16__
template void attention<bf16>(const KeyValueGroup<bf16>&, int, int, Scratch&);
#endif

}  // namespace bei
