// The convolution beside the first layer (DeBERTa v2's xlarge models): one product of each token with its neighbors.
#pragma once
#include <algorithm>
#include <type_traits>

#include "encoder/activation.h"
#include "encoder/batch.h"
#include "encoder/block.h"
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
  void convolve(const States<P>& states, const Block& block) const {
    const BeiLinear& weights = model_.convolution;
    const MatrixView<float> convolved = states.convolved.from(block.first);
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, weights.inputs);
    block.rows([&](int from, int to, Scratch& scratch) { read(states, block.first, from, to, operands, scratch); });
    with_activation(weights.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
      block.product(weights, operands, [activation, convolved](int row, int column, F v) {
        store(convolved.row(row) + column, activation(v));
      });
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
  // The embeddings around the rows [from, to) after `first` as operands.
  void read(const States<P>& states, int first, int from, int to, const MatrixView<Operand>& operands,
            Scratch& scratch) const {
    float* const near = scratch.normed.get<float>(1, model_.convolution.inputs).data;
    each_sequence(states.batch, first + from, first + to, [&](int sequence, int begin, int end) {
      for (int token = begin; token < end; token++) {
        gather(states, sequence, token, near);
        to_operands(near, model_.convolution, operands, token - first, scratch);
      }
    });
  }

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
