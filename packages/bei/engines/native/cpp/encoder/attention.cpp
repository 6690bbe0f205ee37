#include "encoder/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "encoder/activation.h"
#include "kernel/linear.h"

namespace bei {
namespace {

// The panel of a column: its width in columns, and its offset in words.
struct Panel {
  int width;
  size_t words;
};

template <class K>
Panel panel_of(int column, int columns, int words) {
  const int start = column / K::kPanel * K::kPanel;
  return {std::min(K::kPanel, columns - start), static_cast<size_t>(start) * words};
}

// Keys [first, last) as the columns of a packed matrix: [keys / kPanel][words of a head][kPanel]. Columns beyond the last
// key repeat it.
template <class K, class T>
const typename K::Word* pack_keys(const KeyValueGroup<T>& group, int first, int last, Buffer& buffer) {
  using Word = typename K::Word;
  constexpr int per = K::kGroup;
  const int words = words_of<K>(group.head_size), columns = round_up(last - first, kLanes);
  Word* packed = buffer.get<Word>(static_cast<size_t>(columns) * words);
  for (int start = 0; start < columns; start += kLanes) {
    const Panel panel = panel_of<K>(start, columns, words);
    Word* to = packed + panel.words + start % K::kPanel;
    const T* from[kLanes];
    for (int i = 0; i < kLanes; i++) from[i] = group.key(std::min(first + start + i, last - 1));
    int filled = 0;
    for (; filled + per <= group.head_size; filled += per, to += panel.width)
      for (int i = 0; i < kLanes; i++) to[i] = word_of<Word>(from[i] + filled, per);
    for (; filled < words * per; filled += per, to += panel.width)
      for (int i = 0; i < kLanes; i++) to[i] = word_of<Word>(from[i] + filled, std::max(0, group.head_size - filled));
  }
  return packed;
}

// One word of each column, from the rows of values that share the word.
template <class K, class T>
void pack_words(const T* const* rows, int n, typename K::Word* to) {
  using Word = typename K::Word;
  if constexpr (std::is_same_v<T, bf16>) {
    for (int d = 0; d < n; d++) {
      to[d] = rows[0][d].bits;
      for (int i = 1; i < K::kGroup; i++) to[d] |= static_cast<Word>(rows[i][d].bits) << 16 * i;
    }
  } else {
    float* words = reinterpret_cast<float*>(to);
    for_vectors(n, [&](int d, int lanes) { store_lanes(words + d, load_lanes(rows[0] + d, lanes), lanes); });
  }
}

// Values [first, last) as its rows: [head_size / kPanel][words of keys][kPanel]. Rows beyond the last key are zero.
template <class K, class T>
const typename K::Word* pack_values(const KeyValueGroup<T>& group, int first, int last, Buffer& buffer) {
  using Word = typename K::Word;
  constexpr int per = K::kGroup;
  const int words = words_of<K>(last - first), columns = round_up(group.head_size, kLanes);
  Word* packed = buffer.get<Word>(static_cast<size_t>(columns) * words);
  const std::vector<T> none(group.head_size);
  for (int w = 0; w < words; w++) {
    const T* rows[per];
    for (int i = 0; i < per; i++) {
      const int key = first + w * per + i;
      rows[i] = key < last ? group.value(key) : none.data();
    }
    for (int start = 0; start < columns; start += K::kPanel) {
      const Panel panel = panel_of<K>(start, columns, words);
      Word* to = packed + panel.words + static_cast<size_t>(w) * panel.width;
      const int filled = std::min(panel.width, group.head_size - start);
      pack_words<K>(rows, filled, to);
      std::fill(to + filled, to + panel.width, 0);
      for (const T*& row : rows) row += K::kPanel;
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
template <class K>
struct Packed {
  const typename K::Word *keys, *values;
  int first, last, stride;
  float* scores;
  typename K::Number* probabilities;
};

// The context of one head and of `query_count` queries from `row` on. Scores are computed for whole panels of keys, from
// the first key that any of these queries sees to the last. The probability of a key that a query does not see is zero.
template <class K, class T>
void attend(const KeyValueGroup<T>& group, int head, int row, int query_count, const Packed<K>& t, Scratch& scratch) {
  constexpr int per = K::kGroup;
  const int keys = t.last - t.first, columns = round_up(keys, kLanes), key_words = words_of<K>(group.head_size);
  const int start = (group.begin(row) - t.first) / K::kPanel * K::kPanel;
  const int stop = group.end(row + query_count - 1) - t.first, filled = round_up(stop, K::kWordMultiple);
  const MatrixView<const T> queries = arranged<K>(group.queries.row(row - group.prefix) + head * group.head_size,
                                                  group.queries.stride, query_count, group.head_size, scratch.arranged);
  for (int key = start; key < stop; key += K::kPanel) {
    const Panel panel = panel_of<K>(key, columns, key_words);
    K::multiply(scratch.session, queries.data, queries.stride, query_count, t.keys + panel.words, panel.width,
                key_words, t.scores + key, t.stride);
  }
  float sums[K::kRows];
  for (int i = 0; i < query_count; i++) {
    const int begin = group.begin(row + i) - t.first, end = group.end(row + i) - t.first;
    const float* bias = group.bias ? group.bias + head * group.bias_stride - (row + i) + t.first + begin : nullptr;
    T* probabilities = t.probabilities + static_cast<size_t>(i) * t.stride;
    float* scores = t.scores + static_cast<size_t>(i) * t.stride;
    const float* sink = group.sinks ? group.sinks + head : nullptr;
    sums[i] = softmax(scores + begin, end - begin, group.scale_of(row + i), group.soft_cap, bias, sink,
                      probabilities + begin);
    std::fill(probabilities + start, probabilities + begin, T{});
    std::fill(probabilities + end, probabilities + filled, T{});
  }
  alignas(64) float products[K::kRows * K::kPanel];
  const int value_words = words_of<K>(keys), words = filled / per - start / per;
  const int size = round_up(group.head_size, kLanes);
  const T* from = t.probabilities + start;
  const MatrixView<const T> rows = arranged<K>(from, t.stride, query_count, words * per, scratch.arranged);
  for (int column = 0; column < size; column += K::kPanel) {
    const Panel panel = panel_of<K>(column, size, value_words);
    const auto* values = t.values + panel.words + static_cast<size_t>(start / per) * panel.width;
    K::multiply(scratch.session, rows.data, rows.stride, query_count, values, panel.width, words, products,
                panel.width);
    for (int i = 0; i < query_count; i++) {
      T* to = group.context.row(row - group.prefix + i) + head * group.head_size + column;
      for_vectors(std::min(panel.width, group.head_size - column), [&](int d, int lanes) {
        store_lanes(to + d, load(products + i * panel.width + d) * splat(1 / sums[i]), lanes);
      });
    }
  }
}

template <class K, class T>
void attention_by(const KeyValueGroup<T>& group, int first, int last, Scratch& scratch) {
  Packed<K> packed;
  packed.first = group.begin(first), packed.last = group.end(last - 1);
  packed.keys = pack_keys<K>(group, packed.first, packed.last, scratch.keys);
  packed.values = pack_values<K>(group, packed.first, packed.last, scratch.values);
  // a row that begins late ends as late
  packed.stride = round_up(packed.last - packed.first + kLanes, std::max(kLanes, K::kWordMultiple));
  packed.scores = scratch.scores.get<float>(static_cast<size_t>(K::kRows) * packed.stride);
  packed.probabilities = scratch.probabilities.get<T>(static_cast<size_t>(K::kRows) * packed.stride);
  for (int head = 0; head < group.heads; head++)
    for (int row = first; row < last; row += K::kRows)
      attend(group, head, row, std::min(K::kRows, last - row), packed, scratch);
}

}  // namespace

template <class T>
void attention(const KeyValueGroup<T>& group, int first, int last, Scratch& scratch) {
  // Queries are read where they are: what follows a head must not be read as the rest of its last word.
  using K = Kernel<T>;
  if (group.head_size % K::kWordMultiple == 0)
    attention_by<K>(group, first, last, scratch);
  else
    attention_by<Dot<T>>(group, first, last, scratch);
}

template void attention<float>(const KeyValueGroup<float>&, int, int, Scratch&);
#if BEI_MULTIPLIES_BF16
template void attention<bf16>(const KeyValueGroup<bf16>&, int, int, Scratch&);
#endif

}  // namespace bei
