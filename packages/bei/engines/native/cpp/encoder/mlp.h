// The first half of an MLP, and rows as operands of the second.
#pragma once
#include <cstddef>
#include <type_traits>

#include "encoder/activation.h"
#include "encoder/block.h"
#include "encoder/rows.h"
#include "encoder/states.h"

namespace bei {
namespace {

// inner = combine(gates, gated values), a vector of each at a time.
template <class Operand, class Stored, class Combine>
void gated_product(const BeiLinear& up, const MatrixView<Operand>& operands, const Block& block,
                   const MatrixView<Stored>& inner, Combine combine) {
  block.product(up, operands, [gate = zero(), inner, combine](int row, int column, F v) mutable {
    if (column / kLanes % 2 == 0)
      gate = v;
    else
      store(inner.row(row) + (column - kLanes) / 2, combine(gate, v));
  });
}

// inner = activation(operands * up), or if `gated` the gates' activation times the gated values.
template <class P>
void expand(const BeiLinear& up, bool gated, const MatrixView<typename P::Operand>& operands, const Block& block,
            const MatrixView<typename P::Stored>& inner) {
  with_activation(up.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
    if (gated) {
      gated_product(up, operands, block, inner, [activation](F gate, F v) { return activation(gate) * v; });
    } else {
      block.product(up, operands,
                    [activation, inner](int row, int column, F v) { store(inner.row(row) + column, activation(v)); });
    }
  });
}

// The peaks of the n-th product that reads states (abi.h), with a row of its inputs.
template <class T>
void raise_peaks(const BeiModel& model, int n, const T* x) {
  if (!model.input_peaks) return;
  float* const peaks = model.input_peaks + static_cast<size_t>(n) * model.hidden_size;
  for_vectors(model.hidden_size, [&](int i, int lanes) {
    store_lanes(peaks + i, max(load_lanes(peaks + i, lanes), absolute(load_lanes(x + i, lanes))), lanes);
  });
}

// The rows of a block as operands of `weights`: the very rows where they are stored so.
template <class P>
MatrixView<typename P::Operand> as_operands(const MatrixView<typename P::Stored>& stored, const BeiLinear& weights,
                                            const Block& block) {
  using Operand = typename P::Operand;
  if constexpr (std::is_same_v<Operand, typename P::Stored>) {
    if (weights.inputs % Kernel<Operand>::kWordMultiple)
      block.rows([&](int from, int to, Scratch&) {
        for (int row = from; row < to; row++) end_words(stored.row(row), weights.inputs);
      });
    return stored;
  } else {
    const MatrixView<Operand> operands = block.memory.inner_operands.template get<Operand>(block.count, weights.inputs);
    block.rows([&](int from, int to, Scratch& scratch) {
      for (int row = from; row < to; row++) to_operands(stored.row(row), weights, operands, row, scratch);
    });
    return operands;
  }
}

}  // namespace
}  // namespace bei
