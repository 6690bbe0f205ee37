// The first half of an MLP, and rows as operands of the second.
#pragma once
#include <type_traits>

#include "encoder/activation.h"
#include "encoder/block.h"
#include "encoder/rows.h"
#include "encoder/states.h"

namespace bei {
namespace {

// inner = combine(gates, gated values), a vector of each at a time.
template <class Operand, class Stored, class Combine>
void gated_product(const BeiLinear& up, const MatrixView<Operand>& operands, int row_count, Columns columns,
                   const MatrixView<Stored>& inner, Scratch& scratch, Combine combine) {
  F gate = zero();
  linear(up, operands, row_count, columns, scratch, [&gate, to = inner, combine](int row, int column, F v) {
    if (column / kLanes % 2 == 0)
      gate = v;
    else
      store(to.row(row) + (column - kLanes) / 2, combine(gate, v));
  });
}

// inner = activation(operands * up), or if `gated` the gates' activation times the gated values.
template <class P>
void expand(const BeiLinear& up, bool gated, const MatrixView<typename P::Operand>& operands, int row_count,
            Columns columns, const MatrixView<typename P::Stored>& inner, Scratch& scratch) {
  with_activation(up.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
    if (gated) {
      gated_product(up, operands, row_count, columns, inner, scratch,
                    [&](F gate, F v) { return activation(gate) * v; });
    } else {
      linear(up, operands, row_count, columns, scratch,
             [activation, to = inner](int row, int column, F v) { store(to.row(row) + column, activation(v)); });
    }
  });
}

// Rows as operands of `weights`: the very rows where they are stored so, else in `buffer`.
template <class P>
MatrixView<typename P::Operand> as_operands(const MatrixView<typename P::Stored>& stored, const BeiLinear& weights,
                                            const Block& block, RowBuffer& buffer) {
  using Operand = typename P::Operand;
  if constexpr (std::is_same_v<Operand, typename P::Stored>) {
    if (weights.inputs % Kernel<Operand>::kWordMultiple)
      block.rows([&](int from, int to, Scratch&) {
        for (int row = from; row < to; row++) end_words(stored.row(row), weights.inputs);
      });
    return stored;
  } else {
    const MatrixView<Operand> operands = buffer.get<Operand>(block.count, weights.inputs);
    block.rows([&](int from, int to, Scratch&) {
      for (int row = from; row < to; row++) to_operands(stored.row(row), weights, operands, row);
    });
    return operands;
  }
}

}  // namespace
}  // namespace bei
