// The answers to Python before it fills a structure or packs a matrix.
#include <cstddef>
#include <cstdint>

#include "abi.h"
#include "tile.h"

namespace {

#define BEI_STRUCTURE(kind) {#kind, 0, sizeof(Bei##kind)}
#define BEI_FIELD(kind, field) {#kind "." #field, offsetof(Bei##kind, field), sizeof(Bei##kind::field)}

constexpr BeiField kFields[] = {
    BEI_STRUCTURE(Linear),
    BEI_FIELD(Linear, panels),
    BEI_FIELD(Linear, scales),
    BEI_FIELD(Linear, sums),
    BEI_FIELD(Linear, bias),
    BEI_FIELD(Linear, input_scales),
    BEI_FIELD(Linear, inputs),
    BEI_FIELD(Linear, outputs),
    BEI_FIELD(Linear, precision),
    BEI_FIELD(Linear, activation),
    BEI_STRUCTURE(Norm),
    BEI_FIELD(Norm, weight),
    BEI_FIELD(Norm, bias),
    BEI_FIELD(Norm, size),
    BEI_FIELD(Norm, rms),
    BEI_FIELD(Norm, eps),
    BEI_STRUCTURE(HeadLayer),
    BEI_FIELD(HeadLayer, kind),
    BEI_FIELD(HeadLayer, adds_input),
    BEI_FIELD(HeadLayer, linear),
    BEI_FIELD(HeadLayer, residual),
    BEI_FIELD(HeadLayer, norm),
    BEI_STRUCTURE(Experts),
    BEI_FIELD(Experts, up),
    BEI_FIELD(Experts, down),
    BEI_FIELD(Experts, router),
    BEI_FIELD(Experts, bias),
    BEI_FIELD(Experts, count),
    BEI_FIELD(Experts, chosen),
    BEI_FIELD(Experts, intermediate_size),
    BEI_FIELD(Experts, gated),
    BEI_FIELD(Experts, normalized),
    BEI_FIELD(Experts, alpha),
    BEI_FIELD(Experts, limit),
    BEI_STRUCTURE(Layer),
    BEI_FIELD(Layer, qkv),
    BEI_FIELD(Layer, out),
    BEI_FIELD(Layer, up),
    BEI_FIELD(Layer, down),
    BEI_FIELD(Layer, attention_in),
    BEI_FIELD(Layer, attention_out),
    BEI_FIELD(Layer, attention_again),
    BEI_FIELD(Layer, attention_end),
    BEI_FIELD(Layer, ffn_in),
    BEI_FIELD(Layer, ffn_out),
    BEI_FIELD(Layer, ffn_end),
    BEI_FIELD(Layer, query_norm),
    BEI_FIELD(Layer, key_norm),
    BEI_FIELD(Layer, bias_by_distance),
    BEI_FIELD(Layer, taps),
    BEI_FIELD(Layer, sinks),
    BEI_FIELD(Layer, window),
    BEI_FIELD(Layer, rotary),
    BEI_FIELD(Layer, tap_count),
    BEI_FIELD(Layer, first_tap),
    BEI_FIELD(Layer, experts),
    BEI_STRUCTURE(Model),
    BEI_FIELD(Model, precision),
    BEI_FIELD(Model, vocab_size),
    BEI_FIELD(Model, hidden_size),
    BEI_FIELD(Model, heads),
    BEI_FIELD(Model, kv_heads),
    BEI_FIELD(Model, head_size),
    BEI_FIELD(Model, intermediate_size),
    BEI_FIELD(Model, max_tokens),
    BEI_FIELD(Model, type_count),
    BEI_FIELD(Model, embedding_size),
    BEI_FIELD(Model, causal),
    BEI_FIELD(Model, gated),
    BEI_FIELD(Model, tokens_are_bf16),
    BEI_FIELD(Model, dropped_token),
    BEI_FIELD(Model, attention_scale),
    BEI_FIELD(Model, soft_cap),
    BEI_FIELD(Model, embedding_scale),
    BEI_FIELD(Model, query_growth),
    BEI_FIELD(Model, residual_scale),
    BEI_FIELD(Model, query_trained),
    BEI_FIELD(Model, parallel),
    BEI_FIELD(Model, tokens),
    BEI_FIELD(Model, positions),
    BEI_FIELD(Model, types),
    BEI_FIELD(Model, embedding_norm),
    BEI_FIELD(Model, final_norm),
    BEI_FIELD(Model, project),
    BEI_FIELD(Model, layers),
    BEI_FIELD(Model, layer_count),
    BEI_FIELD(Model, rotary_sizes),
    BEI_FIELD(Model, token_head_layers),
    BEI_FIELD(Model, head_layers),
    BEI_FIELD(Model, token_head_layer_count),
    BEI_FIELD(Model, head_layer_count),
    BEI_FIELD(Model, modes),
    BEI_FIELD(Model, mode_count),
    BEI_FIELD(Model, include_prompt),
    BEI_FIELD(Model, input_peaks),
    BEI_STRUCTURE(Batch),
    BEI_FIELD(Batch, input_ids),
    BEI_FIELD(Batch, token_types),
    BEI_FIELD(Batch, cu_seqlens),
    BEI_FIELD(Batch, prompt_tokens),
    BEI_FIELD(Batch, attended),
    BEI_FIELD(Batch, rotaries),
    BEI_FIELD(Batch, parents),
    BEI_FIELD(Batch, sequences),
    BEI_STRUCTURE(Field),
    BEI_FIELD(Field, name),
    BEI_FIELD(Field, offset),
    BEI_FIELD(Field, size),
    BEI_STRUCTURE(Layout),
    BEI_FIELD(Layout, lanes),
    BEI_FIELD(Layout, panel),
    BEI_FIELD(Layout, word_multiple),
    BEI_FIELD(Layout, row_group),
    BEI_FIELD(Layout, largest),
    BEI_FIELD(Layout, largest_pair),
    {nullptr, 0, 0},
};

template <class T>
constexpr BeiLayout layout_of(float largest, float largest_pair) {
  return {bei::kLanes, bei::kPanel, bei::kWordMultiple<T>, bei::kPerWord<T>, largest, largest_pair};
}

}  // namespace

extern "C" {

const BeiField* bei_abi() noexcept { return kFields; }

BeiLayout bei_layout(int32_t precision) noexcept {
  switch (precision) {
    case BEI_BF16:
      return layout_of<bei::bf16>(0, 0);
    case BEI_INT8:
      return layout_of<uint8_t>(bei::kLargestWeight, bei::kLargestPair);
    default:
      return layout_of<float>(0, 0);
  }
}

}  // extern "C"
