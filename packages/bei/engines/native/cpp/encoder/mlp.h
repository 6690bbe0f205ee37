// The first half of an MLP, and rows as operands of the second.
#pragma once
#include <cstddef>
#include <type_traits>

#include "encoder/activation.h"
#include "encoder/rows.h"
#include "encoder/states.h"

namespace bei {
namespace {

// inner = combine(gates, gated values), a vector of each at a time.
template <class Operand, class Stored, class Combine>
void gated_product(const BeiLinear& up, const MatrixView<Operand>& operands, int row_count,
                   const MatrixView<Stored>& inner, Scratch& scratch, Combine combine) {
  F gate = zero();
  linear(up, operands, row_count, scratch, [&](int row, int column, F v) {
    if (column / kLanes % 2 == 0)
      gate = v;
    else
      store(inner.row(row) + (column - kLanes) / 2, combine(gate, v));
  });
}

// inner = activation(operands * up), or if `gated` the gates' activation times the gated values.
template <class P>
void expand(const BeiLinear& up, bool gated, const MatrixView<typename P::Operand>& operands, int row_count,
            const MatrixView<typename P::Stored>& inner, Scratch& scratch) {
  with_activation(up.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
    if (gated) {
      gated_product(up, operands, row_count, inner, scratch, [&](F gate, F v) { return activation(gate) * v; });
    } else {
      linear(up, operands, row_count, scratch,
             [&](int row, int column, F v) { store(inner.row(row) + column, activation(v)); });
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

template <class P>
MatrixView<typename P::Operand> as_operands(const MatrixView<typename P::Stored>& stored, const BeiLinear& weights,
                                            int row_count, Scratch& scratch) {
  using Operand = typename P::Operand;
  if constexpr (std::is_same_v<Operand, typename P::Stored>) {
    for (int row = 0; row < row_count; row++) end_words(stored.row(row), weights.inputs);
    return stored;
  } else {
    const MatrixView<Operand> operands = scratch.inner_operands.get<Operand>(row_count, weights.inputs);
    for (int row = 0; row < row_count; row++) to_operands(stored.row(row), weights, operands, row, scratch);
    return operands;
  }
}

}  // namespace
}  // namespace bei
