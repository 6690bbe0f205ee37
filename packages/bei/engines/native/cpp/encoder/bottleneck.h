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

  // The narrow states, and the queries, keys and values.
  void project_qkv(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiBottleneck& of = *model_.layers[i].bottleneck;
    const MatrixView<float> x = states.x.from(first), narrow = states.narrow.from(first);
    const MatrixView<float> shared = scratch.outputs.get<float>(row_count, of.shared.outputs);
    const MatrixView<Stored> queries = states.qkv.from(first);
    const MatrixView<Stored> values{queries.data + of.query_key.outputs, queries.stride};
    for (int row = 0; row < row_count; row++) raise_peaks(model_, 2 * i, x.row(row));
    multiply(of.enter, x, row_count, narrow, scratch);
    normalize_rows(of.enter_norm, narrow, row_count);
    multiply(of.shared, x, row_count, shared, scratch);
    normalize_rows(of.shared_norm, shared, row_count);
    multiply(of.query_key, shared, row_count, queries, scratch);
    multiply(of.value, x, row_count, values, scratch);
  }

  // The rest of the layer after attention; its output is in x.
  void finish(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiBottleneck& of = *model_.layers[i].bottleneck;
    const MatrixView<float> x = states.x.from(first), narrow = states.narrow.from(first);
    const MatrixView<Stored> context = states.context.from(first);
    add_product(of.out, as_operands<P>(context, of.out, row_count, scratch), of.out_norm, row_count, narrow, scratch);
    for (int j = 0; j < of.mlp_count; j++) {
      const BeiNarrowMlp& mlp = of.mlps[j];
      const MatrixView<Stored> inner = scratch.inner.get<Stored>(row_count, mlp.up.outputs);
      expand<P>(mlp.up, false, operands(narrow, mlp.up, row_count, scratch), row_count, inner, scratch);
      add_product(mlp.down, as_operands<P>(inner, mlp.down, row_count, scratch), mlp.norm, row_count, narrow, scratch);
    }
    add_product(of.leave, operands(narrow, of.leave, row_count, scratch), of.leave_norm, row_count, x, scratch);
  }

 private:
  static MatrixView<Operand> operands(const MatrixView<float>& x, const BeiLinear& weights, int row_count,
                                      Scratch& scratch) {
    const MatrixView<Operand> rounded = scratch.operands.get<Operand>(row_count, weights.inputs);
    for (int row = 0; row < row_count; row++) to_operands(x.row(row), weights, rounded, row, scratch);
    return rounded;
  }

  template <class T>
  static void multiply(const BeiLinear& weights, const MatrixView<float>& x, int row_count, const MatrixView<T>& to,
                       Scratch& scratch) {
    linear(weights, operands(x, weights, row_count, scratch), row_count, scratch,
           [&](int row, int column, F v) { store(to.row(row) + column, v); });
  }

  // to = norm(to + a * weights).
  static void add_product(const BeiLinear& weights, const MatrixView<Operand>& a, const BeiNorm& norm, int row_count,
                          const MatrixView<float>& to, Scratch& scratch) {
    linear(weights, a, row_count, scratch, [&](int row, int column, F v) {
      float* y = to.row(row) + column;
      store(y, load(y) + v);
    });
    normalize_rows(norm, to, row_count);
  }

  static void normalize_rows(const BeiNorm& norm, const MatrixView<float>& x, int row_count) {
    for (int row = 0; row < row_count; row++) normalize(norm, x.row(row), x.row(row));
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
