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

// `count` vectors of `size` numbers as the columns of a packed matrix: [count / kPanel][words of a vector][kPanel]. Columns
// beyond the last vector repeat it.
template <class K, class VectorAt>
void pack_columns(int count, int size, VectorAt vector_at, typename K::Word* packed) {
  using Word = typename K::Word;
  using T = typename K::Number;
  constexpr int per = K::kGroup;
  const int words = words_of<K>(size), columns = round_up(count, kLanes);
  for (int start = 0; start < columns; start += kLanes) {
    const Panel panel = panel_of<K>(start, columns, words);
    Word* to = packed + panel.words + start % K::kPanel;
    const T* from[kLanes];
    for (int i = 0; i < kLanes; i++) from[i] = vector_at(std::min(start + i, count - 1));
    int filled = 0;
    for (; filled + per <= size; filled += per, to += panel.width)
      for (int i = 0; i < kLanes; i++) to[i] = word_of<Word>(from[i] + filled, per);
    for (; filled < words * per; filled += per, to += panel.width)
      for (int i = 0; i < kLanes; i++) to[i] = word_of<Word>(from[i] + filled, std::max(0, size - filled));
  }
}

// Keys [first, last) as such columns.
template <class K, class T>
const typename K::Word* pack_keys(const KeyValueGroup<T>& group, int first, int last, Buffer& buffer) {
  using Word = typename K::Word;
  const int words = words_of<K>(group.head_size), columns = round_up(last - first, kLanes);
  Word* packed = buffer.get<Word>(static_cast<size_t>(columns) * words);
  pack_columns<K>(last - first, group.head_size, [&](int i) { return group.key(first + i); }, packed);
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
// `by_distance` has room for their products with the vectors of `distances` positions. `by_query`: for each key the place of
// its product with the position of the query `block`, which those of the queries after it follow.
template <class K>
struct Packed {
  const typename K::Word *keys, *values;
  int first, last, stride;
  float* scores;
  typename K::Number* probabilities;
  float* by_distance;
  int distances, block;
  const float** by_query;
};

// Queries whose positions are multiplied with the keys at a time: all that two panels have at any place.
template <class K>
constexpr int kPositionBlock = std::max(K::kRows, (2 * K::kPanel - K::kRows) / K::kRows * K::kRows);

// And how many columns the panels have that contain their positions, for a few keys.
template <class K>
constexpr int kPositionColumns = round_up(kPositionBlock<K> + K::kRows + K::kPanel, K::kPanel);

// out[row_count][...] = a times the columns [begin, end), with others of their panels. Returns the place of `begin` in the
// first row. `a` is arranged.
template <class K, class T>
const float* multiply_positions(const KeyValueGroup<T>& group, const PositionVectors& of, int head,
                                const MatrixView<const T>& a, int row_count, int begin, int end, float* out,
                                int out_stride, Session& session) {
  const int words = words_of<K>(group.head_size), columns = round_up(of.columns, kLanes);
  const int from = begin / K::kPanel * K::kPanel;
  const auto* packed = reinterpret_cast<const typename K::Word*>(of.packed + head * of.head_bytes);
  for (int column = from; column < end; column += K::kPanel) {
    const Panel panel = panel_of<K>(column, columns, words);
    K::multiply(session, a.data, a.stride, row_count, packed + panel.words, panel.width, words, out + column - from,
                out_stride);
  }
  return out + begin - from;
}

// The products of a head's keys with the positions of the queries [first, last), at most kPositionBlock.
template <class K, class T>
void position_to_content(const KeyValueGroup<T>& group, int head, int first, int last, Packed<K>& t, Scratch& scratch) {
  constexpr int width = kPositionColumns<K>;
  const PositionVectors& of = group.position_queries;
  float* out = scratch.by_query.get<float>(static_cast<size_t>(round_up(t.last - t.first, K::kRows)) * width);
  t.by_query = scratch.by_query_of.get<const float*>(t.last - t.first);
  t.block = first;
  for (int key = t.first; key < t.last; key += K::kRows) {
    const int count = std::min(K::kRows, t.last - key), zero = of.columns / 2;
    const MatrixView<const T> keys =
        arranged<K>(group.key(key), group.keys.stride, count, group.head_size, scratch.arranged);
    const float* products =
        multiply_positions<K>(group, of, head, keys, count, first - (key + count - 1) + zero, last - key + zero,
                              out + static_cast<size_t>(key - t.first) * width, width, scratch.session);
    for (int i = 0; i < count; i++) t.by_query[key - t.first + i] = products + i * width + count - 1 - i;
  }
}

// scores += the products of positions and contents, for the keys [start, stop) of a few queries.
template <class K, class T>
void add_positions(const KeyValueGroup<T>& group, int head, const MatrixView<const T>& queries, int row,
                   int query_count, int start, int stop, const Packed<K>& t, Session& session) {
  if (const PositionVectors& of = group.position_keys; of.packed) {
    const int last = row + query_count - 1, zero = of.columns / 2;
    const float* products = multiply_positions<K>(group, of, head, queries, query_count, t.first + start - last + zero,
                                                  t.first + stop - row + zero, t.by_distance, t.distances, session);
    for (int i = 0; i < query_count; i++) {
      const float* by_key = products + static_cast<size_t>(i) * t.distances + query_count - 1 - i;
      float* scores = t.scores + static_cast<size_t>(i) * t.stride + start;
      for_vectors(stop - start,
                  [&](int j, int lanes) { store(scores + j, load(scores + j) + load_lanes(by_key + j, lanes)); });
    }
  }
  if (!group.position_queries.packed) return;
  for (int key = start; key < stop; key++) {
    const float* by_query = t.by_query[key] + row - t.block;
    for (int i = 0; i < query_count; i++) t.scores[static_cast<size_t>(i) * t.stride + key] += by_query[i];
  }
}

// scores += the product of a query with its head's vector, for the keys [begin, end) of another type; the first of these
// keys is the token `first`.
template <class T>
void add_segments(const KeyValueGroup<T>& group, int head, int row, int first, int keys, float* scores) {
  const T* query = group.queries.row(row - group.prefix) + head * group.head_size;
  const float* vector = group.segments + static_cast<size_t>(head) * group.head_size;
  F products = zero();
  for_vectors(group.head_size, [&](int i, int lanes) {
    products = fma(load_lanes(query + i, lanes), load_lanes(vector + i, lanes), products);
  });
  const float added = sum(products) + group.segment_bias[head];
  for (int i = 0; i < keys; i++)
    if (group.types[first + i] != group.types[row]) scores[i] += added;
}

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
  add_positions(group, head, queries, row, query_count, start, stop, t, scratch.session);
  float sums[K::kRows];
  for (int i = 0; i < query_count; i++) {
    const int begin = group.begin(row + i) - t.first, end = group.end(row + i) - t.first;
    const float* bias = group.bias ? group.bias + head * group.bias_stride - (row + i) + t.first + begin : nullptr;
    T* probabilities = t.probabilities + static_cast<size_t>(i) * t.stride;
    float* scores = t.scores + static_cast<size_t>(i) * t.stride;
    if (group.segments) add_segments(group, head, row + i, t.first + begin, end - begin, scores + begin);
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
  // The keys of a word are the same whatever the first row is.
  packed.first = group.begin(first) / K::kWordMultiple * K::kWordMultiple, packed.last = group.end(last - 1);
  packed.keys = pack_keys<K>(group, packed.first, packed.last, scratch.keys);
  packed.values = pack_values<K>(group, packed.first, packed.last, scratch.values);
  // a row that begins late ends as late
  packed.stride = round_up(packed.last - packed.first + kLanes, std::max(kLanes, K::kWordMultiple));
  packed.scores = scratch.scores.get<float>(static_cast<size_t>(K::kRows) * packed.stride);
  packed.probabilities = scratch.probabilities.get<T>(static_cast<size_t>(K::kRows) * packed.stride);
  packed.distances = round_up(packed.last - packed.first + K::kRows + K::kPanel, K::kPanel);
  packed.by_distance = scratch.by_distance.get<float>(static_cast<size_t>(K::kRows) * packed.distances);
  for (int head = 0; head < group.heads; head++)
    for (int row = first; row < last; row += K::kRows) {
      if (group.position_queries.packed && (row - first) % kPositionBlock<K> == 0)
        position_to_content(group, head, row, std::min(last, row + kPositionBlock<K>), packed, scratch);
      attend(group, head, row, std::min(K::kRows, last - row), packed, scratch);
    }
}

// Calls f with the kernel that multiplies heads of a size. Tiles read queries where they are: what follows a head must not be
// read as the rest of its last word.
template <class T, class Fn>
auto by_kernel(int head_size, Fn f) {
  using K = Kernel<T>;
  if constexpr (std::is_same_v<K, Tiles<T>>)
    if (head_size % K::kWordMultiple) return f(Dot<T>{});
  return f(K{});
}

}  // namespace

