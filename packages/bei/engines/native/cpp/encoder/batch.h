// A packed batch, read: where its sequences are, and whether its numbers are within the model's bounds.
#pragma once
#include <algorithm>
#include <cstdint>

#include "abi.h"

namespace bei {

inline int length_of(const BeiBatch& batch, int sequence) {
  return batch.cu_seqlens[sequence + 1] - batch.cu_seqlens[sequence];
}

// The sequence whose tokens come before those of this one (engines/prefixes.py), or -1; and how many tokens it has.
inline int parent_of(const BeiBatch& batch, int sequence) { return batch.parents ? batch.parents[sequence] : -1; }
inline int prefix_of(const BeiBatch& batch, int sequence) {
  const int parent = parent_of(batch, sequence);
  return parent < 0 ? 0 : length_of(batch, parent);
}

// Calls f(sequence, from, to) for the tokens of each sequence among [first, last).
template <class Fn>
void each_sequence(const BeiBatch& batch, int first, int last, Fn f) {
  const int32_t* ends = batch.cu_seqlens + 1;
  int sequence = static_cast<int>(std::upper_bound(ends, ends + batch.sequences, first) - ends);
  for (; first < last; first = ends[sequence++]) f(sequence, first, std::min(last, ends[sequence]));
}

inline bool fits(const BeiBatch& batch, const BeiModel& model) {
  const auto within = [](int value, int limit) { return value >= 0 && value < limit; };
  if (batch.sequences < 1 || batch.cu_seqlens[0] != 0) return false;
  for (int s = 0; s < batch.sequences; s++) {
    const int length = length_of(batch, s), parent = parent_of(batch, s);
    if (parent >= s || (parent >= 0 && parent_of(batch, parent) >= 0)) return false;
    if (length < 1 || !within(prefix_of(batch, s) + length - 1, model.max_tokens)) return false;
    if (!within(batch.attended[s] - 1, length)) return false;
    if (batch.prompt_tokens[s] < 0) return false;
  }
  for (int t = 0; t < batch.cu_seqlens[batch.sequences]; t++) {
    if (!within(batch.input_ids[t], model.vocab_size)) return false;
    if (model.types && !within(batch.token_types[t], model.type_count)) return false;
  }
  for (int i = 0, before = -1; batch.marked && i < batch.marked_count; before = batch.marked[i++])
    if (batch.marked[i] <= before || batch.marked[i] >= batch.cu_seqlens[batch.sequences]) return false;
  return true;
}

}  // namespace bei
