// Attention of one head over one sequence.
#pragma once
#include <algorithm>

#include "memory.h"

namespace bei {

constexpr int kQueryChunk = 1024;  // rows: long sequences are shared among threads by these

// The heads that share one key and value, in one sequence: rows of `head_size` numbers for each token, those of `queries`
// and `context` side by side for each of `heads`. A token sees the keys before `attended` that stand no further than
// `window` from it and, if `causal`, not after it. `bias[d]` is added to the score of the key that stands d after its
// query, `bias_stride` further on for the next head; null for none.
// The first `prefix` tokens have their keys and values elsewhere; the rows of the others begin after them.
template <class T>
struct Head {
  Rows<const T> queries, keys, values, prefix_keys, prefix_values;
  Rows<T> context;
  int prefix, tokens, attended, heads, head_size, window;
  bool causal;
  float scale, soft_cap;
  const float* bias;
  size_t bias_stride;

  const T* key(int i) const { return i < prefix ? prefix_keys.row(i) : keys.row(i - prefix); }
  const T* value(int i) const { return i < prefix ? prefix_values.row(i) : values.row(i - prefix); }

  // The first key that `row` sees, and the one after the last.
  int begin(int row) const { return std::max(0, std::min(row - window, attended - 1)); }
  int end(int row) const { return std::min(attended, causal ? row + 1 : std::min(tokens, row + 1 + window)); }
};

// context = softmax(cap(q kᵀ * scale) + bias) v, of the rows [first, last): no more memory than rows of scores for a few
// queries, and k and v once more.
template <class T>
void attention(const Head<T>& head, int first, int last, Scratch& scratch);

}  // namespace bei
