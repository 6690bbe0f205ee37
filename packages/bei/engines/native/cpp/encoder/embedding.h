// From token ids to the states before the first layer.
#pragma once
#include <algorithm>
#include <cstdint>

#include "encoder/batch.h"
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

  // x = project(norm(sum of the embeddings)); of trigrams norm(project(neighbors) + the other embeddings).
  void embed(const States<P>& states, const Block& block) const {
    if (model_.trigrams) return embed_trigrams(states, block);
    const MatrixView<float> x = states.x.from(block.first);
    const int size = model_.embedding_size;
    if (!model_.project.panels)
      return block.rows([&](int from, int to, Scratch&) { add_up(states.batch, block.first, from, to, x); });
    const MatrixView<float> sums = block.memory.outputs.template get<float>(block.count, size);
    const MatrixView<Operand> operands = block.memory.operands.template get<Operand>(block.count, size);
    block.rows([&](int from, int to, Scratch& scratch) {
      add_up(states.batch, block.first, from, to, sums);
      for (int row = from; row < to; row++) to_operands(sums.row(row), model_.project, operands, row, scratch);
    });
    block.multiply(model_.project, operands, x);
  }

  // The same of a decoder, which reads the token before each one.
  void embed_decoded(const States<P>& states, int first, int row_count) const {
    const int size = model_.hidden_size;
    each_sequence(states.batch, first, first + row_count, [&](int sequence, int from, int to) {
      const int begin = states.batch.cu_seqlens[sequence];
      for (int token = from; token < to; token++) {
        float* const x = states.x.row(token);
        const int id = token == begin ? model_.decoder_start : states.batch.input_ids[token - 1];
        embed_token(id, model_.embedding_scale, x);
        add(x, model_.decoder_positions + static_cast<size_t>(token - begin) * size, size);
        normalize(model_.decoder_norm, x, x);
      }
    });
  }

 private:
  // norm(sum of the embeddings) of the rows [from, to) after `first`.
  void add_up(const BeiBatch& batch, int first, int from, int to, const MatrixView<float>& sums) const {
    each_sequence(batch, first + from, first + to, [&](int sequence, int begin, int end) {
      const float scale = scale_of(batch, sequence);
      for (int token = begin; token < end; token++) {
        embed_token(batch.input_ids[token], scale, sums.row(token - first));
        add_places(batch, sequence, token, model_.embedding_size, sums.row(token - first));
      }
    });
  }

  void embed_trigrams(const States<P>& states, const Block& block) const {
    const MatrixView<float> x = states.x.from(block.first);
    const MatrixView<Operand> operands =
        block.memory.operands.template get<Operand>(block.count, 3 * model_.embedding_size);
    block.rows([&](int from, int to, Scratch& scratch) {
      read_trigrams(states.batch, block.first, from, to, operands, scratch);
    });
    block.multiply(model_.project, operands, x);
    block.rows([&](int from, int to, Scratch&) {
      each_sequence(states.batch, block.first + from, block.first + to, [&](int sequence, int begin, int end) {
        for (int token = begin; token < end; token++)
          add_places(states.batch, sequence, token, model_.hidden_size, x.row(token - block.first));
      });
    });
  }

  // The embeddings around the rows [from, to) after `first`.
  void read_trigrams(const BeiBatch& batch, int first, int from, int to, const MatrixView<Operand>& operands,
                     Scratch& scratch) const {
    const int size = model_.embedding_size;
    float* const near = scratch.normed.get<float>(1, 3 * size + kLanes).data;
    each_sequence(batch, first + from, first + to, [&](int sequence, int begin, int end) {
      const float scale = scale_of(batch, sequence);
      for (int token = begin; token < end; token++) {
        for (int i = 0; i < 3; i++) embed_neighbor(batch, sequence, token + 1 - i, scale, near + i * size);
        to_operands(near, model_.project, operands, token - first, scratch);
      }
    });
  }

  // The scale of the embeddings of a sequence: it makes up for dropped tokens.
  float scale_of(const BeiBatch& batch, int sequence) const {
    if (model_.dropped_token < 0) return model_.embedding_scale;
    const int32_t *begin = batch.input_ids + batch.cu_seqlens[sequence],
                  *end = batch.input_ids + batch.cu_seqlens[sequence + 1];
    const float length = end - begin, dropped = std::count(begin, end, model_.dropped_token);
    return model_.embedding_scale * length / std::max(length - dropped, 1.f);
  }

  // Written in whole vectors.
  void embed_token(int id, float scale, float* to) const {
    const size_t row = static_cast<size_t>(id) * model_.embedding_size;
    const auto scaled = [&](const auto* of_token, float scale) {
      const F by = splat(id == model_.dropped_token ? 0 : scale);
      for_vectors(model_.embedding_size,
                  [&](int i, int lanes) { store(to + i, load_lanes(of_token + i, lanes) * by); });
    };
    switch (model_.token_precision) {
      case BEI_INT8:
        return scaled(static_cast<const int8_t*>(model_.tokens) + row, scale * model_.token_scales[id]);
      case BEI_BF16:
        return scaled(static_cast<const bf16*>(model_.tokens) + row, scale);
      default:
        return scaled(static_cast<const float*>(model_.tokens) + row, scale);
    }
  }

  // Zeros for a token that is not of the sequence.
  void embed_neighbor(const BeiBatch& batch, int sequence, int token, float scale, float* to) const {
    if (token >= batch.cu_seqlens[sequence] && token < batch.cu_seqlens[sequence + 1])
      embed_token(batch.input_ids[token], scale, to);
    else
      std::fill_n(to, model_.embedding_size, 0.f);
  }

  // x = norm(x + the embeddings of a token's position and type), each `size` wide.
  void add_places(const BeiBatch& batch, int sequence, int token, size_t size, float* x) const {
    const int position = token - batch.cu_seqlens[sequence];
    if (model_.positions) add(x, model_.positions + position * size, size);
    if (model_.types) add(x, model_.types + batch.token_types[token] * size, size);
    if (model_.embedding_norm.weight) normalize(model_.embedding_norm, x, x);
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
