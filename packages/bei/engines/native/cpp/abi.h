// The structures between Python and the engine: plain C. engines/native/abi.py mirrors it, field by field.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
#define BEI_NOEXCEPT noexcept
extern "C" {
#else
#define BEI_NOEXCEPT
#endif
#pragma GCC visibility push(default)

enum { BEI_FP32, BEI_BF16, BEI_INT8, BEI_INT4 };
enum { BEI_STORED_FP32, BEI_STORED_BF16, BEI_STORED_FP16 };
enum { BEI_IDENTITY, BEI_GELU, BEI_GELU_TANH, BEI_RELU, BEI_SILU, BEI_TANH, BEI_SIGMOID };
enum { BEI_LAYER, BEI_RMS, BEI_AFFINE };
enum { BEI_DENSE, BEI_LAYER_NORM, BEI_NORMALIZE, BEI_LOG1P_RELU, BEI_INT8_TANH };
enum { BEI_FIRST, BEI_LAST, BEI_MEAN, BEI_MAX, BEI_MEAN_SQRT_LEN, BEI_WEIGHTED_MEAN, BEI_SUM };
enum { BEI_OK, BEI_BAD_BATCH, BEI_OUT_OF_MEMORY, BEI_FAILED };

// y = activation(x * weights + bias). `panels` is the matrix as kernel/pack.cpp lays it out, aligned to 64 bytes;
// `scales` and `sums` (the sum of each column's bytes) are those of INT8, null otherwise; `input_scales`, null for none,
// are multiplied into its inputs before they are rounded, and are divided out of the matrix. Then the inputs are rotated
// (encoder/hadamard.h), `hadamard` of them at a time, if these are two or more.
// Vectors are as long as the outputs, rounded up to a panel's lanes.
typedef struct {
  const void* panels;
  const float *scales, *sums, *bias, *input_scales;
  int32_t inputs, outputs, precision, activation, hadamard;
} BeiLinear;

// Layer norm, RMS norm, or weight and bias alone; a null bias is none, and a null weight is no norm at all.
typedef struct {
  const float *weight, *bias;
  int32_t size, kind;
  float eps;
} BeiNorm;

// `adds_input`: the input is added to the output of a dense layer; its product with `residual` where that has panels.
typedef struct {
  int32_t kind, adds_input;
  BeiLinear linear, residual;
  BeiNorm norm;
} BeiHeadLayer;

// A mixture of experts (architectures/spec.py); `count` is zero for none. `up` and `down` have a matrix of each expert;
// `bias` is added to the sum of outputs, null for none. Where `limit` is positive, gates are clamped to it.
typedef struct {
  const BeiLinear *up, *down;
  BeiLinear router;
  const float* bias;
  int32_t count, chosen, intermediate_size, gated, normalized;
  float alpha, limit;
} BeiExperts;

// An MLP of a bottleneck, and the norm of the sum that it is added to.
typedef struct {
  BeiLinear up, down;
  BeiNorm norm;
} BeiNarrowMlp;

// A layer that is narrow inside (architectures/layer_parts.py: Bottleneck).
typedef struct {
  BeiLinear enter, shared, query_key, value, out, leave;
  BeiNorm enter_norm, shared_norm, out_norm, leave_norm;
  const BeiNarrowMlp* mlps;
  int32_t mlp_count;
} BeiBottleneck;

// A layer's own input from the embeddings (architectures/layer_parts.py: LayerInputs). `project` makes it, normed by
// `project_norm`, and the layer's output becomes (x + norm(out(activation of gate(x) times it))) * scale.
typedef struct {
  BeiLinear project, gate, out;
  BeiNorm project_norm, norm;
  float scale;
} BeiLayerInput;

// Norms stand where architectures/spec.py says. `query_norm`, `key_norm` and `value_norm` are of a head, or of all heads, by
// their size. A key head and a value head, of `head_size` numbers each, are shared by heads / kv_heads query heads. With
// `causal` a token attends to no later one. `bias_by_distance` is [heads, 2 * max_tokens - 1], by the key's position less
// the query's; null where there is none. `position_keys` and `position_queries`, [rows, heads * head_size], are the vectors of
// relative positions, null where there are none: those of keys are multiplied with the queries, those of queries with the
// keys. `segments` and `segment_bias`, [heads, head_size] and [heads], null for none: a query's product with its head's
// vector, and the bias, are added to the scores of keys whose type is another. `sinks` has a number for each head, null for
// none. `taps`, [tap_count, hidden_size], are those of a convolution in place of attention, null where there is none; the
// first is of the token at the distance `first_tap`. `window` is the largest distance that is seen, and `rotary` the number
// of the layer's table; negative for none.
//
// Where `key_value` has panels it makes keys and values of the encoder's states, and `qkv` makes queries alone. A layer
// without `up` and experts ends after attention. `bottleneck`, null for none, stands in place of products and norms;
// `input`, null for none, comes last.
typedef struct {
  BeiLinear qkv, key_value, out, up, down;
  BeiNorm attention_in, attention_out, attention_again, attention_end, ffn_in, ffn_out, ffn_end, query_norm, key_norm,
      value_norm;
  const float *bias_by_distance, *position_keys, *position_queries, *segments, *segment_bias, *taps, *sinks;
  int32_t kv_heads, head_size, causal, window, rotary, tap_count, first_tap;
  BeiExperts experts;
  const BeiBottleneck* bottleneck;
  const BeiLayerInput* input;
} BeiLayer;

// `tokens` is [vocab_size, embedding_size] in `token_precision`; rows of INT8 have their scales in `token_scales`, which is
// null otherwise. `positions` (from the first token's on) and `types` are [rows, embedding_size] in float32, null where
// there are none. `project` has null panels
// where embedding and hidden size are one. With `trigrams` it reads the embeddings of the next token, of a token and of the
// one before, side by side; `positions`, `types` and the norm come after it, and are as wide as its outputs.
// `dropped_token` is negative for none. `soft_cap` is zero for none, and so is `query_growth`, the strength of
// architectures/positions.py: QueryGrowth; `query_trained` is at least one. Where `gated`, a vector of gates and a vector of
// gated values alternate in the columns of `up`. `rotary_sizes`: how many numbers of an attention head each table rotates.
// `position_rows`, [2 * max_tokens - 1], has the row of the vectors of relative positions for each distance of a query from
// a key, null where there are none. `convolution`, whose inputs are the embeddings of
// `convolution_taps` tokens around each one, is added to the output of the first layer, and the sum is normed; null panels
// for none.
//
// A decoder's layers begin at the number `first_decoding`, negative for none; those before it are the encoder's. The decoder
// reads the token before each one, `decoder_start` for the first; `decoder_positions`, [rows, hidden_size], are added, and
// the sum is normed.
//
// `input_peaks`, null where nobody asks, is [layers, 2, hidden_size] and takes the largest size of each input of `qkv` and of
// `up`, or of the next layer's `key_value` for a layer without `up`; of one thread only.
typedef struct {
  int32_t precision, vocab_size, hidden_size, heads, intermediate_size, max_tokens;
  int32_t type_count, embedding_size, gated, token_precision, dropped_token, trigrams;
  float attention_scale, soft_cap, embedding_scale, query_growth, residual_scale;
  int32_t query_trained, parallel;
  const void* tokens;
  const float *token_scales, *positions, *types;
  BeiNorm embedding_norm, final_norm;
  BeiLinear project, convolution;
  BeiNorm convolution_norm;
  const int32_t* position_rows;
  const BeiLayer* layers;
  int32_t layer_count, convolution_taps, first_decoding, decoder_start;
  const float* decoder_positions;
  BeiNorm decoder_norm;
  const int32_t* rotary_sizes;
  const BeiHeadLayer *token_head_layers, *head_layers;
  int32_t token_head_layer_count, head_layer_count;
  const int32_t* modes;
  int32_t mode_count, include_prompt;
  float* input_peaks;
} BeiModel;

// engines/base.py says what each is; engines/rotary.py makes the tables, [tokens, size] each. `parents`, null for none,
// are the sequences that each one continues, negative for none (engines/prefixes.py). `marked`, null for all, are the
// `marked_count` tokens whose states are wanted, in their order.
typedef struct {
  const int32_t *input_ids, *token_types, *cu_seqlens, *prompt_tokens, *attended;
  const float* const* rotaries;
  const int32_t *parents, *marked;
  int32_t sequences, marked_count;
} BeiBatch;

// Where a field lies in its structure, both in bytes: `Linear.panels`; or the structure itself, `Linear`, at 0.
typedef struct {
  const char* name;
  int32_t offset, size;
} BeiField;

// How the library reads packed matrices of one precision. A vector has `lanes` columns, a panel `panel` of them. The
// inputs of a column are filled up to a multiple of `word_multiple`, and `row_group` of them lie together. Bytes have
// scales, with which no weight is larger than `largest` in size, and no two neighbors of one sign sum to more than
// `largest_pair` before they are rounded: their products are summed in 16 bits. Zero for no such bound. `block_rows` rows
// go through a layer together.
typedef struct {
  int32_t lanes, panel, word_multiple, row_group, block_rows;
  float largest, largest_pair;
} BeiLayout;

// A matrix to pack. `rows`, [columns], are the inputs of each column, numbers of the type `stored`; null for a column of
// zeros. `input_peaks`, [inputs], null for none, are the largest sizes of the product's inputs: those that reach far are
// scaled down by `input_scales`, [inputs], and their weights up; in INT4, which has no `input_scales`, their weights are rounded
// less. `hadamard` is that of BeiLinear. `panels` takes the matrix in the layout's order; `scales` and
// `sums`, [columns], null for none, are those of bytes.
typedef struct {
  const void* const* rows;
  const float* input_peaks;
  int32_t stored, precision, inputs, columns, hadamard;
  void* panels;
  float *scales, *sums, *input_scales;
} BeiMatrix;

// The processors of an encoder: how many threads run at once, helpers included; the bytes of the second and of the last
// cache, of each processor (engines/processor.py); and the microseconds of a meeting of threads, for each, and of waking one.
typedef struct {
  int32_t threads;
  int64_t second_cache, last_cache;
  float meeting, waking;
} BeiMachine;

// How idle threads share a batch: `by_columns` of products, in so many meetings, or else by rows. `alone` and `shared` are
// the estimated microseconds of its layers on one thread and on `threads`.
typedef struct {
  int32_t threads, by_columns, meetings;
  float alone, shared;
} BeiSharing;

typedef struct BeiEncoder BeiEncoder;

// All structures above and their fields, to compare; the last one has no name.
const BeiField* bei_abi(void) BEI_NOEXCEPT;
BeiLayout bei_layout(int32_t precision) BEI_NOEXCEPT;

// The layout of any level by its name in engines/native/levels.py; it has no lanes where there is no such level.
BeiLayout bei_layout_of(const char* level, int32_t precision) BEI_NOEXCEPT;

// Packs a matrix for any level. Safe from several threads.
int32_t bei_pack(const BeiLayout* layout, const BeiMatrix* matrix) BEI_NOEXCEPT;

// The sharing of a batch of so many tokens that finds all other threads idle.
BeiSharing bei_sharing(const BeiModel* model, const BeiMachine* machine, int32_t tokens) BEI_NOEXCEPT;

// The model's arrays must outlive the encoder. `allowed`, null for no other bound than the machine's threads, is how many may
// run now: helpers read it before each task, and it may be written at any time. Null where it cannot be made.
BeiEncoder* bei_encoder_create(const BeiModel* model, const BeiMachine* machine, const int32_t* allowed) BEI_NOEXCEPT;
void bei_encoder_destroy(BeiEncoder* encoder) BEI_NOEXCEPT;

// Safe from several threads at a time. rows: float32 [sequences, row size].
int32_t bei_encoder_pooled(BeiEncoder* encoder, const BeiBatch* batch, float* rows) BEI_NOEXCEPT;

// The same; states: float32 [tokens, token size], of the marked tokens if any are marked.
int32_t bei_encoder_tokens(BeiEncoder* encoder, const BeiBatch* batch, float* states) BEI_NOEXCEPT;

// out[row_count, outputs] = activation(x[row_count, inputs] * weights + bias), for tests and benchmarks.
int32_t bei_linear(const BeiLinear* linear, const float* x, int32_t row_count, float* out) BEI_NOEXCEPT;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
