// Attention of one head over one sequence.
#pragma once
#include "memory.h"

namespace bei {

constexpr int kQueryChunk = 1024;  // rows: long sequences are shared among threads by these

// `qkv` are the sequence's rows [q | k | v], each `hidden` wide; `keys` the leading rows that are attended to.
// `bias[d]` is added to the score of the key that stands d after its query; null for none.
template <class T>
struct Head {
  Rows<T> qkv, context;
  int tokens, keys, hidden, head_size, head;
  const float* bias;
};

// context = softmax(q kᵀ / √head_size + bias) v, of the rows [first, last): no more memory than rows of scores for a few
// queries, and k and v once more.
template <class T>
void attention(const Head<T>& head, int first, int last, Scratch& scratch);

}  // namespace bei
