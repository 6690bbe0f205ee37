// The steps of a layer that take each row for itself: all but attention.
#pragma once
#include <algorithm>
#include <cmath>

#include "encoder/bottleneck.h"
#include "encoder/mlp.h"

namespace bei {
namespace {

template <class P>
class LayerSteps {
  using Operand = typename P::Operand;
  using Stored = typename P::Stored;

 public:
  explicit LayerSteps(const BeiModel& model) : model_(model), bottleneck_(model) {}

  void project_qkv(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    if (layer.bottleneck) return bottleneck_.project_qkv(states, i, first, row_count, scratch);
    linear(layer.qkv, inputs(states, layer.attention_in, layer.qkv, 2 * i, first, row_count, scratch), row_count,
           scratch, [&](int row, int column, F v) { store(states.qkv.row(first + row) + column, v); });
    if (layer.key_value.panels) project_encoded(states, i, first, row_count, scratch);
    if (layer.rotary < 0 && !layer.query_norm.weight && !layer.value_norm.weight) return;
    const int queries = query_size(model_, layer), keys = layer.kv_heads * layer.head_size;
    for (int row = first; row < first + row_count; row++) {
      Stored* const qkv = states.qkv.row(row);
      normalize_heads(layer.query_norm, qkv, queries);
      normalize_heads(layer.key_norm, qkv + queries, keys);
      normalize_heads(layer.value_norm, qkv + queries + keys, keys);
      rotate_heads(states, layer, row, qkv, queries + keys);
    }
  }

  // x += the output of attention.
  void add_attention(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    const MatrixView<Stored> context = states.context.from(first);
    add_to_x(states, layer.out, layer.attention_out, layer.attention_again, context, first, row_count, scratch);
    normalize_x(states, layer.attention_end, first, row_count);
  }

  // The rest of a layer after attention; its output is in x.
  void finish_layer(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    if (layer.bottleneck) return bottleneck_.finish(states, i, first, row_count, scratch);
    if (!layer.up.panels) return add_attention(states, i, first, row_count, scratch);
    const auto read = [&] { return inputs(states, layer.ffn_in, layer.up, 2 * i + 1, first, row_count, scratch); };
    MatrixView<Operand> operands{};
    if (model_.parallel) operands = read();
    add_attention(states, i, first, row_count, scratch);
    if (!model_.parallel) operands = read();
    const MatrixView<Stored> inner = scratch.inner.get<Stored>(row_count, model_.intermediate_size);
    expand<P>(layer.up, model_.gated, operands, row_count, inner, scratch);
    add_to_x(states, layer.down, layer.ffn_out, BeiNorm{}, inner, first, row_count, scratch);
    normalize_x(states, layer.ffn_end, first, row_count);
  }

  void normalize_x(const States<P>& states, const BeiNorm& norm, int first, int row_count) const {
    if (!norm.weight) return;
    for (int row = first; row < first + row_count; row++) normalize(norm, states.x.row(row), states.x.row(row));
  }

  // Keep x, rounded, for layers to come.
  void keep_x(const States<P>& states, const MatrixView<Stored>& to, int first, int row_count) const {
    for (int row = first; row < first + row_count; row++) {
      const float* x = states.x.row(row);
      Stored* kept = to.row(row);
      for_vectors(model_.hidden_size, [&](int i, int) { store(kept + i, load(x + i)); });
    }
  }

 private:
  // Keys and values of the encoder's states, beside the queries.
  void project_encoded(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    const MatrixView<Stored> encoded = states.encoded.from(first), qkv = states.qkv.from(first);
    for (int row = 0; row < row_count; row++) raise_peaks(model_, 2 * i - 1, encoded.row(row));
    linear(layer.key_value, as_operands<P>(encoded, layer.key_value, row_count, scratch), row_count, scratch,
           [&](int row, int column, F v) { store(qkv.row(row) + layer.qkv.outputs + column, v); });
  }

  // A norm is of each head, or of all of them.
  static void normalize_heads(const BeiNorm& norm, Stored* x, int width) {
    for (int at = 0; norm.weight && at < width; at += norm.size) normalize(norm, x + at, x + at);
  }

  // Rotate the heads of one token.
  void rotate_heads(const States<P>& states, const BeiLayer& layer, int token, Stored* x, int width) const {
    if (layer.rotary < 0) return;
    const int size = model_.rotary_sizes[layer.rotary];
    const float* cos_sin = states.batch.rotaries[layer.rotary] + static_cast<size_t>(token) * size;
    for (int at = 0; at < width; at += layer.head_size) rotate(x + at, cos_sin, size / 2);
  }

  // Rows of x, normed, as operands of `weights`. `n` counts the products that read x, for input_peaks.
  MatrixView<Operand> inputs(const States<P>& states, const BeiNorm& norm, const BeiLinear& weights, int n, int first,
                             int row_count, Scratch& scratch) const {
    const MatrixView<Operand> operands = scratch.operands.get<Operand>(row_count, weights.inputs);
    float* normed = scratch.normed.get<float>(1, weights.inputs).data;
    for (int row = 0; row < row_count; row++) {
      const float* x = states.x.row(first + row);
      if (norm.weight) normalize(norm, x, normed), x = normed;
      to_operands(x, weights, operands, row, scratch);
      raise_peaks(model_, n, x);
    }
    return operands;
  }

  // x += norm(a * weights) * scale, or x += again(x + norm(a * weights) * scale); each norm may be missing.
  void add_to_x(const States<P>& states, const BeiLinear& weights, const BeiNorm& norm, const BeiNorm& again,
                const MatrixView<Stored>& a, int first, int row_count, Scratch& scratch) const {
    const MatrixView<Operand> operands = as_operands<P>(a, weights, row_count, scratch);
    const F scale = splat(model_.residual_scale);
    if (!norm.weight && !again.weight) {
      return linear(weights, operands, row_count, scratch, [&](int row, int column, F v) {
        float* x = states.x.row(first + row) + column;
        store(x, fma(v, scale, load(x)));
      });
    }
    const MatrixView<float> outputs = scratch.outputs.get<float>(row_count, weights.outputs);
    linear(weights, operands, row_count, scratch,
           [&](int row, int column, F v) { store(outputs.row(row) + column, v); });
    for (int row = 0; row < row_count; row++) {
      float *added = outputs.row(row), *x = states.x.row(first + row);
      if (norm.weight) normalize(norm, added, added);
      if (model_.residual_scale != 1)
        for_vectors(weights.outputs, [&](int j, int) { store(added + j, load(added + j) * scale); });
      if (again.weight) {
        add(added, x, weights.outputs);
        normalize(again, added, added);
      }
      add(x, added, weights.outputs);
    }
  }

  const BeiModel& model_;
  const BottleneckSteps<P> bottleneck_;
};

}  // namespace
}  // namespace bei
