// After the encoder: head layers, on rows of floats, and pooling.
#pragma once
#include <cstdint>

#include "abi.h"
#include "memory.h"

namespace bei {

struct HeadLayers {
  const BeiHeadLayer* layers;
  int count;

  // The width of an output row.
  int width(int inputs) const;

  // The output rows: `x` itself if there are no layers, else rows in `scratch`.
  MatrixView<float> apply(MatrixView<float> x, int width, int row_count, Scratch& scratch) const;
};

// The vectors of several modes, side by side.
struct Pooling {
  const int32_t* modes;
  int count;

  // Pool one sequence into out, [count * width]: call begin, then add for each position of [first, last) in order, then
  // end.
  void begin(float* out, int width) const;
  void add(const float* state, int position, int first, int last, float* out, int width) const;
  void end(int first, int last, float* out, int width) const;
};

}  // namespace bei
