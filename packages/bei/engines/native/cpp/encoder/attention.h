// Attention of the heads that share one key and value, over one sequence.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "memory.h"

namespace bei {

// Vectors of relative positions, each the column of a packed matrix, which every head has; the middle column is of the
// distance zero. Null where there are none.
struct PositionVectors {
  const char* packed = nullptr;
  size_t head_bytes = 0;
  int columns = 0;
};

// The vector of a column is a row of `rows`, [rows][heads * head_size], the one that row_of[column] names.
template <class T>
PositionVectors pack_positions(const float* rows, const int32_t* row_of, int columns, int heads, int head_size,
                               Buffer& buffer);

constexpr int kQueryChunk = 1024;  // rows: long sequences are shared among threads by these

// Grouped-query attention: `heads` query heads share one key head and one value head (arXiv:2305.13245). Each view has a
// row for each token: keys and values have `head_size` numbers, queries and context have heads * head_size.
// A token sees the keys before `attended` that are at most `window` tokens away and, if `causal`, not after it.
// `bias[d]` is added to the score of the key d tokens after its query; the next head's biases stand `bias_stride` further
// on; null for none. `sinks`: for each head a number that the softmax has beside the scores, null for none.
// `position_keys`, by the distance of a key from its query, are multiplied with the queries, and `position_queries`, by that
// of a query from its key, with the keys; both are added to the scores. Where `segments` are not null, the product of a
// query and its head's vector, plus its head's bias, is added to the scores of keys whose type is another.
// The keys and values of the first `prefix` tokens are in `prefix_keys` and `prefix_values`. Those of the other tokens,
// and all queries and contexts, are in the other views, whose first row is that of token `prefix`.
template <class T>
struct KeyValueGroup {
  MatrixView<const T> queries, keys, values, prefix_keys, prefix_values;
  MatrixView<T> context;
  int prefix, tokens, attended, heads, head_size, window;
  bool causal;
  float scale, soft_cap, growth;
  int trained;
  const float *bias, *sinks;
  size_t bias_stride;
  PositionVectors position_keys, position_queries;
  const float *segments, *segment_bias;
  const int32_t* types;

  const T* key(int i) const { return i < prefix ? prefix_keys.row(i) : keys.row(i - prefix); }
  const T* value(int i) const { return i < prefix ? prefix_values.row(i) : values.row(i - prefix); }

  // The factor of the scores of a query, which grows with its position if `growth` is not zero.
  float scale_of(int row) const {
    return growth == 0 ? scale : scale * (1 + growth * std::log1p(float(row / trained)));
  }

  // The first key that `row` sees, and the one after the last.
  int begin(int row) const { return std::max(0, std::min(row - window, attended - 1)); }
  int end(int row) const { return std::min(attended, causal ? row + 1 : std::min(tokens, row + 1 + window)); }
};

// context = softmax(cap(q kᵀ * scale) + bias) v, for the queries [first, last). `scratch` holds the packed keys and values,
// and the scores of a few queries at a time.
template <class T>
void attention(const KeyValueGroup<T>& group, int first, int last, Scratch& scratch);

}  // namespace bei
