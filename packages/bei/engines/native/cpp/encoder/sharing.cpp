#include "encoder/sharing.h"

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "abi.h"
#include "kernel/int4.h"
#include "kernel/kernel.h"

namespace bei {
namespace {

// The work of a thread in a microsecond, as measured on Emerald Rapids with the shapes of MiniLM and bge-large; the choice
// turns on ratios.
constexpr float kProducts = 3'000;         // of each lane
constexpr float kOfBf16 = 0.5f;            // of them in bf16: an instruction of vectors takes two cycles
constexpr float kOfTiles = 2;              // a product by tiles, its reads and sums included
constexpr float kBytesOfThread = 14'000;   // of a matrix that it reads
constexpr float kWidenedBytes = 6'000;     // of one that it widens
constexpr float kBytesOfMemory = 120'000;  // that all threads read together, of matrices that no cache holds

// Of the time alone. Two threads take half of it at best, and the estimate is none too exact.
constexpr float kWorthIt = 0.56f;
constexpr float kAgain = 1.1f;  // by rows each thread reads all matrices, for which the memory is shared

// The work of a thread in a microsecond, by its kernel.
struct Speed {
  float products, bytes;
  int rows, panel;
};

template <class T>
Speed speed_of(bool widens) {
  using K = Kernel<T>;
  constexpr bool by_tiles = kMultipliesTiles && sizeof(T) < sizeof(float);
  constexpr float tiles = by_tiles ? kOfTiles : std::is_same_v<K, Dot<bf16>> ? kOfBf16 : 1;
  constexpr float instructions = kPairsIn16Bits && sizeof(T) == 1 ? 0.5f : 1;
  return {kProducts * instructions * tiles * kLanes * (sizeof(float) / sizeof(T)),
          widens ? kWidenedBytes : kBytesOfThread, K::kRows, K::kPanel};
}

Speed speed_of(const BeiModel& model) {
  if (model.precision == BEI_INT8) return speed_of<uint8_t>(false);
  if (model.precision == BEI_FP32) return speed_of<float>(false);
  return speed_of<Half>(model.precision == BEI_BF16 && !kMultipliesBf16);
}

float operand_size(int precision) {
  return precision == BEI_INT8 ? sizeof(uint8_t) : precision == BEI_FP32 ? sizeof(float) : sizeof(Half);
}

float weight_size(int precision) {
  switch (precision) {
    case BEI_INT4:
      return static_cast<float>(int4_words(kInt4Group)) * sizeof(uint32_t) / kInt4Group;
    case BEI_INT8:
      return 1;
    default:
      return precision == BEI_BF16 ? 2 : 4;
  }
}

// Calls f(product, times) for the products of a layer. Of experts a row has those that are chosen.
template <class Fn>
void each_product(const BeiLayer& layer, Fn f) {
  if (const BeiBottleneck* of = layer.bottleneck) {
    for (const BeiLinear* one : {&of->enter, &of->shared, &of->query_key, &of->value, &of->out, &of->leave}) f(*one, 1);
    for (int i = 0; i < of->mlp_count; i++) f(of->mlps[i].up, 1), f(of->mlps[i].down, 1);
    return;
  }
  const BeiExperts& experts = layer.experts;
  for (const BeiLinear* one : {&layer.qkv, &layer.key_value, &layer.out}) f(*one, 1);
  f(experts.count ? experts.up[0] : layer.up, experts.count ? experts.chosen : 1);
  f(experts.count ? experts.down[0] : layer.down, experts.count ? experts.chosen : 1);
  if (layer.input)
    for (const BeiLinear* one : {&layer.input->project, &layer.input->gate, &layer.input->out}) f(*one, 1);
}

// The steps of a layer by columns: those of layer.h, bottleneck.h and layer_inputs.h, and attention.
int steps_of(const BeiModel& model, const BeiLayer& layer) {
  const int rounds = model.precision == BEI_INT8;  // rows are rounded once, for all threads
  const bool turns = layer.rotary >= 0 || layer.query_norm.weight || layer.value_norm.weight;
  if (layer.bottleneck) return 12 + rounds + layer.bottleneck->mlp_count * (3 + rounds);
  int steps = 4 + rounds + turns;  // operands, queries, attention, its output
  if (layer.key_value.outputs) steps += 1 + rounds;
  if (layer.experts.count)
    steps += 2 + (model.parallel != 0);  // norm, experts
  else if (layer.up.outputs)
    steps += 3 + rounds + (model.parallel != 0);  // norm, halves of the MLP
  if (layer.input) steps += 5 + 2 * rounds;
  return steps;
}

// Microseconds of all layers, for a number of rows.
class Estimate {
 public:
  Estimate(const BeiModel& model, const BeiMachine& machine, int rows)
      : machine_(machine), speed_(speed_of(model)), operand_size_(operand_size(model.precision)), rows_(rows) {
    layers_ = model.layer_count;
    for (int i = 0; i < layers_; i++) {
      each_product(model.layers[i], [&](const BeiLinear& of, int times) { add(of, times); });
      steps_ += steps_of(model, model.layers[i]);
    }
    float bytes = 0;
    for (const Product& of : products_) bytes += of.count * of.bytes;
    cached_ = bytes < static_cast<float>(machine.last_cache) * machine.threads;
  }

