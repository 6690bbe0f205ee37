// The encoder in one precision. Each precision has a .cpp file of its own, so that they are compiled in parallel.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "activation.h"
#include "attention.h"
#include "batch.h"
#include "encoder.h"
#include "head.h"
#include "rows.h"

namespace bei {
namespace {

constexpr int kBlockRows =
    96;  // rows that go through a layer together: their numbers stay in the cache from step to step
constexpr int kLeastRows = 24;  // rows that are worth a thread of their own

// The types of a product's operands, and of the values stored between products.
struct Fp32 {
  using Operand = float;
  using Stored = float;
};
struct Bf16 {
  using Operand = Half;
  using Stored = Half;
};
struct Int8 {
  using Operand = uint8_t;
  using Stored = Half;
};

template <class P>
class PrecisionEncoder final : public BeiEncoder {
  using Operand = typename P::Operand;
  using Stored = typename P::Stored;

 public:
  PrecisionEncoder(const BeiModel& model, int threads) : model_(model), helpers_(threads) {}

  void pooled(const BeiBatch& batch, float* rows) override {
    const HeadLayers token_head{model_.token_head_layers, model_.token_head_layer_count};
    const HeadLayers head{model_.head_layers, model_.head_layer_count};
    const Pooling pooling{model_.modes, model_.mode_count};
    const int width = token_head.width(model_.hidden_size) * pooling.count, row_size = head.width(width);
    const Run run(*this, batch, token_head.count == 0 ? only_token(pooling) : kAll);
    RowBuffer pooled;  // not reused: SPLADE needs a number for each sequence and each word of the vocabulary
    MatrixView<float> vectors = run.x;
    if (run.needed == kAll) {
      vectors = pooled.get<float>(batch.sequences, width);
      helpers_.each(batch.sequences, *run.scratch, [&](int sequence, Scratch& scratch) {
        pool(run, sequence, token_head, pooling, vectors.row(sequence), scratch);
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
    each_block(run.tokens, *run.scratch, [&](int first, int count, Scratch& scratch) {
      const MatrixView<float> out = head.apply({run.x.row(first), run.x.stride}, model_.hidden_size, count, scratch);
      for (int i = 0; i < count; i++) std::copy_n(out.row(i), size, states + static_cast<size_t>(first + i) * size);
    });
  }

  bool fits(const BeiBatch& batch) const override { return bei::fits(batch, model_); }

 private:
  // A batch's states: x is the residual stream; qkv and context are those of the current layer.
  struct Memory {
    RowBuffer x, qkv, context;
  };

  // The queries [first, last) of one sequence, of the heads that share one key and value.
  struct AttentionTask {
    int sequence, kv_head, first, last;
  };

  // The tokens whose final states are needed: all, or one per sequence.
  enum Needed { kAll, kFirst, kLast };

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
    const BeiBatch& batch;
    const Needed needed;
    const int tokens;
    MatrixView<float> x;
    MatrixView<Stored> qkv, context;

    Run(PrecisionEncoder& encoder, const BeiBatch& batch, Needed needed)
        : running(encoder.helpers_),
          memory(encoder.memories_),
          scratch(encoder.scratches_),
          batch(batch),
          needed(needed),
          tokens(batch.cu_seqlens[batch.sequences]),
          x(memory->x.template get<float>(tokens, encoder.model_.hidden_size)),
          qkv(memory->qkv.template get<Stored>(tokens, encoder.qkv_size())),
          context(memory->context.template get<Stored>(tokens, encoder.query_size())) {
      encoder.forward(*this);
    }
  };

  // Run `work` on blocks of rows, small enough for two blocks to each idle thread.
  template <class Work>
  void each_block(int row_count, Scratch& mine, Work work) {
    const int threads = 1 + helpers_.idle(), share = (row_count + 2 * threads - 1) / (2 * threads);
    const int size = threads == 1 ? kBlockRows : std::clamp(round_up(share, kTileRows), kLeastRows, kBlockRows);
    helpers_.each((row_count + size - 1) / size, mine, [&](int block, Scratch& scratch) {
      work(block * size, std::min(size, row_count - block * size), scratch);
    });
  }

  // Threads synchronize only before and after attention. Between, each block of rows goes from one layer's output
  // projection to the next layer's queries, keys and values.
  void forward(Run& run) {
    each_block(run.tokens, *run.scratch, [&](int first, int row_count, Scratch& scratch) {
      embed(run, first, row_count, scratch);
      project_qkv(run, 0, first, row_count, scratch);
    });
    const std::vector<AttentionTask> tasks = attention_tasks(run.batch, kAll);
    const int last = model_.layer_count - 1;
    for (int i = 0; i < last; i++) {
      attend(run, i, tasks);
      each_block(run.tokens, *run.scratch, [&](int first, int row_count, Scratch& scratch) {
        finish_layer(run, i, first, row_count, scratch);
        project_qkv(run, i + 1, first, row_count, scratch);
      });
    }
    attend(run, last, run.needed == kAll ? tasks : attention_tasks(run.batch, run.needed));
    if (run.needed != kAll) gather_needed(run);
    const int row_count = run.needed == kAll ? run.tokens : run.batch.sequences;
    each_block(row_count, *run.scratch, [&](int first, int row_count, Scratch& scratch) {
      finish_layer(run, last, first, row_count, scratch);
      normalize_x(run, model_.final_norm, first, row_count);
    });
  }

  // The position in its sequence of the only needed token.
  static int needed_token(const BeiBatch& batch, int sequence, Needed needed) {
    return needed == kFirst ? 0 : length_of(batch, sequence) - 1;
  }

  // Move the rows of the needed tokens to the front.
  void gather_needed(const Run& run) const {
    for (int s = 0; s < run.batch.sequences; s++) {
      const int token = run.batch.cu_seqlens[s] + needed_token(run.batch, s, run.needed);
      if (token == s) continue;
      std::copy_n(run.x.row(token), run.x.stride, run.x.row(s));
      std::copy_n(run.context.row(token), run.context.stride, run.context.row(s));
    }
  }

  // x = project(norm(sum of the embeddings)).
  void embed(const Run& run, int first, int row_count, Scratch& scratch) {
    const int size = model_.embedding_size;
    const bool project = model_.project.panels;
    const MatrixView<float> sums = project ? scratch.head_layers[0].get<float>(row_count, size)
                                           : MatrixView<float>{run.x.row(first), run.x.stride};
    const int32_t* ends = run.batch.cu_seqlens + 1;
    int sequence = static_cast<int>(std::upper_bound(ends, ends + run.batch.sequences, first) - ends);
    for (int row = 0; row < row_count; row++) {
      const int token = first + row;
      while (token >= ends[sequence]) sequence++;
      add_embeddings(run.batch, token, token - run.batch.cu_seqlens[sequence], sums.row(row));
      if (model_.embedding_norm.weight) normalize(model_.embedding_norm, sums.row(row), sums.row(row));
    }
    if (!project) return;
    const MatrixView<Operand> operands = scratch.operands.get<Operand>(row_count, size);
    for (int row = 0; row < row_count; row++) to_operands(sums.row(row), model_.project, operands, row);
    linear(model_.project, operands, row_count, scratch,
           [&](int row, int column, F v) { store(run.x.row(first + row) + column, v); });
  }

  void add_embeddings(const BeiBatch& batch, int token, int position, float* sum) const {
    const size_t size = model_.embedding_size, row = batch.input_ids[token] * size;
    const float* of_position = model_.positions ? model_.positions + position * size : nullptr;
    const float* of_type = model_.types ? model_.types + batch.token_types[token] * size : nullptr;
    const auto add_to = [&](const auto* of_token) {
      for_vectors(model_.embedding_size, [&](int i, int lanes) {
        F v = load_lanes(of_token + i, lanes) * splat(model_.embedding_scale);
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

  void project_qkv(const Run& run, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    linear(layer.qkv, inputs(run, layer.attention_in, layer.qkv, 2 * i, first, row_count, scratch), row_count, scratch,
           [&](int row, int column, F v) { store(run.qkv.row(first + row) + column, v); });
    if (layer.rotary < 0 && !layer.query_norm.weight) return;
    for (int row = first; row < first + row_count; row++) {
      norm_and_rotate(run, layer, layer.query_norm, row, run.qkv.row(row), model_.heads);
      norm_and_rotate(run, layer, layer.key_norm, row, run.qkv.row(row) + query_size(), model_.kv_heads);
    }
  }

  // Norm and rotate the heads of one token.
  void norm_and_rotate(const Run& run, const BeiLayer& layer, const BeiNorm& norm, int token, Stored* x,
                       int heads) const {
    const int size = layer.rotary < 0 ? 0 : model_.rotary_sizes[layer.rotary];
    const float* cos_sin = size ? run.batch.rotaries[layer.rotary] + static_cast<size_t>(token) * size : nullptr;
    for (int head = 0; head < heads; head++, x += model_.head_size) {
      if (norm.weight) rms_norm(norm, x, x);
      if (cos_sin) rotate(x, cos_sin, size / 2);
    }
  }

  // Rows of x, normed, as operands of `weights`. `n` counts the products that read x, for input_peaks.
  MatrixView<Operand> inputs(const Run& run, const BeiNorm& norm, const BeiLinear& weights, int n, int first,
                             int row_count, Scratch& scratch) const {
    const MatrixView<Operand> operands = scratch.operands.get<Operand>(row_count, weights.inputs);
    float* normed = scratch.normed.get<float>(1, weights.inputs).data;
    for (int row = 0; row < row_count; row++) {
      const float* x = run.x.row(first + row);
      if (norm.weight) normalize(norm, x, normed), x = normed;
      to_operands(x, weights, operands, row);
      if (model_.input_peaks) raise(model_.input_peaks + static_cast<size_t>(n) * weights.inputs, x, weights.inputs);
    }
    return operands;
  }

  static void raise(float* peaks, const float* x, int n) {
    for (int i = 0; i < n; i++) peaks[i] = std::max(peaks[i], std::abs(x[i]));
  }

  std::vector<AttentionTask> attention_tasks(const BeiBatch& batch, Needed needed) const {
    std::vector<AttentionTask> tasks;
    for (int s = 0; s < batch.sequences; s++) {
      const int begin = needed == kAll ? 0 : needed_token(batch, s, needed);
      const int end = needed == kAll ? length_of(batch, s) : begin + 1;
      for (int head = 0; head < model_.kv_heads; head++)
        for (int first = begin; first < end; first += kQueryChunk)
          tasks.push_back({s, head, first, std::min(end, first + kQueryChunk)});
    }
    return tasks;
  }

  void attend(const Run& run, int layer, const std::vector<AttentionTask>& tasks) {
    if (run.tokens < 2 * kLeastRows) {
      for (const AttentionTask& task : tasks) attend(run, layer, task, *run.scratch);
    } else {
      helpers_.each(static_cast<int>(tasks.size()), *run.scratch,
                    [&](int task, Scratch& scratch) { attend(run, layer, tasks[task], scratch); });
    }
  }

  void attend(const Run& run, int layer, const AttentionTask& task, Scratch& scratch) const {
    const int start = run.batch.cu_seqlens[task.sequence], heads = model_.heads / model_.kv_heads;
    const int window = model_.layers[layer].window;
    const Stored* qkv = run.qkv.row(start);
    const int query = task.kv_head * heads * model_.head_size, key = query_size() + task.kv_head * model_.head_size;
    KeyValueGroup<Stored> group;
    group.queries = {qkv + query, run.qkv.stride};
    group.keys = {qkv + key, run.qkv.stride};
    group.values = {qkv + key + model_.kv_heads * model_.head_size, run.qkv.stride};
    group.context = {run.context.row(start) + query, run.context.stride};
    group.prefix = prefix_of(run.batch, task.sequence);
    if (group.prefix) {
      const Stored* prefix = run.qkv.row(run.batch.cu_seqlens[parent_of(run.batch, task.sequence)]);
      group.prefix_keys = {prefix + key, run.qkv.stride};
      group.prefix_values = {prefix + key + model_.kv_heads * model_.head_size, run.qkv.stride};
    }
    group.tokens = group.prefix + length_of(run.batch, task.sequence);
    group.attended = group.prefix + run.batch.attended[task.sequence];
    group.heads = heads;
    group.head_size = model_.head_size;
    group.window = window < 0 ? model_.max_tokens : window;
    group.causal = model_.causal;
    group.scale = model_.attention_scale;
    group.soft_cap = model_.soft_cap;
    group.bias_stride = 2 * static_cast<size_t>(model_.max_tokens) - 1;
    const float* biases = model_.bias_by_distance;
    group.bias = biases ? biases + task.kv_head * heads * group.bias_stride + model_.max_tokens - 1 : nullptr;
    attention(group, group.prefix + task.first, group.prefix + task.last, scratch);
  }

  // The rest of a layer after attention; its output is in x.
  void finish_layer(const Run& run, int i, int first, int row_count, Scratch& scratch) const {
    const BeiLayer& layer = model_.layers[i];
    const MatrixView<Stored> context{run.context.row(first), run.context.stride};
    add_to_x(run, layer.out, layer.attention_out, context, first, row_count, scratch);
    normalize_x(run, layer.attention_end, first, row_count);
    const MatrixView<Operand> operands = inputs(run, layer.ffn_in, layer.up, 2 * i + 1, first, row_count, scratch);
    const MatrixView<Stored> inner = scratch.inner.get<Stored>(row_count, model_.intermediate_size);
    with_activation(layer.up.activation, !std::is_same_v<P, Fp32>, [&](auto activation) {
      if (model_.gated) {
        F gate = zero();
        linear(layer.up, operands, row_count, scratch, [&](int row, int column, F v) {
          if (column / kLanes % 2 == 0)
            gate = v;
          else
            store(inner.row(row) + (column - kLanes) / 2, activation(gate) * v);
        });
      } else {
        linear(layer.up, operands, row_count, scratch,
               [&](int row, int column, F v) { store(inner.row(row) + column, activation(v)); });
      }
    });
    add_to_x(run, layer.down, layer.ffn_out, inner, first, row_count, scratch);
    normalize_x(run, layer.ffn_end, first, row_count);
  }

  // x += norm(a * weights).
  void add_to_x(const Run& run, const BeiLinear& weights, const BeiNorm& norm, const MatrixView<Stored>& a, int first,
                int row_count, Scratch& scratch) const {
    const MatrixView<Operand> operands = as_operands(a, weights, row_count, scratch.inner_operands);
    if (!norm.weight) {
      return linear(weights, operands, row_count, scratch, [&](int row, int column, F v) {
        float* x = run.x.row(first + row) + column;
        store(x, load(x) + v);
      });
    }
    const MatrixView<float> outputs = scratch.outputs.get<float>(row_count, weights.outputs);
    linear(weights, operands, row_count, scratch,
           [&](int row, int column, F v) { store(outputs.row(row) + column, v); });
    for (int row = 0; row < row_count; row++) {
      normalize(norm, outputs.row(row), outputs.row(row));
      float* x = run.x.row(first + row);
      for_vectors(norm.size, [&](int j, int) { store(x + j, load(x + j) + load(outputs.row(row) + j)); });
    }
  }

  void normalize_x(const Run& run, const BeiNorm& norm, int first, int row_count) const {
    if (!norm.weight) return;
    for (int row = first; row < first + row_count; row++) normalize(norm, run.x.row(row), run.x.row(row));
  }

  static MatrixView<Operand> as_operands(const MatrixView<Stored>& stored, const BeiLinear& weights, int row_count,
                                         RowBuffer& buffer) {
    if constexpr (std::is_same_v<Operand, Stored>) {
      return stored;
    } else {
      const MatrixView<Operand> operands = buffer.get<Operand>(row_count, weights.inputs);
      for (int row = 0; row < row_count; row++) to_operands(stored.row(row), weights, operands, row);
      return operands;
    }
  }

  void pool(const Run& run, int sequence, const HeadLayers& head, const Pooling& pooling, float* out,
            Scratch& scratch) {
    const int start = run.batch.cu_seqlens[sequence], length = length_of(run.batch, sequence);
    const int skipped = model_.include_prompt ? 0 : std::min(run.batch.prompt_tokens[sequence], length - 1);
    const int width = head.width(model_.hidden_size);
    pooling.begin(out, width);
    for (int first = skipped; first < length; first += kBlockRows) {
      const int row_count = std::min(kBlockRows, length - first);
      const MatrixView<float> states =
          head.apply({run.x.row(start + first), run.x.stride}, model_.hidden_size, row_count, scratch);
      for (int i = 0; i < row_count; i++) pooling.add(states.row(i), first + i, skipped, length, out, width);
    }
    pooling.end(skipped, length, out, width);
  }

  int query_size() const { return model_.heads * model_.head_size; }
  int qkv_size() const { return query_size() + 2 * model_.kv_heads * model_.head_size; }

  const BeiModel& model_;
  FreeList<Memory> memories_;
  FreeList<Scratch> scratches_;
  HelperPool helpers_;
};

}  // namespace
}  // namespace bei
