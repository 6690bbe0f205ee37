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
#include "encoder/sharing.h"
#include "encoder/states.h"

namespace bei {
namespace {

template <class P>
class PrecisionEncoder final : public BeiEncoder {
  using Stored = typename P::Stored;

 public:
  PrecisionEncoder(const BeiModel& model, const BeiMachine& machine, const int32_t* allowed)
      : model_(model),
        machine_(machine),
        embedding_(model),
        layer_(model),
        attention_(model),
        convolution_(model),
        beside_(model),
        mixture_(model),
        inputs_(model),
        helpers_(machine.threads, allowed) {}

  void pooled(const BeiBatch& batch, float* rows) override {
    const HeadLayers token_head{model_.token_head_layers, model_.token_head_layer_count};
    const HeadLayers head{model_.head_layers, model_.head_layer_count};
    const Pooling pooling{model_.modes, model_.mode_count};
    const int width = token_head.width(model_.hidden_size) * pooling.count, row_size = head.width(width);
    Run run(*this, batch, token_head.count == 0 ? only_token(pooling) : kAll);
    RowBuffer pooled;  // not reused: SPLADE needs a number for each sequence and each word of the vocabulary
    MatrixView<float> vectors = run.states.x;
    if (run.states.needed == kAll) {
      vectors = pooled.get<float>(batch.sequences, width);
      run.running.each(batch.sequences, [&](int sequence, Scratch& scratch) {
        pool(run.states, sequence, token_head, pooling, vectors.row(sequence), scratch);
      });
    }
    each_range(batch.sequences, run.running, [&](int first, int count, Scratch& scratch) {
      const MatrixView<float> out = head.apply({vectors.row(first), vectors.stride}, width, count, scratch);
      for (int i = 0; i < count; i++)
        std::copy_n(out.row(i), row_size, rows + static_cast<size_t>(first + i) * row_size);
    });
  }

