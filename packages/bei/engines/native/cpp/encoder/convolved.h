// The convolution beside the first layer (DeBERTa v2's xlarge models): one product of each token with its neighbors.
#pragma once
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "encoder/activation.h"
#include "encoder/rows.h"
#include "encoder/states.h"

namespace bei {
namespace {

template <class P>
class BesideFirstLayer {
  using Operand = typename P::Operand;

 public:
  explicit BesideFirstLayer(const BeiModel& model) : model_(model) {}

  bool is_there() const { return model_.convolution.panels; }

  // convolved = activation(convolution of x), where x are the embeddings.
  void convolve(const States<P>& states, int first, int row_count, Scratch& scratch) const {
    const BeiLinear& weights = model_.convolution;
    const MatrixView<Operand> operands = scratch.operands.get<Operand>(row_count, weights.inputs);
    float* const near = scratch.normed.get<float>(1, weights.inputs).data;
    const int32_t* ends = states.batch.cu_seqlens + 1;
    int sequence = static_cast<int>(std::upper_bound(ends, ends + states.batch.sequences, first) - ends);
    for (int row = 0; row < row_count; row++) {
      while (first + row >= ends[sequence]) sequence++;
      gather(states, sequence, first + row, near);
      to_operands(near, weights, operands, row, scratch);
    }
    with_activation(weights.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
      linear(weights, operands, row_count, scratch,
             [&](int row, int column, F v) { store(states.convolved.row(first + row) + column, activation(v)); });
    });
  }

  // x = norm(x + convolved), of the first layer's output.
  void add(const States<P>& states, int first, int row_count) const {
    for (int row = first; row < first + row_count; row++) {
      float *x = states.x.row(row), *added = states.convolved.row(row);
      for_vectors(model_.hidden_size, [&](int i, int) { store(x + i, load(x + i) + load(added + i)); });
      normalize(model_.convolution_norm, x, x);
    }
  }

 private:
  // The embeddings around a token, zero beyond its sequence.
  void gather(const States<P>& states, int sequence, int token, float* near) const {
    const int hidden = model_.hidden_size, taps = model_.convolution_taps;
    for (int tap = 0; tap < taps; tap++, near += hidden) {
      const int at = token + tap - taps / 2;
      const bool inside = at >= states.batch.cu_seqlens[sequence] && at < states.batch.cu_seqlens[sequence + 1];
      if (inside)
        std::copy_n(states.x.row(at), hidden, near);
      else
        std::fill_n(near, hidden, 0.f);
    }
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
