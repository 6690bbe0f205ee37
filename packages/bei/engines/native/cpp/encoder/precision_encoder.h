// The encoder in one precision. Each precision has a .cpp file of its own, so that they are compiled in parallel.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "encoder/attention_tasks.h"
#include "encoder/batch.h"
#include "encoder/convolution.h"
#include "encoder/convolved.h"
#include "encoder/embedding.h"
#include "encoder/encoder.h"
#include "encoder/head.h"
#include "encoder/layer.h"
#include "encoder/layer_inputs.h"
#include "encoder/mixture.h"
#include "encoder/states.h"

namespace bei {
namespace {

constexpr int kLeastRows = 24;  // that are worth a thread of their own

template <class P>
class PrecisionEncoder final : public BeiEncoder {
  using Stored = typename P::Stored;

 public:
  PrecisionEncoder(const BeiModel& model, int threads, const int32_t* allowed)
      : model_(model),
        embedding_(model),
        layer_(model),
        attention_(model),
        convolution_(model),
        beside_(model),
        mixture_(model),
        inputs_(model),
        helpers_(threads, allowed) {}

  void pooled(const BeiBatch& batch, float* rows) override {
    const HeadLayers token_head{model_.token_head_layers, model_.token_head_layer_count};
    const HeadLayers head{model_.head_layers, model_.head_layer_count};
    const Pooling pooling{model_.modes, model_.mode_count};
    const int width = token_head.width(model_.hidden_size) * pooling.count, row_size = head.width(width);
    const Run run(*this, batch, token_head.count == 0 ? only_token(pooling) : kAll);
    RowBuffer pooled;  // not reused: SPLADE needs a number for each sequence and each word of the vocabulary
    MatrixView<float> vectors = run.states.x;
    if (run.states.needed == kAll) {
      vectors = pooled.get<float>(batch.sequences, width);
      helpers_.each(batch.sequences, *run.scratch, [&](int sequence, Scratch& scratch) {
        pool(run.states, sequence, token_head, pooling, vectors.row(sequence), scratch);
      });
    }
    each_block(batch.sequences, *run.scratch, [&](int first, int count, Scratch& scratch) {
      const MatrixView<float> out = head.apply({vectors.row(first), vectors.stride}, width, count, scratch);
      for (int i = 0; i < count; i++)
        std::copy_n(out.row(i), row_size, rows + static_cast<size_t>(first + i) * row_size);
    });
  }

  void tokens(const BeiBatch& batch, float* states) override {
    const HeadLayers head{model_.token_head_layers, model_.token_head_layer_count};
    const int size = head.width(model_.hidden_size);
    const Run run(*this, batch, kAll);
    const int rows = batch.marked ? batch.marked_count : run.states.tokens;
    for (int i = 0; batch.marked && i < rows; i++)  // no token comes before its place among the marked ones
      if (batch.marked[i] != i) std::copy_n(run.states.x.row(batch.marked[i]), run.states.x.stride, run.states.x.row(i));
    each_block(rows, *run.scratch, [&](int first, int count, Scratch& scratch) {
      const MatrixView<float> out =
          head.apply({run.states.x.row(first), run.states.x.stride}, model_.hidden_size, count, scratch);
      for (int i = 0; i < count; i++) std::copy_n(out.row(i), size, states + static_cast<size_t>(first + i) * size);
    });
  }

  bool fits(const BeiBatch& batch) const override { return bei::fits(batch, model_); }

 private:
  // A batch's states (states.h).
  struct Memory {
    RowBuffer x, narrow, qkv, context, convolved, embedded, encoded, mixed, outputs;
    Buffer experts, slots, shares;
  };

  Needed only_token(const Pooling& pooling) const {
    if (pooling.count != 1) return kAll;
    if (pooling.modes[0] == BEI_LAST) return kLast;
    return pooling.modes[0] == BEI_FIRST && model_.include_prompt ? kFirst : kAll;
  }

  // A batch and its forward pass, which runs in the constructor. Afterward x holds the final states: of all tokens, or of
  // the one needed token of each sequence. The last layer of the other tokens is not computed.
  struct Run {
    HelperPool::Running running;
    typename FreeList<Memory>::Lease memory;
    typename FreeList<Scratch>::Lease scratch;
    const EndOfSession end;
    const States<P> states;

    Run(PrecisionEncoder& encoder, const BeiBatch& batch, Needed needed)
        : running(encoder.helpers_),
          memory(encoder.memories_),
          scratch(encoder.scratches_),
          end{scratch->session},
          states(encoder.states(*memory, batch, needed)) {
      encoder.forward(states, *scratch);
    }
  };