  int steps() const { return steps_; }
  int layers() const { return layers_; }

  float alone() const { return alone(rows_); }

  // Each thread reads all matrices for each of its ranges.
  float by_rows(int threads) const {
    const int size = range_size(rows_, threads, speed_.rows), ranges = (rows_ + size - 1) / size;
    return (ranges + threads - 1) / threads * alone(size) + meetings(2 * layers_, std::min(threads, ranges));
  }

  // A thread has whole panels. Operands that fill the second cache are read again for each of them.
  float by_columns(int threads) const {
    float time = meetings(steps_, threads);
    for (const Product& of : products_) {
      const int panels = (of.outputs + speed_.panel - 1) / speed_.panel;
      const int own = (panels + threads - 1) / threads;
      const float operands = of.inputs * operand_size_ * rows_;
      const float again = operands > static_cast<float>(machine_.second_cache) / 2 ? operands / kBytesOfThread : 0;
      const float compute = own * (block(of, rows_) / panels + again);
      time += of.count * std::max(compute, cached_ ? 0 : of.bytes / kBytesOfMemory);
    }
    return time;
  }

 private:
  // Products of one shape, each of so many bytes.
  struct Product {
    int inputs, outputs, count;
    float bytes;
  };

  void add(const BeiLinear& of, int times) {
    if (!of.outputs) return;
    const float bytes = static_cast<float>(of.inputs) * of.outputs * weight_size(of.precision);
    for (Product& known : products_)
      if (known.inputs == of.inputs && known.outputs == of.outputs && known.bytes == bytes) {
        known.count += times;
        return;
      }
    products_.push_back({of.inputs, of.outputs, times, bytes});
  }

  // Of one product and one block of rows.
  float block(const Product& of, int rows) const {
    return std::max(static_cast<float>(of.inputs) * of.outputs * rows / speed_.products, of.bytes / speed_.bytes);
  }

  float alone(int rows) const {
    float time = 0;
    for (const Product& of : products_)
      for (int row = 0; row < rows; row += kBlockRows) time += of.count * block(of, std::min(kBlockRows, rows - row));
    return time;
  }

  float meetings(int count, int threads) const {
    return count * threads * machine_.meeting + machine_.waking * (threads - 1) / threads;
  }

  const BeiMachine& machine_;
  const Speed speed_;
  const float operand_size_;
  const int rows_;
  int layers_ = 0, steps_ = 0;
  std::vector<Product> products_;
  bool cached_ = false;
};

}  // namespace

int range_size(int row_count, int threads, int kernel_rows) {
  if (threads == 1) return kBlockRows;
  const int ranges = (row_count >= 2 * threads * kWorthReading ? 2 : 1) * threads;
  const int share = (row_count + ranges - 1) / ranges;
  return std::clamp(round_up(share, kernel_rows), kLeastRows, kBlockRows);
}

BeiSharing sharing_of(const BeiModel& model, const BeiMachine& machine, int tokens, int threads) {
  const Estimate estimate(model, machine, tokens);
  const float alone = estimate.alone();
  BeiSharing rows{1, 0, 0, alone, alone}, columns{1, 1, estimate.steps(), alone, alone};
  if (threads > 1 && tokens >= 2 * kLeastRows)
    rows = {threads, 0, 2 * estimate.layers(), alone, estimate.by_rows(threads)};
  for (int n = 2; n <= threads && tokens <= kBlockRows; n++) {
    const float time = estimate.by_columns(n);
    if (time < columns.shared) columns.threads = n, columns.shared = time;
  }
  return columns.shared <= std::min(kAgain * rows.shared, kWorthIt * alone) ? columns : rows;
}

}  // namespace bei
