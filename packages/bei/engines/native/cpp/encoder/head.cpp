#include "encoder/head.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "encoder/activation.h"
#include "encoder/rows.h"

namespace bei {
namespace {

// The activation has a pass of its own: there are few such rows, and so the product is compiled once for all activations.
template <class T>
void dense(const BeiLinear& weights, const MatrixView<T>& operands, int row_count, const MatrixView<float>& out,
           Scratch& scratch) {
  linear(weights, operands, row_count, scratch, [&](int row, int column, F v) { store(out.row(row) + column, v); });
  if (weights.activation == BEI_IDENTITY) return;
  with_activation(weights.activation, false, [&](auto activation) {
    for (int row = 0; row < row_count; row++) {
      float* y = out.row(row);
      for_vectors(weights.outputs, [&](int i, int) { store(y + i, activation(load(y + i))); });
    }
  });
}

template <class T>
void rounded_dense(const BeiLinear& weights, const MatrixView<float>& x, int row_count, const MatrixView<float>& out,
                   Scratch& scratch) {
  const MatrixView<T> operands = scratch.block.operands.get<T>(row_count, weights.inputs);
  for (int row = 0; row < row_count; row++) to_operands(x.row(row), weights, operands, row, scratch);
  dense(weights, operands, row_count, out, scratch);
}

void any_dense(const BeiLinear& weights, const MatrixView<float>& x, int row_count, const MatrixView<float>& out,
               Scratch& scratch) {
  switch (weights.precision) {
    case BEI_BF16:
    case BEI_INT4:
      return rounded_dense<Half>(weights, x, row_count, out, scratch);
    case BEI_INT8:
      return rounded_dense<uint8_t>(weights, x, row_count, out, scratch);
    default:
      return dense(weights, x, row_count, out, scratch);
  }
}

void add_residual(const BeiHeadLayer& layer, MatrixView<float> x, int row_count, const MatrixView<float>& out,
                  Scratch& scratch) {
  const int width = layer.linear.outputs;
  if (layer.residual.panels) {
    const MatrixView<float> product = scratch.residual.get<float>(row_count, width);
    dense(layer.residual, x, row_count, product, scratch);
    x = product;
  }
  for (int row = 0; row < row_count; row++)
    for (int i = 0; i < width; i++) out.row(row)[i] += x.row(row)[i];
}

void apply_layer(const BeiHeadLayer& layer, const MatrixView<float>& x, int width, int row_count,
                 const MatrixView<float>& out, Scratch& scratch) {
  switch (layer.kind) {
    case BEI_DENSE:
      any_dense(layer.linear, x, row_count, out, scratch);
      if (layer.adds_input) add_residual(layer, x, row_count, out, scratch);
      return;
    case BEI_LAYER_NORM:
      for (int row = 0; row < row_count; row++) layer_norm(layer.norm, x.row(row), out.row(row));
      return;
    case BEI_NORMALIZE:
      for (int row = 0; row < row_count; row++) l2_normalize(x.row(row), width, out.row(row));
      return;
    case BEI_LOG1P_RELU:
      for (int row = 0; row < row_count; row++)
        for (int i = 0; i < width; i++) out.row(row)[i] = std::log1p(std::max(x.row(row)[i], 0.f));
      return;
    case BEI_INT8_TANH:
      for (int row = 0; row < row_count; row++)
        for (int i = 0; i < width; i++) out.row(row)[i] = std::nearbyint(127 * std::tanh(x.row(row)[i]));
      return;
  }
}

int width_after(const BeiHeadLayer& layer, int width) { return layer.kind == BEI_DENSE ? layer.linear.outputs : width; }

}  // namespace

int HeadLayers::width(int inputs) const {
  for (int i = 0; i < count; i++) inputs = width_after(layers[i], inputs);
  return inputs;
}

MatrixView<float> HeadLayers::apply(MatrixView<float> x, int width, int row_count, Scratch& scratch) const {
  for (int i = 0; i < count; i++) {
    const int outputs = width_after(layers[i], width);
    const MatrixView<float> out = scratch.head_layers[i % 2].get<float>(row_count, outputs);
    apply_layer(layers[i], x, width, row_count, out, scratch);
    x = out, width = outputs;
  }
  return x;
}

void Pooling::begin(float* out, int width) const {
  for (int m = 0; m < count; m++) std::fill_n(out + m * width, width, modes[m] == BEI_MAX ? -INFINITY : 0.f);
}

void Pooling::add(const float* state, int position, int first, int last, float* out, int width) const {
  for (int m = 0; m < count; m++, out += width) switch (modes[m]) {
      case BEI_FIRST:
      case BEI_LAST:
        if (position == (modes[m] == BEI_FIRST ? first : last - 1)) std::copy_n(state, width, out);
        break;
      case BEI_MAX:
        for_vectors(width, [&](int i, int lanes) {
          store_lanes(out + i, max(load_lanes(out + i, lanes), load_lanes(state + i, lanes)), lanes);
        });
        break;
      default: {
        const F weight = splat(modes[m] == BEI_WEIGHTED_MEAN ? position + 1.f : 1.f);
        for_vectors(width, [&](int i, int lanes) {
          store_lanes(out + i, fma(load_lanes(state + i, lanes), weight, load_lanes(out + i, lanes)), lanes);
        });
      }
    }
}

void Pooling::end(int first, int last, float* out, int width) const {
  const float n = last - first;
  for (int m = 0; m < count; m++, out += width) {
    float divisor = 1;
    if (modes[m] == BEI_MEAN) divisor = n;
    if (modes[m] == BEI_MEAN_SQRT_LEN) divisor = std::sqrt(n);
    if (modes[m] == BEI_WEIGHTED_MEAN) divisor = n * (first + 1.f + last) / 2;
    if (divisor != 1)
      for (int i = 0; i < width; i++) out[i] /= divisor;
  }
}

}  // namespace bei
