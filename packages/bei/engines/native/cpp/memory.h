// The working memory of a thread or a batch: it grows to the largest need and is reused.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#include "kernel/kernel.h"

namespace bei {

class Buffer {
 public:
  // n uninitialized numbers, aligned to a cache line. Throws std::bad_alloc.
  template <class T>
  T* get(size_t n) {
    const size_t bytes = round_up<size_t>(n * sizeof(T), 64);
    if (bytes > size_) {
      memory_.reset();
      size_ = 0;
      memory_.reset(std::aligned_alloc(64, bytes));
      if (!memory_) throw std::bad_alloc();
      size_ = bytes;
    }
    return static_cast<T*>(memory_.get());
  }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<void, Free> memory_;
  size_t size_ = 0;
};

// The rows of a matrix, `stride` numbers apart. Bytes are x / scale + zero, with a scale and a zero for each row.
template <class T>
struct MatrixView {
  T* data;
  int stride;
  float *scales = nullptr, *zeros = nullptr;

  T* row(int i) const { return data + static_cast<size_t>(i) * stride; }

  // The rows from `first` on.
  MatrixView from(int first) const {
    return {row(first), stride, scales ? scales + first : nullptr, zeros ? zeros + first : nullptr};
  }
};

// Memory for rows of `width` numbers, each padded to whole vectors, and to whole words of operands.
class RowBuffer {
 public:
  template <class T>
  MatrixView<T> get(int row_count, int width) {
    const int stride = round_up(width, std::max(kLanes, Kernel<T>::kWordMultiple));
    const size_t count = static_cast<size_t>(row_count) * stride;
    if (sizeof(T) > 1) return {data_.get<T>(count), stride};
    float* quantization = quantization_.get<float>(2 * static_cast<size_t>(row_count));
    return {data_.get<T>(count), stride, quantization, quantization + row_count};
  }

 private:
  Buffer data_, quantization_;
};

// The memory of rows that go through a layer together: operands of products, their outputs before a norm, and a layer's
// own input (layer_inputs.h).
struct BlockMemory {
  RowBuffer operands, inner, inner_operands, outputs, input;
};

// The working memory of one thread.
struct Scratch {
  Session session;
  Buffer keys, values, scores, probabilities;  // attention
  Buffer by_distance, by_query, by_query_of;   // its products with relative positions
  Buffer panel;                                // of a matrix, widened
  Buffer group_sums;                           // of inputs that share a scale, in four bits
  Buffer arranged;                             // rows, in the order in which a kernel reads them
  Buffer rotated;                              // a row of an operand, before it is rounded to bytes
  BlockMemory block;                           // of rows that it takes alone
  RowBuffer normed;                            // a row that is read by a product
  RowBuffer head_layers[2];                    // outputs of head layers, which alternate
  RowBuffer residual;                          // the product that a head layer adds
};

// When it goes, another thread may take the scratch.
struct EndOfSession {
  ~EndOfSession() { session.end(); }
  Session& session;
};

// Objects that are reused: each is lent to one thread at a time.
template <class T>
class FreeList {
 public:
  class Lease {
   public:
    explicit Lease(FreeList& list) : list_(list), thing_(list.take()) {}
    ~Lease() { list_.give(std::move(thing_)); }
    Lease(const Lease&) = delete;
    T& operator*() const { return *thing_; }
    T* operator->() const { return thing_.get(); }

   private:
    FreeList& list_;
    std::unique_ptr<T> thing_;
  };

 private:
  std::unique_ptr<T> take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (things_.empty()) return std::make_unique<T>();
    auto thing = std::move(things_.back());
    things_.pop_back();
    return thing;
  }
  void give(std::unique_ptr<T> thing) {
    const std::lock_guard<std::mutex> lock(mutex_);
    things_.push_back(std::move(thing));
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<T>> things_;
};

}  // namespace bei
