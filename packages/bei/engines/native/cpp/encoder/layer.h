// The steps of a layer, but for attention.
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

  // Queries, keys and values of a block. Calls before(from, to, scratch), which ends the rows of x that are read.
  void project_qkv(const States<P>& states, int i, const Block& block, const Work& before) const {
    const BeiLayer& layer = model_.layers[i];
    if (layer.bottleneck) return bottleneck_.project_qkv(states, i, block, before);
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, layer.qkv.inputs);
    block.rows([&](int from, int to, Scratch& scratch) {
      before(from, to, scratch);
      read(states, layer.attention_in, layer.qkv, 2 * i, block, operands, from, to, scratch);
    });
    block.multiply(layer.qkv, operands, states.qkv.from(block.first));
    if (layer.key_value.panels) project_encoded(states, i, block);
    if (layer.rotary < 0 && !layer.query_norm.weight && !layer.value_norm.weight) return;
    block.rows([&](int from, int to, Scratch&) {
      for (int row = block.first + from; row < block.first + to; row++) norm_and_rotate(states, layer, row);
    });
  }

  // x += the output of attention. Calls after(from, to, scratch) once rows are whole.
  void add_attention(const States<P>& states, int i, const Block& block, const Work& after) const {
    const Ending ending = multiply_context(states, model_.layers[i], block);
    block.rows([&](int from, int to, Scratch& scratch) {
      end(states, ending, block, from, to);
      after(from, to, scratch);
    });
  }

  // The rest of a layer after attention, but for `end` of each row, which makes the layer's output in x.
  Ending finish_layer(const States<P>& states, int i, const Block& block) const {
    const BeiLayer& layer = model_.layers[i];
    if (layer.bottleneck) return bottleneck_.finish(states, i, block);
    if (!layer.up.panels) return multiply_context(states, layer, block);
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, layer.up.inputs);
    const auto read_up = [&](int from, int to, Scratch& scratch) {
      read(states, layer.ffn_in, layer.up, 2 * i + 1, block, operands, from, to, scratch);
    };
    if (model_.parallel) block.rows(read_up);
    add_attention(states, i, block, [&](int from, int to, Scratch& scratch) {
      if (!model_.parallel) read_up(from, to, scratch);
    });
    const MatrixView<Stored> inner = block.memory.inner.template get<Stored>(block.count, model_.intermediate_size);
    expand<P>(layer.up, model_.gated, operands, block, inner);
    return multiply(states, layer.down, {{}, layer.ffn_out, {}, layer.ffn_end}, inner, block);
  }

  // x += norm(rows) * scale, or x += again(x + norm(rows) * scale); then x = last(x). Each norm may be missing.
  void end(const States<P>& states, const Ending& of, const Block& block, int from, int to) const {
    if (of.rows.data)
      for (int row = from; row < to; row++) add_to_x(of, of.rows.row(row), states.x.row(block.first + row));
    normalize_x(states, of.last, block.first + from, to - from);
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
  void project_encoded(const States<P>& states, int i, const Block& block) const {
    const BeiLayer& layer = model_.layers[i];
    const MatrixView<Stored> encoded = states.encoded.from(block.first), qkv = states.qkv.from(block.first);
    for (int row = 0; row < block.count; row++) raise_peaks(model_, 2 * i - 1, encoded.row(row));
    block.multiply(layer.key_value, as_operands<P>(encoded, layer.key_value, block),
                   MatrixView<Stored>{qkv.data + layer.qkv.outputs, qkv.stride});
  }

  // Norm and rotate the heads of one token.
  void norm_and_rotate(const States<P>& states, const BeiLayer& layer, int row) const {
    const int queries = query_size(model_, layer), keys = layer.kv_heads * layer.head_size;
    Stored* const qkv = states.qkv.row(row);
    normalize_heads(layer.query_norm, qkv, queries);
    normalize_heads(layer.key_norm, qkv + queries, keys);
    normalize_heads(layer.value_norm, qkv + queries + keys, keys);
    rotate_heads(states, layer, row, qkv, queries + keys);
  }

  // A norm is of each head, or of all of them.
  static void normalize_heads(const BeiNorm& norm, Stored* x, int width) {
    for (int at = 0; norm.weight && at < width; at += norm.size) normalize(norm, x + at, x + at);
  }

  void rotate_heads(const States<P>& states, const BeiLayer& layer, int token, Stored* x, int width) const {
    if (layer.rotary < 0) return;
    const int size = model_.rotary_sizes[layer.rotary];
    const float* cos_sin = states.batch.rotaries[layer.rotary] + static_cast<size_t>(token) * size;
    for (int at = 0; at < width; at += layer.head_size) rotate(x + at, cos_sin, size / 2);
  }

  // Rows [from, to) of x, normed, as operands of `weights`. `n` counts the products that read x, for input_peaks.
  void read(const States<P>& states, const BeiNorm& norm, const BeiLinear& weights, int n, const Block& block,
            const MatrixView<Operand>& operands, int from, int to, Scratch& scratch) const {
    float* normed = scratch.normed.get<float>(1, weights.inputs).data;
    for (int row = from; row < to; row++) {
      const float* x = states.x.row(block.first + row);
      if (norm.weight) normalize(norm, x, normed), x = normed;
      to_operands(x, weights, operands, row, scratch);
      raise_peaks(model_, n, x);
    }
  }

  // The output of attention.
  Ending multiply_context(const States<P>& states, const BeiLayer& layer, const Block& block) const {
    return multiply(states, layer.out, {{}, layer.attention_out, layer.attention_again, layer.attention_end},
                    states.context.from(block.first), block);
  }

  // a * weights, and how it ends. It is added to x at once where no norm comes in between.
  Ending multiply(const States<P>& states, const BeiLinear& weights, Ending ending, const MatrixView<Stored>& a,
                  const Block& block) const {
    const MatrixView<Operand> operands = as_operands<P>(a, weights, block);
    if (ending.norm.weight || ending.again.weight) {
      ending.rows = block.memory.outputs.template get<float>(block.count, weights.outputs);
      block.multiply(weights, operands, ending.rows);
    } else {
      block.product(weights, operands,
                    [x = states.x.from(block.first), scale = splat(model_.residual_scale)](int row, int column, F v) {
                      float* to = x.row(row) + column;
                      store(to, fma(v, scale, load(to)));
                    });
    }
    return ending;
  }

  void add_to_x(const Ending& of, float* added, float* x) const {
    const int width = model_.hidden_size;
    const F scale = splat(model_.residual_scale);
    if (of.norm.weight) normalize(of.norm, added, added);
    if (model_.residual_scale != 1) for_vectors(width, [&](int j, int) { store(added + j, load(added + j) * scale); });
    if (of.again.weight) {
      add(added, x, width);
      normalize(of.again, added, added);
    }
    add(x, added, width);
  }

  const BeiModel& model_;
  const BottleneckSteps<P> bottleneck_;
};

}  // namespace
}  // namespace bei
