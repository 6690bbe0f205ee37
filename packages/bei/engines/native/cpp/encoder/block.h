// Rows that go through the steps of a layer together: some, on one thread, or all of a batch, each step shared by threads.
#pragma once
#include <algorithm>

#include "encoder/helper_pool.h"
#include "kernel/linear.h"
#include "memory.h"

namespace bei {

// A step that does nothing.
constexpr auto as_they_are = [](int, int, Scratch&) {};

class Block {
 public:
  // Rows [first, first + count) of a batch, on the thread of `scratch`.
  Block(int first, int count, Scratch& scratch)
      : first(first), count(count), memory(scratch.block), scratch_(scratch) {}

  // In `memory`, whatever the thread: these meet after each step.
  Block(int first, int count, BlockMemory& memory, HelperPool::Running& running)
      : first(first), count(count), memory(memory), scratch_(running.mine()), running_(&running) {}

  const int first, count;
  BlockMemory& memory;

  // Calls step(from, to, scratch) for rows [from, to) of the block, each row once.
  void rows(const Work& step) const { running_ ? running_->share(count, step) : step(0, count, scratch_); }

  // Calls step(columns, scratch) for columns of a product by this kernel, each column once.
  template <class Kernel, class Step>
  void columns(const BeiLinear& weights, const Step& step) const {
    const Columns all = all_columns(weights);
    if (!running_) return step(all, scratch_);
    constexpr int panel = Kernel::kPanel;
    running_->share((all.last + panel - 1) / panel, [&](int from, int to, Scratch& scratch) {
      step(Columns{from * panel, std::min(all.last, to * panel)}, scratch);
    });
  }

  // Calls sink(row, column, values) once for every vector of a * weights + bias, on any thread.
  template <class T, class Sink>
  void product(const BeiLinear& weights, const MatrixView<T>& a, Sink sink) const {
    columns<Kernel<T>>(weights,
                       [&](Columns columns, Scratch& scratch) { linear(weights, a, count, columns, scratch, sink); });
  }

  // to = a * weights + bias.
  template <class T, class To>
  void multiply(const BeiLinear& weights, const MatrixView<T>& a, const MatrixView<To>& to) const {
    product(weights, a, [to](int row, int column, F v) { store(to.row(row) + column, v); });
  }

 private:
  Scratch& scratch_;
  HelperPool::Running* const running_ = nullptr;
};

}  // namespace bei
