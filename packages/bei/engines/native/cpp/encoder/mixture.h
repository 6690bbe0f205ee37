// A layer's mixture of experts. Rows are grouped by expert, so that a panel of an expert's matrix is read once for all of
// its rows in a task.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "encoder/mlp.h"

namespace bei {
namespace {

constexpr int kMixtureRows = 1024;  // of which the outputs of all their experts are in memory at a time
constexpr int kExpertRows = 96;     // of one task

// The slots [first, last) of States::slots, which are those of one expert.
struct ExpertTask {
  int expert, first, last;
};

template <class P>
class Mixture {
  using Operand = typename P::Operand;
  using Stored = typename P::Stored;

 public:
  explicit Mixture(const BeiModel& model) : model_(model) {}

  // The experts of the rows, their shares, and the rows as all experts read them.
  void route(const States<P>& states, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    const BeiExperts& experts = layer.experts;
    const int width = model_.hidden_size;
    const MatrixView<float> normed = scratch.head_layers[1].get<float>(row_count, width);
    const MatrixView<float> logits = scratch.head_layers[0].get<float>(row_count, experts.count);
    for (int row = 0; row < row_count; row++) {
      const float* x = states.x.row(first + row);
      if (layer.ffn_in.weight)
        normalize(layer.ffn_in, x, normed.row(row));
      else
        std::copy_n(x, width, normed.row(row));
      Stored* read = states.mixed.row(first + row);
      for_vectors(width,
                  [&](int j, int lanes) { store_lanes(read + j, load_lanes(normed.row(row) + j, lanes), lanes); });
      if (!model_.input_peaks) continue;
      float* peaks = model_.input_peaks + static_cast<size_t>(2 * i + 1) * width;
      for (int j = 0; j < width; j++) peaks[j] = std::max(peaks[j], std::abs(normed.row(row)[j]));
    }
    linear(experts.router, normed, row_count, scratch,
           [&](int row, int column, F v) { store(logits.row(row) + column, v); });
    for (int row = 0; row < row_count; row++) {
      const size_t slot = static_cast<size_t>(first + row) * experts.chosen;
      choose(experts, logits.row(row), states.experts + slot, states.shares + slot);
    }
  }

  // Sorts the slots of rows [first, first + row_count) by expert. A slot is a row's number after `first` times `chosen`,
  // and the rank of the expert.
  std::vector<ExpertTask> tasks(const States<P>& states, int i, int first, int row_count) const {
    const BeiExperts& experts = model_.layers[i].experts;
    const int slots = row_count * experts.chosen;
    const int32_t* of_slot = states.experts + static_cast<size_t>(first) * experts.chosen;
    std::vector<int> ends(experts.count + 1);
    for (int slot = 0; slot < slots; slot++) ends[of_slot[slot] + 1]++;
    for (int expert = 0; expert < experts.count; expert++) ends[expert + 1] += ends[expert];
    std::vector<ExpertTask> tasks;
    for (int expert = 0; expert < experts.count; expert++)
      for (int start = ends[expert]; start < ends[expert + 1]; start += kExpertRows)
        tasks.push_back({expert, start, std::min(start + kExpertRows, ends[expert + 1])});
    for (int slot = 0; slot < slots; slot++) states.slots[ends[of_slot[slot]]++] = slot;
    return tasks;
  }

  // The outputs of an expert, for rows after `first`.
  void compute(const States<P>& states, int i, int first, const ExpertTask& task, Scratch& scratch) const {
    const BeiExperts& experts = model_.layers[i].experts;
    const BeiLinear &up = experts.up[task.expert], &down = experts.down[task.expert];
    const int row_count = task.last - task.first;
    const int32_t* slots = states.slots + task.first;
    const Block block(0, row_count, scratch);
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(row_count, up.inputs);
    for (int row = 0; row < row_count; row++)
      to_operands(states.mixed.row(first + slots[row] / experts.chosen), up, operands, row, scratch);
    const MatrixView<Stored> inner = block.memory.inner.template get<Stored>(row_count, experts.intermediate_size);
    if (experts.limit > 0)
      gated_product(up, operands, block, inner, [&](F gate, F v) { return clamped(experts, gate, v); });
    else
      expand<P>(up, experts.gated, operands, block, inner);
    block.product(down, as_operands<P>(inner, down, block),
                  [&](int row, int column, F v) { store(states.outputs.row(slots[row]) + column, v); });
  }

  // The rows [first + start, ...) of x += norm(the sum of their experts' outputs).
  void add(const States<P>& states, int i, int first, int start, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    const int width = model_.hidden_size, chosen = layer.experts.chosen;
    float* sum = scratch.normed.get<float>(1, width).data;
    for (int row = start; row < start + row_count; row++) {
      const float* shares = states.shares + static_cast<size_t>(first + row) * chosen;
      float* x = states.x.row(first + row);
      for_vectors(width, [&](int j, int lanes) {
        F total = layer.experts.bias ? load_lanes(layer.experts.bias + j, lanes) : zero();
        for (int rank = 0; rank < chosen; rank++)
          total = fma(splat(shares[rank]), load(states.outputs.row(row * chosen + rank) + j), total);
        store(sum + j, total);
      });
      if (layer.ffn_out.weight) normalize(layer.ffn_out, sum, sum);
      const F scale = splat(model_.residual_scale);
      for_vectors(width, [&](int j, int) { store(x + j, fma(load(sum + j), scale, load(x + j))); });
    }
  }

 private:
  // The experts of the largest logits, the largest first, and their probabilities. Any expert, for want of a number.
  static void choose(const BeiExperts& experts, const float* logits, int32_t* chosen, float* shares) {
    float all = 0, kept = 0;
    for (int rank = 0; rank < experts.chosen; rank++) {
      int best = -1;
      for (int expert = 0; expert < experts.count; expert++) {
        const bool is_free = std::find(chosen, chosen + rank, expert) == chosen + rank;
        if (is_free && (best < 0 || logits[expert] > logits[best])) best = expert;
      }
      chosen[rank] = best;
    }
    for (int expert = 0; expert < experts.count; expert++) all += std::exp(logits[expert] - logits[chosen[0]]);
    for (int rank = 0; rank < experts.chosen; rank++)
      kept += shares[rank] = std::exp(logits[chosen[rank]] - logits[chosen[0]]);
    for (int rank = 0; rank < experts.chosen; rank++) shares[rank] /= experts.normalized ? kept : all;
  }

  static F clamped(const BeiExperts& experts, F gate, F v) {
    const F limit = splat(experts.limit);
    gate = min(gate, limit), v = max(min(v, limit), zero() - limit);
    return gate * sigmoid(gate * splat(experts.alpha)) * (v + splat(1.f));
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
