// The steps of a batch, each shared by the batch's own thread and its helpers.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>

#include "encoder/waiting.h"
#include "memory.h"

namespace bei {

// Refers to a function that runs the tasks [from, to) in the memory of its thread.
class Work {
 public:
  template <class Fn>
  Work(const Fn& f) : f_(&f), call_(call<Fn>) {}
  void operator()(int from, int to, Scratch& scratch) const { call_(f_, from, to, scratch); }

 private:
  template <class Fn>
  static void call(const void* f, int from, int to, Scratch& scratch) {
    (*static_cast<const Fn*>(f))(from, to, scratch);
  }

  const void* f_;
  void (*call_)(const void*, int, int, Scratch&);
};

constexpr int kMostShares = 1 << 15;  // of a step

// One step at a time. Its tasks lie in shares, and threads take one after another, so the step ends whoever comes: a helper
// that is late finds fewer of them, and one that leaves has none.
class Steps {
 public:
  // The batch's thread: opens a step, takes shares, and waits for those that helpers took. Calls `invite` in between.
  // Returns whether it has waited for much longer than it worked: the helpers' processors were taken from them. Rethrows the
  // exception of a task.
  template <class Invite>
  bool run(int tasks, int shares, Scratch& scratch, const Work& work, Invite invite) {
    const auto start = Clock::now();
    open(tasks, shares, work);
    invite();
    while (take_share(scratch)) {
    }
    const auto done = Clock::now();
    wait();
    excess_ = std::max(Clock::duration(0), excess_ + (Clock::now() - done) - (done - start) / 2);
    return excess_ > kPatience;
  }

  // A helper's; whether there was a share.
  bool take_share(Scratch& scratch);
  bool has_share() const { return has_share(open_.load(std::memory_order_acquire)); }

  bool are_over() const { return over_.load(std::memory_order_acquire); }
  void end() { over_.store(true, std::memory_order_release); }

 private:
  // One word, so that a share is taken of the very step that was seen.
  struct Open {
    uint32_t step;
    uint16_t shares, next;
  };
  static bool has_share(Open open) { return open.next < open.shares; }

  void open(int tasks, int shares, const Work& work);
  void compute(int share, Scratch& scratch);
  void wait();

  alignas(64) std::atomic<Open> open_{Open{0, 0, 0}};
  alignas(64) std::atomic<int> done_{0};
  alignas(64) const Work* work_ = nullptr;
  int tasks_ = 0, shares_ = 0;
  std::atomic<bool> over_{false}, sleeps_{false};
  Clock::duration excess_{0};  // of waiting over half of the work, in the last steps
  std::mutex mutex_;
  std::condition_variable all_done_;
  std::exception_ptr error_{};
};

}  // namespace bei
