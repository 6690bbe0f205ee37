// What follows the layers: the layers of heads, on rows of floats, and pooling.
#pragma once
#include <cstdint>

#include "abi.h"
#include "memory.h"

namespace bei {

struct HeadLayers {
  const BeiHeadLayer* layers;
  int count;

  // The width of a row after them.
  int width(int inputs) const;

  // The rows after them: `x` itself where there are none, else rows in `scratch`.
  MatrixView<float> apply(MatrixView<float> x, int width, int row_count, Scratch& scratch) const;
};

// The vectors of several modes, side by side.
struct Pooling {
  const int32_t* modes;
  int count;

  // One sequence, out: [count * width]. Begin, add each state of positions [first, last) in order, end.
  void begin(float* out, int width) const;
  void add(const float* state, int position, int first, int last, float* out, int width) const;
  void end(int first, int last, float* out, int width) const;
};

}  // namespace bei
