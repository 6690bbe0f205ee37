// Every kind of model the library knows, with arrays no longer than abi.h says; for the sanitizers (test_native.py).
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "abi.h"
#include "encoder/activation.h"
#include "kernel/kernel.h"

#if BEI_MULTIPLIES_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

void check(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "%s\n", what);
  std::exit(1);
}

}  // namespace

#include "steps.h"

namespace {

std::mt19937 rng(7);

// Arrays that live as long as the model.
struct Arrays {
  template <class T>
  const T* add(size_t n, float scale) {
    auto array = std::shared_ptr<T[]>(new (std::align_val_t(64)) T[n], [](T* p) { operator delete[](p, std::align_val_t(64)); });
    std::normal_distribution<float> normal(0, scale);
    for (size_t i = 0; i < n; i++) set(array[i], normal(rng));
    kept.push_back(array);
    return array.get();
  }
  static void set(float& x, float v) { x = v; }
  static void set(int8_t& x, float v) { x = static_cast<int8_t>(std::clamp(v * 100, -127.f, 127.f)); }
  static void set(uint32_t& x, float v) {  // a scale and an offset, or eight codes
    bei::bf16 half;
    set(half, v);
    x = half.bits | static_cast<uint32_t>(half.bits) << 16;
  }
  static void set(bei::bf16& x, float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    x.bits = bits >> 16;
  }
  std::vector<std::shared_ptr<void>> kept;
};

// Linux gives a process the registers of tiles once it asks (engines/native/tiles.py).
void ask_for_tiles() {
#if BEI_MULTIPLIES_TILES
  check(syscall(SYS_arch_prctl, 0x1023, 18) == 0, "the kernel permits no tiles");
#endif
}

// The GELU of 16 and 8 bits, which no product shows unrounded.
void check_gelu() {
  double worst = 0;
  for (float x = -20; x < 20; x += 0.001f) {
    float y[bei::kLanes];
    bei::store(y, bei::quick_gelu(bei::splat(x)));
    worst = std::max(worst, std::abs(y[0] - 0.5 * x * std::erfc(-x / std::sqrt(2.0))));
  }
  check(worst < 5e-4, "gelu is off");
}

BeiLinear linear(Arrays& arrays, int inputs, int outputs, int precision, int activation = BEI_IDENTITY) {
  const size_t columns = bei::round_up(outputs, bei::kLanes);
  const size_t numbers = columns * bei::round_up(inputs, bei_layout(precision).word_multiple);
  BeiLinear of{};
  if (precision == BEI_FP32) of.panels = arrays.add<float>(numbers, 0.1f);
  if (precision == BEI_BF16) of.panels = arrays.add<bei::bf16>(numbers, 0.1f);
  if (precision == BEI_INT4) of.panels = arrays.add<uint32_t>(numbers / 8 + numbers / bei::kInt4Group, 0.01f);
  if (precision == BEI_INT8) {
    of.panels = arrays.add<int8_t>(numbers, 0.1f);
    of.scales = arrays.add<float>(columns, 0.01f);
    of.sums = arrays.add<float>(columns, 1);
    of.input_scales = arrays.add<float>(inputs, 1), of.hadamard = inputs % 8 ? 0 : 8;
  }
  of.bias = arrays.add<float>(columns, 0.1f);
  of.inputs = inputs, of.outputs = outputs, of.precision = precision, of.activation = activation;
  return of;
}

BeiNorm norm(Arrays& arrays, int size, bool rms = false) {
  return {arrays.add<float>(size, 1), rms ? nullptr : arrays.add<float>(size, 1), size, rms ? BEI_RMS : BEI_LAYER, 1e-5f};
}

struct Kind {
  int hidden, heads, kv_heads, head_size, embedding;
  bool more, causal;             // all head layers, types and biases; the layers of a language model
  bool narrow = false, decodes = false;  // layers with bottlenecks, and trigrams; a decoder that attends to its encoder
};

// The structures that layers point to.
struct Parts {
  std::deque<std::vector<BeiNarrowMlp>> mlps;
  std::deque<BeiBottleneck> bottlenecks;
  std::deque<BeiLayerInput> inputs;
};

// The second layer of a decoder has a window, and norms on what comes out.
BeiLayer layer(Arrays& arrays, const Kind& kind, int inner, int precision, bool second) {
  const int hidden = kind.hidden, query = kind.heads * kind.head_size, key = kind.kv_heads * kind.head_size;
  const int up = kind.causal ? 2 * bei::round_up(inner, bei::kLanes) : inner;
  BeiLayer of{};
  of.qkv = linear(arrays, hidden, query + 2 * key, precision), of.out = linear(arrays, query, hidden, precision);
  of.up = linear(arrays, hidden, up, precision, BEI_GELU), of.down = linear(arrays, inner, hidden, precision);
  of.window = of.rotary = -1, of.kv_heads = kind.kv_heads, of.head_size = kind.head_size, of.causal = kind.causal;
  if (!kind.causal) {
    of.attention_end = norm(arrays, hidden), of.ffn_end = norm(arrays, hidden);
    return of;
  }
  of.rotary = second;
  of.attention_in = norm(arrays, hidden, true), of.ffn_in = norm(arrays, hidden, true);
  of.query_norm = norm(arrays, kind.head_size, true), of.key_norm = norm(arrays, kind.head_size, true);
  if (second) of.attention_out = norm(arrays, hidden, true), of.ffn_out = norm(arrays, hidden, true), of.window = 40;
  return of;
}

BeiLayer convolution(Arrays& arrays, const Kind& kind, int inner, int precision) {
  BeiLayer of = layer(arrays, kind, inner, precision, false);
  of.qkv = linear(arrays, kind.hidden, 3 * kind.hidden, precision), of.out = linear(arrays, kind.hidden, kind.hidden, precision);
  of.query_norm = of.key_norm = BeiNorm{};
  of.taps = arrays.add<float>(3 * kind.hidden, 1), of.tap_count = 3, of.first_tap = -1, of.rotary = -1;
  return of;
}

BeiLayer bottleneck(Arrays& arrays, Parts& parts, const Kind& kind, int inner, int precision) {
  const int hidden = kind.hidden, query = kind.heads * kind.head_size, size = hidden / 2 + 1;
  const auto affine = [&](int n) { return BeiNorm{arrays.add<float>(n, 1), arrays.add<float>(n, 1), n, BEI_AFFINE, 0}; };
  auto& mlps = parts.mlps.emplace_back();
  for (int i = 0; i < 2; i++)
    mlps.push_back({linear(arrays, size, inner, precision, BEI_RELU), linear(arrays, inner, size, precision), affine(size)});
  BeiLayer of{};
  of.bottleneck = &parts.bottlenecks.emplace_back(BeiBottleneck{
      linear(arrays, hidden, size, precision), linear(arrays, hidden, size, precision), linear(arrays, size, 2 * query, precision),
      linear(arrays, hidden, query, precision), linear(arrays, query, size, precision), linear(arrays, size, hidden, precision),
      affine(size), affine(size), affine(size), affine(hidden), mlps.data(), 2});
  of.window = of.rotary = -1, of.kv_heads = kind.kv_heads, of.head_size = kind.head_size;
  return of;
}

// The two parts of a decoder's layer.
void add_decoder(Arrays& arrays, const Kind& kind, int inner, int precision, std::vector<BeiLayer>& layers) {
  const int hidden = kind.hidden, query = kind.heads * kind.head_size;
  BeiLayer before = layer(arrays, kind, inner, precision, false), across = before;
  before.up = before.down = BeiLinear{}, before.ffn_end = BeiNorm{}, before.causal = 1;
  across.qkv = linear(arrays, hidden, query, precision), across.key_value = linear(arrays, hidden, 2 * query, precision);
  layers.insert(layers.end(), {before, across});
}

BeiLayerInput layer_input(Arrays& arrays, const Kind& kind, int precision) {
  const int hidden = kind.hidden, size = hidden / 2 + 1;
  return {linear(arrays, hidden, size, precision), linear(arrays, hidden, size, precision, BEI_GELU),
          linear(arrays, size, hidden, precision), norm(arrays, size, true), norm(arrays, hidden, true), 0.7f};
}

void run(int precision, const Kind& kind, int longest = 260) {
  Arrays arrays;
  Parts parts;
  const int hidden = kind.hidden, heads = kind.heads, embedding = kind.embedding;
  const bool more = kind.more;
  const int inner = 2 * hidden - 8, max_tokens = 1300, vocab = 50;
  std::vector<BeiLayer> layers;
  for (bool second : {false, true})
    layers.push_back(kind.narrow ? bottleneck(arrays, parts, kind, inner, precision) : layer(arrays, kind, inner, precision, second));
  if (kind.causal) layers.insert(layers.begin() + 1, convolution(arrays, kind, inner, precision));
  std::vector<BeiHeadLayer> token_head_layers, head_layers;
  if (more) {
    token_head_layers = {{BEI_DENSE, 0, linear(arrays, hidden, 76, precision, BEI_TANH), {}, {}},
                    {BEI_LAYER_NORM, 0, {}, {}, norm(arrays, 76)},
                    {BEI_DENSE, 1, linear(arrays, 76, 33, BEI_FP32, BEI_SILU), linear(arrays, 76, 33, BEI_FP32, BEI_IDENTITY), {}},
                    {BEI_NORMALIZE, 0, {}, {}, {}}};
    head_layers = {{BEI_LOG1P_RELU, 0, {}, {}, {}},
                   {BEI_DENSE, 1, linear(arrays, 33 * 7, 33 * 7, BEI_FP32, BEI_SILU), {}, {}},
                   {BEI_DENSE, 0, linear(arrays, 33 * 7, 5, BEI_FP32, BEI_SIGMOID), {}, {}}};
  }
  const std::vector<int32_t> modes = more ? std::vector<int32_t>{0, 1, 2, 3, 4, 5, 6} : std::vector<int32_t>{kind.causal || kind.decodes ? BEI_LAST : BEI_MEAN};
  BeiModel model{};
  model.precision = precision, model.vocab_size = vocab, model.hidden_size = hidden, model.heads = heads;
  model.attention_scale = 0.3f, model.embedding_scale = 1, model.gated = kind.causal;
  model.first_decoding = -1, model.trigrams = kind.narrow;
  const int summed = kind.narrow ? hidden : embedding;
  model.residual_scale = 0.5f, model.query_growth = 0.1f, model.query_trained = 64, model.parallel = kind.causal && more;
  model.intermediate_size = inner, model.max_tokens = max_tokens, model.embedding_size = embedding;
  const std::vector<int32_t> rotary_sizes = {kind.head_size, kind.head_size / 2 / 2 * 2};
  if (kind.causal) {
    model.tokens = arrays.add<bei::bf16>(vocab * embedding, 1), model.token_precision = BEI_BF16;
    model.soft_cap = 3, model.rotary_sizes = rotary_sizes.data(), model.final_norm = norm(arrays, hidden, true);
  } else {
    model.tokens = arrays.add<float>(vocab * embedding, 1);
    model.positions = arrays.add<float>(max_tokens * summed, 1), model.embedding_norm = norm(arrays, summed);
  }
  if (more) {
    model.type_count = 2, model.types = arrays.add<float>(2 * summed, 1);
    const float* biases = arrays.add<float>(heads * (2 * max_tokens - 1), 1);
    const float* sinks = arrays.add<float>(heads, 1);
    for (BeiLayer& layer : layers) layer.bias_by_distance = biases, layer.sinks = sinks;
  }
  if (kind.causal && more)
    for (BeiLayer& layer : layers) {
      if (!layer.taps) layer.value_norm = norm(arrays, kind.head_size, true);
      layer.input = &parts.inputs.emplace_back(layer_input(arrays, kind, precision));
    }
  if (kind.decodes) {
    model.first_decoding = static_cast<int>(layers.size()), model.decoder_start = vocab - 1;
    model.decoder_positions = arrays.add<float>(max_tokens * hidden, 1), model.decoder_norm = norm(arrays, hidden);
    for (int i = 0; i < 2; i++) add_decoder(arrays, kind, inner, precision, layers);
  }
  constexpr int rows = 20;  // of relative positions
  std::vector<int32_t> position_rows(2 * max_tokens - 1);
  for (size_t i = 0; i < position_rows.size(); i++) position_rows[i] = static_cast<int32_t>(i * rows / position_rows.size());
  if (more && !kind.causal && !kind.narrow) {
    const size_t query = heads * kind.head_size;
    model.position_rows = position_rows.data();
    model.convolution = linear(arrays, 3 * hidden, hidden, precision, BEI_GELU), model.convolution_taps = 3;
    model.convolution_norm = norm(arrays, hidden);
    for (BeiLayer& layer : layers) {
      layer.position_keys = arrays.add<float>(rows * query, 1), layer.position_queries = arrays.add<float>(rows * query, 1);
      layer.segments = arrays.add<float>(query, 1), layer.segment_bias = arrays.add<float>(heads, 1);
    }
  }
  std::vector<BeiLinear> ups, downs;
  for (int expert = 0; expert < 3; expert++) {
    ups.push_back(linear(arrays, hidden, kind.causal ? 2 * bei::round_up(inner, bei::kLanes) : inner, precision, BEI_GELU));
    downs.push_back(linear(arrays, inner, hidden, precision));
  }
  if (more && !kind.narrow)
    layers[1].experts = {ups.data(), downs.data(), linear(arrays, hidden, 3, BEI_FP32), arrays.add<float>(hidden, 1),
                         3, 2, inner, kind.causal, 1, 1.7f, kind.causal ? 7.f : 0.f};
  if (kind.narrow) model.project = linear(arrays, 3 * embedding, hidden, precision);
  if (!kind.narrow && embedding != hidden) model.project = linear(arrays, embedding, hidden, precision);
  model.layers = layers.data(), model.layer_count = static_cast<int>(layers.size());
  model.token_head_layers = token_head_layers.data(), model.token_head_layer_count = static_cast<int>(token_head_layers.size());
  model.head_layers = head_layers.data(), model.head_layer_count = static_cast<int>(head_layers.size());
  model.modes = modes.data(), model.mode_count = static_cast<int>(modes.size());

  const std::vector<int> lengths = {1, 5, longest, 64, 7, 97};
  std::vector<int32_t> ends = {0}, prompts, attended;
  for (int n : lengths) ends.push_back(ends.back() + n), prompts.push_back(3), attended.push_back((n + 1) / 2);
  std::vector<int32_t> ids(ends.back()), types(ends.back());
  for (auto& id : ids) id = static_cast<int32_t>(rng() % vocab);
  for (auto& type : types) type = static_cast<int32_t>(rng() % 2);
  const int32_t parents[] = {-1, -1, -1, 1, -1, 1};
  std::vector<const float*> turns;
  for (int size : rotary_sizes) turns.push_back(arrays.add<float>(static_cast<size_t>(size) * ids.size(), 0.5f));
  const BeiBatch batch{ids.data(), types.data(), ends.data(), prompts.data(), attended.data(), turns.data(), kind.causal ? parents : nullptr,
                       nullptr, 6, 0};
  const size_t width = more ? 5 : hidden, token_width = more ? 33 : hidden;

  const BeiMachine machine{3, 1 << 20, 1 << 20, -1000, 0};  // where meetings are a gain, few rows share columns
  int32_t allowed = 3;
  BeiEncoder* encoder = bei_encoder_create(&model, &machine, &allowed);
  check(encoder, "no encoder");
  std::vector<float> first(width * 6);
  check(bei_encoder_pooled(encoder, &batch, first.data()) == BEI_OK, "pooled failed");
  BeiBatch few = batch;
  few.sequences = 2;
  check(bei_sharing(&model, &machine, ends[2]).by_columns, "few rows are not shared");
  std::vector<float> again(width * 2);
  check(bei_encoder_pooled(encoder, &few, again.data()) == BEI_OK, "few failed");
  check(std::equal(again.begin(), again.end(), first.begin()), "another answer by columns");
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; i++)
    callers.emplace_back([&, i] {
      std::vector<float> rows(width * 6), states(token_width * ids.size());
      check(bei_encoder_pooled(encoder, &batch, rows.data()) == BEI_OK, "pooled failed");
      check(rows == first, "another answer");
      if (!i) return;
      check(bei_encoder_tokens(encoder, &batch, states.data()) == BEI_OK, "tokens failed");
      const int32_t places[] = {0, 7, static_cast<int32_t>(ids.size()) - 1};
      BeiBatch marked = batch;
      marked.marked = places, marked.marked_count = 3;
      std::vector<float> of_marked(token_width * 3);
      check(bei_encoder_tokens(encoder, &marked, of_marked.data()) == BEI_OK, "marked tokens failed");
      for (int j = 0; j < 3; j++)
        check(std::equal(&of_marked[j * token_width], &of_marked[j * token_width] + token_width,
                         &states[places[j] * token_width]),
              "another state of a marked token");
    });
  for (int threads : {1, 3, 2, 3}) __atomic_store_n(&allowed, threads, __ATOMIC_RELAXED), std::this_thread::yield();
  for (auto& caller : callers) caller.join();
  ids[3] = vocab;
  check(bei_encoder_pooled(encoder, &batch, first.data()) == BEI_BAD_BATCH, "a bad batch was run");
  bei_encoder_destroy(encoder);
}

}  // namespace

int main() {
  ask_for_tiles();
  check_gelu();
  check_steps();
  for (int precision : {BEI_FP32, BEI_BF16, BEI_INT8, BEI_INT4}) {
    run(precision, {48, 4, 4, 12, 48, false, false}, 1100);
    run(precision, {48, 16, 16, 3, 20, true, false});
    run(precision, {72, 1, 1, 72, 72, true, false});
    run(precision, {48, 6, 2, 18, 48, false, true}, 1100);
    run(precision, {48, 4, 1, 64, 48, true, true});
    run(precision, {24, 3, 3, 7, 20, true, false, true});
    run(precision, {24, 2, 2, 12, 24, false, false, false, true});
  }
  std::puts("ok");
}
