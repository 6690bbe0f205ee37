// Every layer's own input from the embeddings (EmbeddingGemma 2).
#pragma once
#include <type_traits>

#include "encoder/mlp.h"

namespace bei {
namespace {

template <class P>
class LayerInputs {
  using Operand = typename P::Operand;
  using Stored = typename P::Stored;

 public:
  explicit LayerInputs(const BeiModel& model) : model_(model) {}

  bool are_there() const { return model_.layers[0].input; }

  // x = (x + norm(out(activation(gate(x)) * input))) * scale, of a layer's output.
  void add(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayerInput& of = *model_.layers[i].input;
    const MatrixView<float> x = states.x.from(first), input = project(states, of, first, row_count, scratch);
    const MatrixView<Stored> gated = gate(of, x, input, row_count, scratch);
    const MatrixView<float> added = scratch.outputs.get<float>(row_count, of.out.outputs);
    linear(of.out, as_operands<P>(gated, of.out, row_count, scratch), row_count, scratch,
           [&](int row, int column, F v) { store(added.row(row) + column, v); });
    const F scale = splat(of.scale);
    for (int row = 0; row < row_count; row++) {
      float *const y = x.row(row), *const more = added.row(row);
      normalize(of.norm, more, more);
      for_vectors(model_.hidden_size, [&](int j, int) { store(y + j, (load(y + j) + load(more + j)) * scale); });
    }
  }

 private:
  // The layer's input.
  static MatrixView<float> project(const States<P>& states, const BeiLayerInput& of, int first, int row_count,
                                   Scratch& scratch) {
    const MatrixView<float> input = scratch.head_layers[0].get<float>(row_count, of.project.outputs);
    const MatrixView<Stored> embedded = states.embedded.from(first);
    linear(of.project, as_operands<P>(embedded, of.project, row_count, scratch), row_count, scratch,
           [&](int row, int column, F v) { store(input.row(row) + column, v); });
    for (int row = 0; row < row_count; row++) normalize(of.project_norm, input.row(row), input.row(row));
    return input;
  }

  // activation(gate(x)) * input
  static MatrixView<Stored> gate(const BeiLayerInput& of, const MatrixView<float>& x, const MatrixView<float>& input,
                                 int row_count, Scratch& scratch) {
    const MatrixView<Operand> operands = scratch.operands.get<Operand>(row_count, of.gate.inputs);
    for (int row = 0; row < row_count; row++) to_operands(x.row(row), of.gate, operands, row, scratch);
    const MatrixView<Stored> gated = scratch.inner.get<Stored>(row_count, of.gate.outputs);
    with_activation(of.gate.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
      linear(of.gate, operands, row_count, scratch, [&](int row, int column, F v) {
        store(gated.row(row) + column, activation(v) * load(input.row(row) + column));
      });
    });
    return gated;
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
