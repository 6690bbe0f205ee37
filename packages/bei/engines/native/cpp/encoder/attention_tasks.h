// A layer's attention, cut into tasks: some queries of one sequence, of the heads that share one key and value.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "encoder/attention.h"
#include "encoder/batch.h"
#include "encoder/states.h"

namespace bei {
namespace {

// The queries [first, last) of one sequence.
struct Queries {
  int sequence, first, last;
};

// The position in its sequence of the only needed token.
inline int needed_token(const BeiBatch& batch, int sequence, Needed needed) {
  return needed == kFirst ? 0 : length_of(batch, sequence) - 1;
}

template <class P>
class Attention {
  using Stored = typename P::Stored;

 public:
  explicit Attention(const BeiModel& model) : model_(model), positions_(model.layer_count) {
    if (!model.position_rows) return;
    const int columns = 2 * model.max_tokens - 1;
    const std::vector<int32_t> of_query(model.position_rows, model.position_rows + columns);
    const std::vector<int32_t> of_key(of_query.rbegin(), of_query.rend());
    for (int i = 0; i < model.layer_count; i++) {
      const BeiLayer& layer = model.layers[i];
      pack(layer, layer.position_keys, of_key, positions_[i].keys, positions_[i].of_keys);
      pack(layer, layer.position_queries, of_query, positions_[i].queries, positions_[i].of_queries);
    }
  }

  // The queries of a batch, in parts. There is a task for each of them and each key head of a layer.
  static std::vector<Queries> parts(const BeiBatch& batch, Needed needed) {
    std::vector<Queries> parts;
    for (int s = 0; s < batch.sequences; s++) {
      const int begin = needed == kAll ? 0 : needed_token(batch, s, needed);
      const int end = needed == kAll ? length_of(batch, s) : begin + 1;
      for (int first = begin; first < end; first += kQueryChunk)
        parts.push_back({s, first, std::min(end, first + kQueryChunk)});
    }
    return parts;
  }

  // The number of tasks of a layer.
  int tasks(int layer, const std::vector<Queries>& parts) const {
    return static_cast<int>(parts.size()) * model_.layers[layer].kv_heads;
  }

  void attend(const States<P>& states, int i, const std::vector<Queries>& parts, int task, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    const Queries& part = parts[task / layer.kv_heads];
    const int start = states.batch.cu_seqlens[part.sequence], heads = model_.heads / layer.kv_heads;
    const int kv_head = task % layer.kv_heads, head = kv_head * heads;
    const Stored* qkv = states.qkv.row(start);
    const int query = head * layer.head_size, key = query_size(model_, layer) + kv_head * layer.head_size,
              value = key + layer.kv_heads * layer.head_size;
    KeyValueGroup<Stored> group;
    group.queries = {qkv + query, states.qkv.stride};
    group.keys = {qkv + key, states.qkv.stride};
    group.values = {qkv + value, states.qkv.stride};
    group.context = {states.context.row(start) + query, states.context.stride};
    group.prefix = prefix_of(states.batch, part.sequence);
    if (group.prefix) {
      const Stored* prefix = states.qkv.row(states.batch.cu_seqlens[parent_of(states.batch, part.sequence)]);
      group.prefix_keys = {prefix + key, states.qkv.stride};
      group.prefix_values = {prefix + value, states.qkv.stride};
    }
    group.tokens = group.prefix + length_of(states.batch, part.sequence);
    group.attended = group.prefix + states.batch.attended[part.sequence];
    group.heads = heads;
    group.head_size = layer.head_size;
    group.window = layer.window < 0 ? model_.max_tokens : layer.window;
    group.causal = layer.causal;
    group.scale = model_.attention_scale;
    group.soft_cap = model_.soft_cap;
    group.growth = model_.query_growth;
    group.trained = model_.query_trained;
    group.bias_stride = 2 * static_cast<size_t>(model_.max_tokens) - 1;
    const float* biases = layer.bias_by_distance;
    group.bias = biases ? biases + head * group.bias_stride + model_.max_tokens - 1 : nullptr;
    group.sinks = layer.sinks ? layer.sinks + head : nullptr;
    group.position_keys = of_heads(positions_[i].of_keys, head);
    group.position_queries = of_heads(positions_[i].of_queries, head);
    group.segments = layer.segments ? layer.segments + head * layer.head_size : nullptr;
    group.segment_bias = layer.segments ? layer.segment_bias + head : nullptr;
    group.types = states.batch.token_types + start;
    attention(group, group.prefix + part.first, group.prefix + part.last, scratch);
  }

 private:
  // The vectors of relative positions of a layer, and their memory.
  struct Positions {
    Buffer keys, queries;
    PositionVectors of_keys, of_queries;
  };

  void pack(const BeiLayer& layer, const float* rows, const std::vector<int32_t>& row_of, Buffer& buffer,
            PositionVectors& to) const {
    if (!rows) return;
    to = pack_positions<Stored>(rows, row_of.data(), static_cast<int>(row_of.size()), model_.heads, layer.head_size,
                                buffer);
  }

  // Those of the heads from `head` on.
  static PositionVectors of_heads(PositionVectors of, int head) {
    if (of.packed) of.packed += head * of.head_bytes;
    return of;
  }

  const BeiModel& model_;
  std::vector<Positions> positions_;
};

}  // namespace
}  // namespace bei
