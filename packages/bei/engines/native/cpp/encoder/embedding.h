// From token ids to the states before the first layer.
#pragma once
#include <algorithm>
#include <cstdint>

#include "encoder/block.h"
#include "encoder/rows.h"
#include "encoder/states.h"

namespace bei {
namespace {

template <class P>
class Embedding {
  using Operand = typename P::Operand;

 public:
  explicit Embedding(const BeiModel& model) : model_(model) {}

  // x = project(norm(sum of the embeddings)), of the rows of a block.
  void embed(const States<P>& states, const Block& block) const {
    const BeiLinear& project = model_.project;
    if (!project.panels)
      return block.rows([&](int from, int to, Scratch&) {
        add_up(states, block.first + from, to - from, states.x.from(block.first + from));
      });
    const MatrixView<float> sums = block.memory.outputs.template get<float>(block.count, project.inputs);
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, project.inputs);
    block.rows([&](int from, int to, Scratch&) {
      add_up(states, block.first + from, to - from, sums.from(from));
      for (int row = from; row < to; row++) to_operands(sums.row(row), project, operands, row);
    });
    block.template columns<Kernel<Operand>>(project, [&](Columns columns, Scratch& scratch) {
      linear(project, operands, block.count, columns, scratch,
             [to = states.x.from(block.first)](int row, int column, F v) { store(to.row(row) + column, v); });
    });
  }

 private:
  // norm(sum of the embeddings) of the tokens from `first` on.
  void add_up(const States<P>& states, int first, int row_count, const MatrixView<float>& sums) const {
    const int32_t* ends = states.batch.cu_seqlens + 1;
    int sequence = static_cast<int>(std::upper_bound(ends, ends + states.batch.sequences, first) - ends);
    float scale = scale_of(states.batch, sequence);
    for (int row = 0; row < row_count; row++) {
      const int token = first + row;
      while (token >= ends[sequence]) scale = scale_of(states.batch, ++sequence);
      const bool dropped = states.batch.input_ids[token] == model_.dropped_token;
      const int position = token - states.batch.cu_seqlens[sequence];
      add_embeddings(states.batch, token, position, dropped ? 0 : scale, sums.row(row));
      if (model_.embedding_norm.weight) normalize(model_.embedding_norm, sums.row(row), sums.row(row));
    }
  }

  // The scale of the embeddings of a sequence: it makes up for dropped tokens.
  float scale_of(const BeiBatch& batch, int sequence) const {
    if (model_.dropped_token < 0) return model_.embedding_scale;
    const int32_t *begin = batch.input_ids + batch.cu_seqlens[sequence],
                  *end = batch.input_ids + batch.cu_seqlens[sequence + 1];
    const float length = end - begin, dropped = std::count(begin, end, model_.dropped_token);
    return model_.embedding_scale * length / std::max(length - dropped, 1.f);
  }

  void add_embeddings(const BeiBatch& batch, int token, int position, float scale, float* sum) const {
    const size_t size = model_.embedding_size, row = batch.input_ids[token] * size;
    const float* of_position = model_.positions ? model_.positions + position * size : nullptr;
    const float* of_type = model_.types ? model_.types + batch.token_types[token] * size : nullptr;
    const auto add_to = [&](const auto* of_token) {
      for_vectors(model_.embedding_size, [&](int i, int lanes) {
        F v = load_lanes(of_token + i, lanes) * splat(scale);
        if (of_position) v = v + load_lanes(of_position + i, lanes);
        if (of_type) v = v + load_lanes(of_type + i, lanes);
        store(sum + i, v);
      });
    };
    if (model_.tokens_are_bf16)
      add_to(static_cast<const bf16*>(model_.tokens) + row);
    else
      add_to(static_cast<const float*>(model_.tokens) + row);
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
