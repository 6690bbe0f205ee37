// The types of a precision, and the states of a batch on its way through the layers.
#pragma once
#include <algorithm>
#include <cstdint>

#include "abi.h"
#include "memory.h"

namespace bei {
namespace {

// The types of a product's operands, and of the values stored between products.
struct Fp32 {
  using Operand = float;
  using Stored = float;
};
struct Bf16 {
  using Operand = Half;
  using Stored = Half;
};
struct Int8 {
  using Operand = uint8_t;
  using Stored = Half;
};

// The tokens whose final states are needed: all, or one per sequence.
enum Needed { kAll, kFirst, kLast };

// x is the residual stream, and `narrow` that of a layer with a bottleneck; qkv and context are those of the current layer,
// and `convolved` is added after the first one. `embedded` are the embeddings, from which every layer has its own input, and
// `encoded` the encoder's states, which a decoder reads. Of a mixture of experts: `mixed` are the inputs of the experts,
// `experts` and `shares` the chosen ones of each token, `slots` and `outputs` those of some tokens (mixture.h).
template <class P>
struct States {
  const BeiBatch& batch;
  const Needed needed;
  const int tokens;
  MatrixView<float> x, narrow;
  MatrixView<typename P::Stored> qkv, context;
  MatrixView<float> convolved;
  MatrixView<typename P::Stored> embedded, encoded, mixed;
  int32_t *experts, *slots;
  float* shares;
  MatrixView<float> outputs;
};

// The rest of a layer's work in each row of a block (layer.h). Null rows: they have been added.
struct Ending {
  MatrixView<float> rows;
  BeiNorm norm, again, last;
};

inline int query_size(const BeiModel& model, const BeiLayer& layer) { return model.heads * layer.head_size; }

// The numbers of a token's queries, keys and values, which each product writes in whole vectors.
inline int qkv_size(const BeiLayer& layer) {
  const BeiLinear& first = layer.bottleneck ? layer.bottleneck->query_key : layer.qkv;
  const BeiLinear& second = layer.bottleneck ? layer.bottleneck->value : layer.key_value;
  return first.outputs + round_up(second.outputs, kLanes);
}

// Those of its context.
inline int context_size(const BeiLayer& layer) { return (layer.bottleneck ? layer.bottleneck->out : layer.out).inputs; }

inline int narrow_size(const BeiLayer& layer) { return layer.bottleneck ? layer.bottleneck->enter.outputs : 0; }

// The largest size of a layer.
inline int widest(const BeiModel& model, int (*size)(const BeiLayer& layer)) {
  int most = 0;
  for (int i = 0; i < model.layer_count; i++) most = std::max(most, size(model.layers[i]));
  return most;
}

// The largest number of experts that a layer chooses for a token; 0 if none has experts.
inline int most_chosen(const BeiModel& model) {
  int most = 0;
  for (int i = 0; i < model.layer_count; i++) most = std::max(most, model.layers[i].experts.chosen);
  return most;
}

}  // namespace
}  // namespace bei