template <class T>
PositionVectors pack_positions(const float* rows, const int32_t* row_of, int columns, int heads, int head_size,
                               Buffer& buffer) {
  return by_kernel<T>(head_size, [&](auto kernel) {
    using K = decltype(kernel);
    using Word = typename K::Word;
    const int width = heads * head_size, row_count = *std::max_element(row_of, row_of + columns) + 1;
    const size_t head_words = static_cast<size_t>(round_up(columns, kLanes)) * words_of<K>(head_size);
    std::vector<T> rounded(static_cast<size_t>(row_count) * width);
    for_vectors(row_count * width,
                [&](int i, int lanes) { store_lanes(&rounded[i], load_lanes(rows + i, lanes), lanes); });
    Word* packed = buffer.get<Word>(heads * head_words);
    for (int head = 0; head < heads; head++) {
      const T* of_head = rounded.data() + head * head_size;
      const auto vector_at = [&](int column) { return of_head + static_cast<size_t>(row_of[column]) * width; };
      pack_columns<K>(columns, head_size, vector_at, packed + head * head_words);
    }
    return PositionVectors{reinterpret_cast<const char*>(packed), head_words * sizeof(Word), columns};
  });
}

template <class T>
void attention(const KeyValueGroup<T>& group, int first, int last, Scratch& scratch) {
  by_kernel<T>(group.head_size, [&](auto kernel) { attention_by<decltype(kernel)>(group, first, last, scratch); });
}

template PositionVectors pack_positions<float>(const float*, const int32_t*, int, int, int, Buffer&);
template void attention<float>(const KeyValueGroup<float>&, int, int, Scratch&);
#if BEI_MULTIPLIES_BF16
template PositionVectors pack_positions<bf16>(const float*, const int32_t*, int, int, int, Buffer&);
template void attention<bf16>(const KeyValueGroup<bf16>&, int, int, Scratch&);
#endif

}  // namespace bei
