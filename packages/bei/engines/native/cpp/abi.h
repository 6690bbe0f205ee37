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

enum { BEI_FP32, BEI_BF16, BEI_INT8 };
enum { BEI_IDENTITY, BEI_GELU, BEI_GELU_TANH, BEI_RELU, BEI_SILU, BEI_TANH, BEI_SIGMOID };
enum { BEI_DENSE, BEI_LAYER_NORM, BEI_NORMALIZE, BEI_LOG1P_RELU, BEI_INT8_TANH };
enum { BEI_FIRST, BEI_LAST, BEI_MEAN, BEI_MAX, BEI_MEAN_SQRT_LEN, BEI_WEIGHTED_MEAN, BEI_SUM };
enum { BEI_OK, BEI_BAD_BATCH, BEI_OUT_OF_MEMORY, BEI_FAILED };

// y = activation(x * weights + bias). `panels` is the matrix as engines/native/pack.py lays it out, aligned to 64 bytes;
// `scales` and `sums` (the sum of each column's bytes) are those of INT8, null otherwise; `input_scales`, null for none,
// are multiplied into its inputs before they are rounded, and are divided out of the matrix.
// Vectors are as long as the outputs, rounded up to a panel's lanes.
typedef struct {
  const void* panels;
  const float *scales, *sums, *bias, *input_scales;
  int32_t inputs, outputs, precision, activation;
} BeiLinear;

// Layer norm, or RMS norm; a null bias is none, and a null weight is no norm at all.
typedef struct {
  const float *weight, *bias;
  int32_t size, rms;
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

// Norms stand where architectures/spec.py says. `query_norm` and `key_norm` are of a head, or of all heads, by their
// size. `bias_by_distance` is [heads, 2 * max_tokens - 1], by the key's position less the query's; null where there is
// none. `position_keys` and `position_queries`, [rows, heads * head_size], are the vectors of relative positions, null
// where there are none: those of keys are multiplied with the queries, those of queries with the keys. `segments` and
// `segment_bias`, [heads, head_size] and [heads], null for none: a query's product with its head's vector, and the bias,
// are added to the scores of keys whose type is another. `sinks` has a number for each head, null for none. `taps`, [tap_count, hidden_size], are those of a convolution
// in place of attention, null where there is none; the first is of the token at the distance `first_tap`. `window` is the
// largest distance that is seen, and `rotary` the number of the layer's table; negative for none.
typedef struct {
  BeiLinear qkv, out, up, down;
  BeiNorm attention_in, attention_out, attention_again, attention_end, ffn_in, ffn_out, ffn_end, query_norm, key_norm;
  const float *bias_by_distance, *position_keys, *position_queries, *segments, *segment_bias, *taps, *sinks;
  int32_t window, rotary, tap_count, first_tap;
  BeiExperts experts;
} BeiLayer;

// `tokens` is [vocab_size, embedding_size] in float32, or with `tokens_are_bf16` in bf16; `positions` (from the first
// token's on) and `types` are [rows, embedding_size] in float32, null where there are none. `project` has null panels
// where embedding and hidden size are one. `dropped_token` is negative for none. `soft_cap` is zero for none, and so is
// `query_growth`, the strength of architectures/positions.py: QueryGrowth; `query_trained` is at least one. Where `gated`, a
// vector of gates and a vector of gated values alternate in the columns of `up`. `rotary_sizes`: how many numbers of an
// attention head each table rotates. `position_rows`, [2 * max_tokens - 1], has the row of the vectors of relative positions
// for each distance of a query from a key, null where there are none. `convolution`, whose inputs are the embeddings of
// `convolution_taps` tokens around each one, is added to the output of the first layer, and the sum is normed; null panels
// for none.
// `input_peaks`, null where nobody asks, is [layers, 2, hidden_size] and takes the largest size of each input of `qkv`
// and of `up`; of one thread only.
typedef struct {
  int32_t precision, vocab_size, hidden_size, heads, kv_heads, head_size, intermediate_size, max_tokens;
  int32_t type_count, embedding_size, causal, gated, tokens_are_bf16, dropped_token;
  float attention_scale, soft_cap, embedding_scale, query_growth, residual_scale;
  int32_t query_trained, parallel;
  const void* tokens;
  const float *positions, *types;
  BeiNorm embedding_norm, final_norm;
  BeiLinear project, convolution;
  BeiNorm convolution_norm;
  const int32_t* position_rows;
  const BeiLayer* layers;
  int32_t layer_count, convolution_taps;
  const int32_t* rotary_sizes;
  const BeiHeadLayer *token_head_layers, *head_layers;
  int32_t token_head_layer_count, head_layer_count;
  const int32_t* modes;
  int32_t mode_count, include_prompt;
  float* input_peaks;
} BeiModel;

// engines/base.py says what each is; engines/rotary.py makes the tables, [tokens, size] each. `parents`, null for none,
// are the sequences that each one continues, negative for none (engines/prefixes.py).
typedef struct {
  const int32_t *input_ids, *token_types, *cu_seqlens, *prompt_tokens, *attended;
  const float* const* rotaries;
  const int32_t* parents;
  int32_t sequences;
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

// The sharing of a batch of so many tokens that finds all other threads idle.
BeiSharing bei_sharing(const BeiModel* model, const BeiMachine* machine, int32_t tokens) BEI_NOEXCEPT;

// The model's arrays must outlive the encoder. Null where it cannot be made.
BeiEncoder* bei_encoder_create(const BeiModel* model, const BeiMachine* machine) BEI_NOEXCEPT;
void bei_encoder_destroy(BeiEncoder* encoder) BEI_NOEXCEPT;

// Safe from several threads at a time. rows: float32 [sequences, row size].
int32_t bei_encoder_pooled(BeiEncoder* encoder, const BeiBatch* batch, float* rows) BEI_NOEXCEPT;

// The same; states: float32 [tokens, token size].
int32_t bei_encoder_tokens(BeiEncoder* encoder, const BeiBatch* batch, float* states) BEI_NOEXCEPT;

// out[row_count, outputs] = activation(x[row_count, inputs] * weights + bias), for tests and benchmarks.
int32_t bei_linear(const BeiLinear* linear, const float* x, int32_t row_count, float* out) BEI_NOEXCEPT;

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
