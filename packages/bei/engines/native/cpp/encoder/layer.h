// The steps of a layer, but for attention.
#pragma once
#include <algorithm>
#include <cmath>

#include "encoder/block.h"
#include "encoder/mlp.h"

namespace bei {
namespace {

template <class P>
class LayerSteps {
  using Operand = typename P::Operand;
  using Stored = typename P::Stored;

 public:
  explicit LayerSteps(const BeiModel& model) : model_(model) {}

  // Queries, keys and values of a block. Calls before(from, to, scratch), which ends the rows of x that are read.
  template <class Before>
  void project_qkv(const States<P>& states, int i, const Block& block, const Before& before) const {
    const BeiLayer& layer = model_.layers[i];
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, layer.qkv.inputs);
    block.rows([&](int from, int to, Scratch& scratch) {
      before(from, to, scratch);
      read(states, layer.attention_in, layer.qkv, 2 * i, block, operands, from, to, scratch);
    });
    block.template columns<Kernel<Operand>>(layer.qkv, [&](Columns columns, Scratch& scratch) {
      linear(layer.qkv, operands, block.count, columns, scratch,
             [to = states.qkv.from(block.first)](int row, int column, F v) { store(to.row(row) + column, v); });
    });
    if (layer.rotary < 0 && !layer.query_norm.weight) return;
    block.rows([&](int from, int to, Scratch&) {
      for (int row = block.first + from; row < block.first + to; row++) {
        norm_and_rotate(states, layer, layer.query_norm, row, states.qkv.row(row), model_.heads);
        norm_and_rotate(states, layer, layer.key_norm, row, states.qkv.row(row) + query_size(model_), model_.kv_heads);
      }
    });
  }

  // x += the output of attention. Calls after(from, to, scratch) once rows are whole.
  template <class After>
  void add_attention(const States<P>& states, int i, const Block& block, const After& after) const {
    const BeiLayer& layer = model_.layers[i];
    const Added added = multiply(states, layer.out, layer.attention_out, layer.attention_again,
                                 states.context.from(block.first), block);
    block.rows([&](int from, int to, Scratch& scratch) {
      add_to_x(states, added, block, from, to);
      normalize_x(states, layer.attention_end, block.first + from, block.first + to);
      after(from, to, scratch);
    });
  }

  // The rest of a layer after attention. Calls end(f) once: f(from, to) makes the layer's output in rows of x.
  template <class End>
  void finish_layer(const States<P>& states, int i, const Block& block, const End& end) const {
    const BeiLayer& layer = model_.layers[i];
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, layer.up.inputs);
    const auto read_up = [&](int from, int to, Scratch& scratch) {
      read(states, layer.ffn_in, layer.up, 2 * i + 1, block, operands, from, to, scratch);
    };
    if (model_.parallel) block.rows(read_up);
    add_attention(states, i, block, [&](int from, int to, Scratch& scratch) {
      if (!model_.parallel) read_up(from, to, scratch);
    });
    const MatrixView<Stored> inner = block.memory.inner.template get<Stored>(block.count, model_.intermediate_size);
    block.template columns<Kernel<Operand>>(layer.up, [&](Columns columns, Scratch& scratch) {
      expand<P>(layer.up, model_.gated, operands, block.count, columns, inner, scratch);
    });
    const Added added = multiply(states, layer.down, layer.ffn_out, BeiNorm{}, inner, block);
    end([&](int from, int to) {
      add_to_x(states, added, block, from, to);
      normalize_x(states, layer.ffn_end, block.first + from, block.first + to);
    });
  }

  void normalize_x(const States<P>& states, const BeiNorm& norm, int first, int last) const {
    if (!norm.weight) return;
    for (int row = first; row < last; row++) normalize(norm, states.x.row(row), states.x.row(row));
  }

 private:
  // The rows of a product that are to be added to x, and their norms. Null rows: they have been added.
  struct Added {
    MatrixView<float> rows;
    BeiNorm norm, again;
    int width;
  };

  // Norm and rotate the heads of one token. A norm is of each head, or of all of them.
  void norm_and_rotate(const States<P>& states, const BeiLayer& layer, const BeiNorm& norm, int token, Stored* x,
                       int heads) const {
    const int size = layer.rotary < 0 ? 0 : model_.rotary_sizes[layer.rotary];
    const float* cos_sin = size ? states.batch.rotaries[layer.rotary] + static_cast<size_t>(token) * size : nullptr;
    const int width = heads * model_.head_size;
    for (int at = 0; norm.weight && at < width; at += norm.size) normalize(norm, x + at, x + at);
    for (int at = 0; cos_sin && at < width; at += model_.head_size) rotate(x + at, cos_sin, size / 2);
  }

  // Rows [from, to) of x, normed, as operands of `weights`. `n` counts the products that read x, for input_peaks.
  void read(const States<P>& states, const BeiNorm& norm, const BeiLinear& weights, int n, const Block& block,
            const MatrixView<Operand>& operands, int from, int to, Scratch& scratch) const {
    float* normed = scratch.normed.get<float>(1, weights.inputs).data;
    for (int row = from; row < to; row++) {
      const float* x = states.x.row(block.first + row);
      if (norm.weight) normalize(norm, x, normed), x = normed;
      to_operands(x, weights, operands, row);
      if (model_.input_peaks) raise(model_.input_peaks + static_cast<size_t>(n) * weights.inputs, x, weights.inputs);
    }
  }

  // x += y; rows are padded to whole vectors.
  static void add(float* x, const float* y, int n) {
    for_vectors(n, [&](int i, int) { store(x + i, load(x + i) + load(y + i)); });
  }

  static void raise(float* peaks, const float* x, int n) {
    for (int i = 0; i < n; i++) peaks[i] = std::max(peaks[i], std::abs(x[i]));
  }

  // a * weights. It is added to x at once where no norm comes in between.
  Added multiply(const States<P>& states, const BeiLinear& weights, const BeiNorm& norm, const BeiNorm& again,
                 const MatrixView<Stored>& a, const Block& block) const {
    const MatrixView<Operand> operands = as_operands<P>(a, weights, block, block.memory.inner_operands);
    const bool normed = norm.weight || again.weight;
    const MatrixView<float> outputs =
        normed ? block.memory.outputs.template get<float>(block.count, weights.outputs) : MatrixView<float>{};
    const F scale = splat(model_.residual_scale);
    block.template columns<Kernel<Operand>>(weights, [&](Columns columns, Scratch& scratch) {
      if (normed)
        return linear(weights, operands, block.count, columns, scratch,
                      [to = outputs](int row, int column, F v) { store(to.row(row) + column, v); });
      linear(weights, operands, block.count, columns, scratch,
             [to = states.x.from(block.first), scale](int row, int column, F v) {
               float* x = to.row(row) + column;
               store(x, fma(v, scale, load(x)));
             });
    });
    return {outputs, norm, again, weights.outputs};
  }

  // x += norm(rows) * scale, or x += again(x + norm(rows) * scale); each norm may be missing.
  void add_to_x(const States<P>& states, const Added& of, const Block& block, int from, int to) const {
    if (!of.rows.data) return;
    const F scale = splat(model_.residual_scale);
    for (int row = from; row < to; row++) {
      float *added = of.rows.row(row), *x = states.x.row(block.first + row);
      if (of.norm.weight) normalize(of.norm, added, added);
      if (model_.residual_scale != 1)
        for_vectors(of.width, [&](int j, int) { store(added + j, load(added + j) * scale); });
      if (of.again.weight) {
        add(added, x, of.width);
        normalize(of.again, added, added);
      }
      add(x, added, of.width);
    }
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
