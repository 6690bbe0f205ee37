// A layer whose states are narrow inside (MobileBERT).
#pragma once
#include "encoder/mlp.h"

namespace bei {
namespace {

template <class P>
class BottleneckSteps {
  using Operand = typename P::Operand;
  using Stored = typename P::Stored;

 public:
  explicit BottleneckSteps(const BeiModel& model) : model_(model) {}

  // The narrow states, and the queries, keys and values. Calls before(from, to, scratch), which ends the rows of x.
  void project_qkv(const States<P>& states, int i, const Block& block, const Work& before) const {
    const BeiBottleneck& of = *model_.layers[i].bottleneck;
    const MatrixView<float> x = states.x.from(block.first), narrow = states.narrow.from(block.first);
    const MatrixView<Stored> queries = states.qkv.from(block.first);
    const auto end_x = [&](int from, int to, Scratch& scratch) {
      before(from, to, scratch);
      for (int row = from; row < to; row++) raise_peaks(model_, 2 * i, x.row(row));
    };
    block.multiply(of.enter, operands(of.enter, x, block, end_x), narrow);
    const auto end_narrow = [&](int from, int to, Scratch&) { normalize_rows(of.enter_norm, narrow, from, to); };
    const MatrixView<float> shared = block.memory.outputs.template get<float>(block.count, of.shared.outputs);
    block.multiply(of.shared, operands(of.shared, x, block, end_narrow), shared);
    const auto end_shared = [&](int from, int to, Scratch&) { normalize_rows(of.shared_norm, shared, from, to); };
    block.multiply(of.query_key, operands(of.query_key, shared, block, end_shared), queries);
    block.multiply(of.value, operands(of.value, x, block, as_they_are),
                   MatrixView<Stored>{queries.data + of.query_key.outputs, queries.stride});
  }

  // The rest of the layer after attention; x is normed at its end.
  Ending finish(const States<P>& states, int i, const Block& block) const {
    const BeiBottleneck& of = *model_.layers[i].bottleneck;
    const MatrixView<float> narrow = states.narrow.from(block.first);
    add_product(of.out, as_operands<P>(states.context.from(block.first), of.out, block), narrow, block);
    BeiNorm norm = of.out_norm;
    const auto end_narrow = [&](int from, int to, Scratch&) { normalize_rows(norm, narrow, from, to); };
    for (int j = 0; j < of.mlp_count; j++) {
      const BeiNarrowMlp& mlp = of.mlps[j];
      const MatrixView<Stored> inner = block.memory.inner.template get<Stored>(block.count, mlp.up.outputs);
      expand<P>(mlp.up, false, operands(mlp.up, narrow, block, end_narrow), block, inner);
      add_product(mlp.down, as_operands<P>(inner, mlp.down, block), narrow, block);
      norm = mlp.norm;
    }
    add_product(of.leave, operands(of.leave, narrow, block, end_narrow), states.x.from(block.first), block);
    return {{}, {}, {}, of.leave_norm};
  }

 private:
  // The rows of x as operands, once before(from, to, scratch) has ended them.
  static MatrixView<Operand> operands(const BeiLinear& weights, const MatrixView<float>& x, const Block& block,
                                      const Work& before) {
    const MatrixView<Operand> rounded = block.memory.operands.template get<Operand>(block.count, weights.inputs);
    block.rows([&](int from, int to, Scratch& scratch) {
      before(from, to, scratch);
      for (int row = from; row < to; row++) to_operands(x.row(row), weights, rounded, row, scratch);
    });
    return rounded;
  }

  // to += a * weights.
  static void add_product(const BeiLinear& weights, const MatrixView<Operand>& a, const MatrixView<float>& to,
                          const Block& block) {
    block.product(weights, a, [to](int row, int column, F v) {
      float* y = to.row(row) + column;
      store(y, load(y) + v);
    });
  }

  static void normalize_rows(const BeiNorm& norm, const MatrixView<float>& x, int from, int to) {
    for (int row = from; row < to; row++) normalize(norm, x.row(row), x.row(row));
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
