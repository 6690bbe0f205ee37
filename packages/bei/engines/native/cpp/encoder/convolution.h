// A layer's short convolution in place of attention: c * sum(taps * (b * x)) over a token's neighbors.
#pragma once
#include <algorithm>

#include "encoder/batch.h"
#include "encoder/states.h"

namespace bei {
namespace {

template <class P>
class Convolution {
  using Stored = typename P::Stored;

 public:
  explicit Convolution(const BeiModel& model) : model_(model) {}

  // The contexts of a sequence's tokens. A token that is not attended to has none, and gives none to its neighbors.
  void convolve(const States<P>& states, const BeiLayer& layer, int sequence) const {
    const int start = states.batch.cu_seqlens[sequence], length = length_of(states.batch, sequence);
    const int attended = std::min(length, states.batch.attended[sequence]);
    for (int i = 0; i < attended; i++) token(states, layer, start, attended, i);
    for (int i = attended; i < length; i++) std::fill_n(states.context.row(start + i), model_.hidden_size, Stored{});
  }

 private:
  void token(const States<P>& states, const BeiLayer& layer, int start, int attended, int i) const {
    const int hidden = model_.hidden_size;
    const int first = std::max(0, -i - layer.first_tap),
              last = std::min(layer.tap_count, attended - i - layer.first_tap);
    const Stored* c = states.qkv.row(start + i) + hidden;
    Stored* context = states.context.row(start + i);
    for_vectors(hidden, [&](int j, int lanes) {
      F sum = zero();
      for (int tap = first; tap < last; tap++) {
        const Stored* b = states.qkv.row(start + i + layer.first_tap + tap) + j;
        const F weight = load_lanes(layer.taps + static_cast<size_t>(tap) * hidden + j, lanes);
        sum = fma(weight, load_lanes(b, lanes) * load_lanes(b + 2 * hidden, lanes), sum);
      }
      store_lanes(context + j, load_lanes(c + j, lanes) * sum, lanes);
    });
  }

  const BeiModel& model_;
};

}  // namespace
}  // namespace bei
