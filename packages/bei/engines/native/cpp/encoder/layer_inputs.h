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

  // x = (x + norm(out(activation(gate(x)) * input))) * scale, of a layer's output. Calls before(from, to, scratch), which
  // ends the rows of x.
  void add(const States<P>& states, int i, const Block& block, const Work& before) const {
    const BeiLayerInput& of = *model_.layers[i].input;
    const MatrixView<float> x = states.x.from(block.first);
    const MatrixView<Stored> gated = gate(of, x, project(states, of, block), block, before);
    const MatrixView<float> added = block.memory.outputs.template get<float>(block.count, of.out.outputs);
    block.multiply(of.out, as_operands<P>(gated, of.out, block), added);
    const F scale = splat(of.scale);
    block.rows([&](int from, int to, Scratch&) {
      for (int row = from; row < to; row++) {
        float *const y = x.row(row), *const more = added.row(row);
        normalize(of.norm, more, more);
        for_vectors(model_.hidden_size, [&](int j, int) { store(y + j, (load(y + j) + load(more + j)) * scale); });
      }
    });
  }

 private:
  // The layer's input, before its norm.
  static MatrixView<float> project(const States<P>& states, const BeiLayerInput& of, const Block& block) {
    const MatrixView<float> input = block.memory.input.template get<float>(block.count, of.project.outputs);
    block.multiply(of.project, as_operands<P>(states.embedded.from(block.first), of.project, block), input);
    return input;
  }

  // activation(gate(x)) * norm(input)
  static MatrixView<Stored> gate(const BeiLayerInput& of, const MatrixView<float>& x, const MatrixView<float>& input,
                                 const Block& block, const Work& before) {
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, of.gate.inputs);
    block.rows([&](int from, int to, Scratch& scratch) {
      before(from, to, scratch);
      for (int row = from; row < to; row++) {
        normalize(of.project_norm, input.row(row), input.row(row));
        to_operands(x.row(row), of.gate, operands, row, scratch);
      }
    });
    const MatrixView<Stored> gated = block.memory.inner.template get<Stored>(block.count, of.gate.outputs);
    with_activation(of.gate.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
      block.product(of.gate, operands, [activation, gated, input](int row, int column, F v) {
        store(gated.row(row) + column, activation(v) * load(input.row(row) + column));
      });
    });
    return gated;
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