  void tokens(const BeiBatch& batch, float* states) override {
    const HeadLayers head{model_.token_head_layers, model_.token_head_layer_count};
    const int size = head.width(model_.hidden_size);
    Run run(*this, batch, kAll);
    const int rows = batch.marked ? batch.marked_count : run.states.tokens;
    for (int i = 0; batch.marked && i < rows; i++)  // no token comes before its place among the marked ones
      if (batch.marked[i] != i)
        std::copy_n(run.states.x.row(batch.marked[i]), run.states.x.stride, run.states.x.row(i));
    each_range(rows, run.running, [&](int first, int count, Scratch& scratch) {
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
    BlockMemory block;
  };

  Needed only_token(const Pooling& pooling) const {
    if (pooling.count != 1) return kAll;
    if (pooling.modes[0] == BEI_LAST) return kLast;
    return pooling.modes[0] == BEI_FIRST && model_.include_prompt ? kFirst : kAll;
  }

  // A batch and its forward pass, which runs in the constructor. Afterward x holds the final states: of all tokens, or of
  // the one needed token of each sequence. The last layer of the other tokens is not computed.
  struct Run {
    typename FreeList<Memory>::Lease memory;
    typename FreeList<Scratch>::Lease scratch;
    const EndOfSession end;
    HelperPool::Running running;
    const States<P> states;

    Run(PrecisionEncoder& encoder, const BeiBatch& batch, Needed needed)
        : memory(encoder.memories_),
          scratch(encoder.scratches_),
          end{scratch->session},
          running(encoder.helpers_, *scratch),
          states(encoder.states(*memory, batch, needed)) {
      encoder.forward(states, {running, memory->block, encoder.shares_columns(states, running)});
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

  // Whether threads share the columns of products. Fewer rows than two ranges are not shared otherwise.
  bool shares_columns(const States<P>& states, HelperPool::Running& running) const {
    const int threads = running.are_prompt() ? running.threads() : 1;
    const BeiSharing sharing =
        threads > 1 ? sharing_of(model_, machine_, states.tokens, threads) : BeiSharing{1, 0, 0, 0, 0};
    if (sharing.by_columns) running.need_prompt();
    if (sharing.by_columns || states.tokens < 2 * kLeastRows) running.limit(sharing.threads);
    return sharing.by_columns;
  }

  // The threads of a batch, and what they share: blocks of rows, or else each step of one block.
  struct Threads {
    HelperPool::Running& running;
    BlockMemory& memory;
    const bool share_columns;
  };

  // Run `work` on ranges of rows (sharing.h).
  template <class Fn>
  static void each_range(int row_count, HelperPool::Running& running, const Fn& work) {
    const int size = range_size(row_count, running.threads(), Kernel<typename P::Operand>::kRows);
    running.each((row_count + size - 1) / size, [&](int range, Scratch& scratch) {
      work(range * size, std::min(size, row_count - range * size), scratch);
    });
  }

  // Run `work` on blocks of the rows from `start` on; or on one of them all, each of whose steps is shared.
  template <class Fn>
  static void each_block(int start, int row_count, const Threads& threads, const Fn& work) {
    if (threads.share_columns) return work(Block(start, row_count, threads.memory, threads.running));
    each_range(row_count, threads.running,
               [&](int first, int count, Scratch& scratch) { work(Block(start + first, count, scratch)); });
  }

  // Threads that share rows synchronize only before and after attention. Between, each block goes from one layer's output
  // projection to the next layer's queries, keys and values.
  void forward(const States<P>& states, const Threads& threads) {
    embed(states, threads);
    const std::vector<Queries> queries = attention_.parts(states.batch, kAll);
    const int last = model_.layer_count - 1;
    for (int i = 0; i < last; i++) {
      attend(states, i, queries, threads.running);
      finish(states, i, states.tokens, threads, [&](const Block& block, const Work& end) {
        layer_.project_qkv(states, i + 1, block, [&](int from, int to, Scratch& scratch) {
          end(from, to, scratch);
          if (i + 1 == model_.first_decoding) begin_decoding(states, block.first + from, to - from);
        });
      });
    }
    attend(states, last, states.needed == kAll ? queries : attention_.parts(states.batch, states.needed),
           threads.running);
    if (states.needed != kAll) gather_needed(states);
    const int row_count = states.needed == kAll ? states.tokens : states.batch.sequences;
    finish(states, last, row_count, threads, [&](const Block& block, const Work& end) {
      block.rows([&](int from, int to, Scratch& scratch) {
        end(from, to, scratch);
        if (model_.first_decoding < 0) layer_.normalize_x(states, model_.final_norm, block.first + from, to - from);
      });
    });
  }

  // The states before the first layer, and its queries, keys and values.
  void embed(const States<P>& states, const Threads& threads) {
    each_block(0, states.tokens, threads, [&](const Block& block) {
      embedding_.embed(states, block);
      layer_.project_qkv(states, 0, block, [&](int from, int to, Scratch&) {
        if (inputs_.are_there()) layer_.keep_x(states, states.embedded, block.first + from, to - from);
      });
    });
    if (beside_.is_there())
      each_block(0, states.tokens, threads, [&](const Block& block) { beside_.convolve(states, block); });
  }

  // Keep the encoder's states, and embed the decoder's tokens in their place.
  void begin_decoding(const States<P>& states, int first, int row_count) const {
    layer_.normalize_x(states, model_.final_norm, first, row_count);
    layer_.keep_x(states, states.encoded, first, row_count);
    embedding_.embed_decoded(states, first, row_count);
  }

  // The rest of a layer after attention. Calls next(block, end), where `end` ends the layer for rows of the block.
  template <class Next>
  void finish(const States<P>& states, int i, int row_count, const Threads& threads, const Next& next) {
    if (model_.layers[i].experts.count) return mix(states, i, row_count, threads, next);
    each_block(0, row_count, threads, [&](const Block& block) {
      const Ending ending = layer_.finish_layer(states, i, block);
      add_inputs(states, i, block, next,
                 [&](int from, int to, Scratch&) { layer_.end(states, ending, block, from, to); });
    });
  }

  // The same with experts. Threads synchronize before and after these.
  template <class Next>
  void mix(const States<P>& states, int i, int row_count, const Threads& threads, const Next& next) {
    each_block(0, row_count, threads, [&](const Block& block) {
      const auto route = [&](int from, int to, Scratch& scratch) {
        mixture_.route(states, i, block.first + from, to - from, scratch);
      };
      if (model_.parallel) block.rows(route);
      layer_.add_attention(states, i, block, model_.parallel ? Work(as_they_are) : Work(route));
    });
    for (int start = 0; start < row_count; start += kMixtureRows) {
      const int at_once = std::min(kMixtureRows, row_count - start);
      const std::vector<ExpertTask> tasks = mixture_.tasks(states, i, start, at_once);
      threads.running.each(static_cast<int>(tasks.size()), [&](int task, Scratch& scratch) {
        mixture_.compute(states, i, start, tasks[task], scratch);
      });
      each_block(start, at_once, threads, [&](const Block& block) {
        add_inputs(states, i, block, next, [&](int from, int to, Scratch& scratch) {
          const int first = block.first + from;
          mixture_.add(states, i, start, first - start, to - from, scratch);
          layer_.normalize_x(states, model_.layers[i].ffn_end, first, to - from);
        });
      });
    }
  }

  // Additions to the output of a layer, which `end` makes, and `next`.
  template <class Next>
  void add_inputs(const States<P>& states, int i, const Block& block, const Next& next, const Work& end) const {
    const auto end_layer = [&](int from, int to, Scratch& scratch) {
      end(from, to, scratch);
      if (i == 0 && beside_.is_there()) beside_.add(states, block.first + from, to - from);
    };
    if (!inputs_.are_there()) return next(block, end_layer);
    inputs_.add(states, i, block, end_layer);
    next(block, as_they_are);
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
  void attend(const States<P>& states, int layer, const std::vector<Queries>& queries, HelperPool::Running& running) {
    if (model_.layers[layer].taps)
      return running.each(states.batch.sequences, [&](int sequence, Scratch&) {
        convolution_.convolve(states, model_.layers[layer], sequence);
      });
    running.each(attention_.tasks(layer, queries),
                 [&](int task, Scratch& scratch) { attention_.attend(states, layer, queries, task, scratch); });
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
  const BeiMachine machine_;
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
