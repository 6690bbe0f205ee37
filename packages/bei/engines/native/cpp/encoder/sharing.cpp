#include "encoder/sharing.h"

#include <algorithm>
#include <cstdint>

#include "abi.h"
#include "kernel/kernel.h"

namespace bei {
namespace {

// What a thread does in a microsecond at 3 GHz; the choice turns on ratios.
constexpr float kProducts = 5'000;         // of each lane
constexpr float kBytesOfThread = 30'000;   // of a matrix that it reads
constexpr float kWidenedBytes = 6'000;     // of one that it widens
constexpr float kBytesOfMemory = 120'000;  // that all threads read together, of matrices that no cache holds

// Of the time alone. Two threads take half of it at best, and the estimate is none too exact.
constexpr float kWorthIt = 0.56f;
constexpr float kAgain = 1.1f;  // by rows each thread reads all matrices, for which the memory is shared

// What the average layer of a model costs.
struct LayerCost {
  float products = 0, bytes = 0;  // multiplications of a row, and bytes of the matrices
  float operands = 0;             // bytes of those that are read from beyond the second cache, for every panel
  float steps = 0;                // by columns
};

// What a thread does in a microsecond.
struct Speed {
  float products, bytes;
  int rows, panel;  // of its kernel
};

template <class T>
Speed speed_of(bool widens) {
  using K = Kernel<T>;
  constexpr float tiles = kMultipliesTiles && sizeof(T) < sizeof(float) ? 4 : 1;
  constexpr float instructions = kPairsIn16Bits && sizeof(T) == 1 ? 0.5f : 1;
  return {kProducts * instructions * tiles * kLanes * (sizeof(float) / sizeof(T)),
          widens ? kWidenedBytes : kBytesOfThread, K::kRows, K::kPanel};
}

Speed speed_of(const BeiModel& model) {
  if (model.precision == BEI_INT8) return speed_of<uint8_t>(false);
  return model.precision == BEI_BF16 ? speed_of<Half>(!kMultipliesBf16) : speed_of<float>(false);
}

float operand_size(int precision) {
  return precision == BEI_INT8 ? sizeof(uint8_t) : precision == BEI_BF16 ? sizeof(Half) : sizeof(float);
}

float weight_size(int precision) { return precision == BEI_INT8 ? 1 : precision == BEI_BF16 ? 2 : 4; }

LayerCost cost_of(const BeiModel& model, const BeiMachine& machine, const Speed& speed, int rows) {
  LayerCost cost;
  const auto add = [&](const BeiLinear& of, int times) {
    const float products = static_cast<float>(of.inputs) * of.outputs * times;
    const float operands = static_cast<float>(of.inputs) * operand_size(model.precision) * rows;
    cost.products += products;
    cost.bytes += products * weight_size(of.precision);
    if (operands > static_cast<float>(machine.second_cache) / 2) cost.operands += operands * of.outputs / speed.panel;
  };
  for (int i = 0; i < model.layer_count; i++) {
    const BeiLayer& layer = model.layers[i];
    const BeiExperts& experts = layer.experts;
    add(layer.qkv, 1), add(layer.out, 1);
    add(experts.count ? experts.up[0] : layer.up, experts.count ? experts.chosen : 1);
    add(experts.count ? experts.down[0] : layer.down, experts.count ? experts.chosen : 1);
    const bool rounds = model.precision == BEI_INT8, turns = layer.rotary >= 0 || layer.query_norm.weight;
    cost.steps += 7 + 2 * rounds + turns + (model.parallel != 0);
  }
  for (float* sum : {&cost.products, &cost.bytes, &cost.operands, &cost.steps}) *sum /= model.layer_count;
  return cost;
}

float alone(const LayerCost& cost, const Speed& speed, int rows) {
  float time = 0;
  for (int row = 0; row < rows; row += kBlockRows)
    time += std::max(std::min(kBlockRows, rows - row) * cost.products / speed.products, cost.bytes / speed.bytes);
  return time;
}

float by_rows(const LayerCost& cost, const Speed& speed, const BeiMachine& machine, int rows, int threads) {
  const int size = range_size(rows, threads, speed.rows), ranges = (rows + size - 1) / size;
  return (ranges + threads - 1) / threads * alone(cost, speed, size) + 2 * threads * machine.meeting;
}

float by_columns(const LayerCost& cost, const Speed& speed, const BeiMachine& machine, bool cached, int rows,
                 int threads) {
  const float compute = rows * cost.products / speed.products + cost.operands / kBytesOfThread;
  const float memory = cached ? 0 : cost.bytes / kBytesOfMemory;
  return std::max({compute / threads, cost.bytes / speed.bytes / threads, memory}) +
         cost.steps * threads * machine.meeting;
}

}  // namespace

int range_size(int row_count, int threads, int kernel_rows) {
  if (threads == 1) return kBlockRows;
  const int share = (row_count + 2 * threads - 1) / (2 * threads);
  return std::clamp(round_up(share, kernel_rows), kLeastRows, kBlockRows);
}

BeiSharing sharing_of(const BeiModel& model, const BeiMachine& machine, int tokens, int threads) {
  const Speed speed = speed_of(model);
  const LayerCost cost = cost_of(model, machine, speed, tokens);
  const int layers = model.layer_count;
  const bool cached = cost.bytes * layers < static_cast<float>(machine.last_cache) * machine.threads;
  const auto waking = [&](int n) { return machine.waking * (n - 1) / n; };
  const float single = alone(cost, speed, tokens) * layers;
  BeiSharing rows{1, 0, 0, single, single}, columns{1, 1, static_cast<int>(cost.steps * layers), single, single};
  if (threads > 1 && tokens >= 2 * kLeastRows) {
    const float time = by_rows(cost, speed, machine, tokens, threads) * layers + waking(threads);
    rows = {threads, 0, 2 * layers, single, time};
  }
  for (int n = 2; n <= threads; n++) {
    const float time = by_columns(cost, speed, machine, cached, tokens, n) * layers + waking(n);
    if (time < columns.shared) columns.threads = n, columns.shared = time;
  }
  return columns.shared <= std::min(kAgain * rows.shared, kWorthIt * single) ? columns : rows;
}

}  // namespace bei
