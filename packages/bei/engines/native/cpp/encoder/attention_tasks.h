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

// The queries [first, last) of one sequence, of the heads that share one key and value.
struct AttentionTask {
  int sequence, kv_head, first, last;
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
      pack(model.layers[i].position_keys, of_key, positions_[i].keys, positions_[i].of_keys);
      pack(model.layers[i].position_queries, of_query, positions_[i].queries, positions_[i].of_queries);
    }
  }

  std::vector<AttentionTask> tasks(const BeiBatch& batch, Needed needed) const {
    std::vector<AttentionTask> tasks;
    for (int s = 0; s < batch.sequences; s++) {
      const int begin = needed == kAll ? 0 : needed_token(batch, s, needed);
      const int end = needed == kAll ? length_of(batch, s) : begin + 1;
      for (int head = 0; head < model_.kv_heads; head++)
        for (int first = begin; first < end; first += kQueryChunk)
          tasks.push_back({s, head, first, std::min(end, first + kQueryChunk)});
    }
    return tasks;
  }

  void attend(const States<P>& states, int layer, const AttentionTask& task, Scratch& scratch) const {
    const int start = states.batch.cu_seqlens[task.sequence], heads = model_.heads / model_.kv_heads;
    const int window = model_.layers[layer].window;
    const Stored* qkv = states.qkv.row(start);
    const int query = task.kv_head * heads * model_.head_size,
              key = query_size(model_) + task.kv_head * model_.head_size;
    KeyValueGroup<Stored> group;
    group.queries = {qkv + query, states.qkv.stride};
    group.keys = {qkv + key, states.qkv.stride};
    group.values = {qkv + key + model_.kv_heads * model_.head_size, states.qkv.stride};
    group.context = {states.context.row(start) + query, states.context.stride};
    group.prefix = prefix_of(states.batch, task.sequence);
    if (group.prefix) {
      const Stored* prefix = states.qkv.row(states.batch.cu_seqlens[parent_of(states.batch, task.sequence)]);
      group.prefix_keys = {prefix + key, states.qkv.stride};
      group.prefix_values = {prefix + key + model_.kv_heads * model_.head_size, states.qkv.stride};
    }
    group.tokens = group.prefix + length_of(states.batch, task.sequence);
    group.attended = group.prefix + states.batch.attended[task.sequence];
    group.heads = heads;
    group.head_size = model_.head_size;
    group.window = window < 0 ? model_.max_tokens : window;
    group.causal = model_.causal;
    group.scale = model_.attention_scale;
    group.soft_cap = model_.soft_cap;
    group.growth = model_.query_growth;
    group.trained = model_.query_trained;
    group.bias_stride = 2 * static_cast<size_t>(model_.max_tokens) - 1;
    const float* biases = model_.layers[layer].bias_by_distance;
    group.bias = biases ? biases + task.kv_head * heads * group.bias_stride + model_.max_tokens - 1 : nullptr;
    const float* sinks = model_.layers[layer].sinks;
    group.sinks = sinks ? sinks + task.kv_head * heads : nullptr;
    group.position_keys = of_heads(positions_[layer].of_keys, task.kv_head * heads);
    group.position_queries = of_heads(positions_[layer].of_queries, task.kv_head * heads);
    const BeiLayer& of = model_.layers[layer];
    group.segments = of.segments ? of.segments + task.kv_head * heads * model_.head_size : nullptr;
    group.segment_bias = of.segments ? of.segment_bias + task.kv_head * heads : nullptr;
    group.types = states.batch.token_types + start;
    attention(group, group.prefix + task.first, group.prefix + task.last, scratch);
  }

 private:
  // The vectors of relative positions of a layer, and their memory.
  struct Positions {
    Buffer keys, queries;
    PositionVectors of_keys, of_queries;
  };

  void pack(const float* rows, const std::vector<int32_t>& row_of, Buffer& buffer, PositionVectors& to) const {
    if (!rows) return;
    to = pack_positions<Stored>(rows, row_of.data(), static_cast<int>(row_of.size()), model_.heads, model_.head_size,
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