  States<P> states(Memory& memory, const BeiBatch& batch, Needed needed) const {
    const int tokens = batch.cu_seqlens[batch.sequences], chosen = most_chosen(model_);
    const int at_once = chosen * std::min(tokens, kMixtureRows);
    return {batch,
            needed,
            tokens,
            memory.x.template get<float>(tokens, model_.hidden_size),
            memory.narrow.template get<float>(tokens, widest(model_, narrow_size)),
            memory.qkv.template get<Stored>(tokens, widest(model_, qkv_size)),
            memory.context.template get<Stored>(tokens, widest(model_, context_size)),
            memory.convolved.template get<float>(beside_.is_there() ? tokens : 0, model_.hidden_size),
            memory.embedded.template get<Stored>(inputs_.are_there() ? tokens : 0, model_.hidden_size),
            memory.encoded.template get<Stored>(model_.first_decoding < 0 ? 0 : tokens, model_.hidden_size),
            memory.mixed.template get<Stored>(chosen ? tokens : 0, model_.hidden_size),
            memory.experts.template get<int32_t>(static_cast<size_t>(tokens) * chosen),
            memory.slots.template get<int32_t>(at_once),
            memory.shares.template get<float>(static_cast<size_t>(tokens) * chosen),
            memory.outputs.template get<float>(at_once, model_.hidden_size)};
  }

  // Run `work` on blocks of rows, small enough for two blocks to each idle thread.
  template <class Work>
  void each_block(int row_count, Scratch& mine, Work work) {
    const int threads = 1 + helpers_.idle(), share = (row_count + 2 * threads - 1) / (2 * threads);
    const int size = threads == 1
                         ? kBlockRows
                         : std::clamp(round_up(share, Kernel<typename P::Operand>::kRows), kLeastRows, kBlockRows);
    helpers_.each((row_count + size - 1) / size, mine, [&](int block, Scratch& scratch) {
      work(block * size, std::min(size, row_count - block * size), scratch);
    });
  }

  // Threads synchronize only before and after attention. Between, each block of rows goes from one layer's output
  // projection to the next layer's queries, keys and values.
  void forward(const States<P>& states, Scratch& mine) {
    each_block(states.tokens, mine, [&](int first, int row_count, Scratch& scratch) {
      embedding_.embed(states, first, row_count, scratch);
      if (inputs_.are_there()) layer_.keep_x(states, states.embedded, first, row_count);
      layer_.project_qkv(states, 0, first, row_count, scratch);
    });
    if (beside_.is_there())
      each_block(states.tokens, mine, [&](int first, int row_count, Scratch& scratch) {
        beside_.convolve(states, first, row_count, scratch);
      });
    const std::vector<Queries> queries = attention_.parts(states.batch, kAll);
    const int last = model_.layer_count - 1;
    for (int i = 0; i < last; i++) {
      attend(states, i, queries, mine);
      finish(states, i, states.tokens, mine, [&](int first, int row_count, Scratch& scratch) {
        if (i + 1 == model_.first_decoding) begin_decoding(states, first, row_count);
        layer_.project_qkv(states, i + 1, first, row_count, scratch);
      });
    }
    attend(states, last, states.needed == kAll ? queries : attention_.parts(states.batch, states.needed), mine);
    if (states.needed != kAll) gather_needed(states);
    const int row_count = states.needed == kAll ? states.tokens : states.batch.sequences;
    finish(states, last, row_count, mine, [&](int first, int row_count, Scratch&) {
      if (model_.first_decoding < 0) layer_.normalize_x(states, model_.final_norm, first, row_count);
    });
  }

  // Keep the encoder's states, and embed the decoder's tokens in their place.
  void begin_decoding(const States<P>& states, int first, int row_count) const {
    layer_.normalize_x(states, model_.final_norm, first, row_count);
    layer_.keep_x(states, states.encoded, first, row_count);
    embedding_.embed_decoded(states, first, row_count);
  }

  // Additions to the output of a layer.
  void end_layer(const States<P>& states, int i, int first, int rows, Scratch& scratch) const {
    if (i == 0 && beside_.is_there()) beside_.add(states, first, rows);
    if (inputs_.are_there()) inputs_.add(states, i, first, rows, scratch);
  }

  // The rest of a layer after attention, and `next` for each block of rows.
  template <class Next>
  void finish(const States<P>& states, int i, int row_count, Scratch& mine, Next next) {
    if (model_.layers[i].experts.count) return mix(states, i, row_count, mine, next);
    each_block(row_count, mine, [&](int first, int rows, Scratch& scratch) {
      layer_.finish_layer(states, i, first, rows, scratch);
      end_layer(states, i, first, rows, scratch);
      next(first, rows, scratch);
    });
  }

  // The same with experts. Threads synchronize before and after these.
  template <class Next>
  void mix(const States<P>& states, int i, int row_count, Scratch& mine, Next next) {
    each_block(row_count, mine, [&](int first, int rows, Scratch& scratch) {
      if (model_.parallel) mixture_.route(states, i, first, rows, scratch);
      layer_.add_attention(states, i, first, rows, scratch);
      if (!model_.parallel) mixture_.route(states, i, first, rows, scratch);
    });
    for (int start = 0; start < row_count; start += kMixtureRows) {
      const int at_once = std::min(kMixtureRows, row_count - start);
      const std::vector<ExpertTask> tasks = mixture_.tasks(states, i, start, at_once);
      helpers_.each(static_cast<int>(tasks.size()), mine,
                    [&](int task, Scratch& scratch) { mixture_.compute(states, i, start, tasks[task], scratch); });
      each_block(at_once, mine, [&](int first, int rows, Scratch& scratch) {
        mixture_.add(states, i, start, first, rows, scratch);
        layer_.normalize_x(states, model_.layers[i].ffn_end, start + first, rows);
        end_layer(states, i, start + first, rows, scratch);
        next(start + first, rows, scratch);
      });
    }
  }

  // Move the rows of the needed tokens to the front.
  void gather_needed(const States<P>& states) const {
    for (int s = 0; s < states.batch.sequences; s++) {
      const int token = states.batch.cu_seqlens[s] + needed_token(states.batch, s, states.needed);
      if (token == s) continue;
      std::copy_n(states.x.row(token), states.x.stride, states.x.row(s));
      std::copy_n(states.narrow.row(token), states.narrow.stride, states.narrow.row(s));
      std::copy_n(states.context.row(token), states.context.stride, states.context.row(s));
      if (beside_.is_there())
        std::copy_n(states.convolved.row(token), states.convolved.stride, states.convolved.row(s));
      if (inputs_.are_there()) std::copy_n(states.embedded.row(token), states.embedded.stride, states.embedded.row(s));
    }
  }

  // The contexts of a layer: of these queries, or of all tokens by a convolution.
  void attend(const States<P>& states, int layer, const std::vector<Queries>& queries, Scratch& mine) {
    const int tasks = attention_.tasks(layer, queries);
    if (model_.layers[layer].taps) {
      helpers_.each(states.batch.sequences, mine,
                    [&](int sequence, Scratch&) { convolution_.convolve(states, model_.layers[layer], sequence); });
    } else if (states.tokens < 2 * kLeastRows) {
      for (int task = 0; task < tasks; task++) attention_.attend(states, layer, queries, task, mine);
    } else {
      helpers_.each(tasks, mine,
                    [&](int task, Scratch& scratch) { attention_.attend(states, layer, queries, task, scratch); });
    }
  }

  void pool(const States<P>& states, int sequence, const HeadLayers& head, const Pooling& pooling, float* out,
            Scratch& scratch) {
    const int start = states.batch.cu_seqlens[sequence], length = length_of(states.batch, sequence);
    const int skipped = model_.include_prompt ? 0 : std::min(states.batch.prompt_tokens[sequence], length - 1);
    const int width = head.width(model_.hidden_size);
    pooling.begin(out, width);
    for (int first = skipped; first < length; first += kBlockRows) {
      const int row_count = std::min(kBlockRows, length - first);
      const MatrixView<float> outputs =
          head.apply({states.x.row(start + first), states.x.stride}, model_.hidden_size, row_count, scratch);
      for (int i = 0; i < row_count; i++) pooling.add(outputs.row(i), first + i, skipped, length, out, width);
    }
    pooling.end(skipped, length, out, width);
  }

  const BeiModel& model_;
  const Embedding<P> embedding_;
  const LayerSteps<P> layer_;
  const Attention<P> attention_;
  const Convolution<P> convolution_;
  const BesideFirstLayer<P> beside_;
  const Mixture<P> mixture_;
  const LayerInputs<P> inputs_;
  FreeList<Memory> memories_;
  FreeList<Scratch> scratches_;
  HelperPool helpers_;
};

}  // namespace
}  // namespace bei
