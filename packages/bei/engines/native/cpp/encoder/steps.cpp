#include "encoder/steps.h"

#include <cstdint>
#include <exception>
#include <mutex>
#include <utility>

namespace bei {

void Steps::open(int tasks, int shares, const Work& work) {
  work_ = &work, tasks_ = tasks, shares_ = shares;
  done_ = 0;
  open_ = Open{open_.load().step + 1, static_cast<uint16_t>(shares), 0};
}

bool Steps::take_share(Scratch& scratch) {
  Open seen = open_;
  while (has_share(seen)) {
    const Open taken{seen.step, seen.shares, static_cast<uint16_t>(seen.next + 1)};
    if (!open_.compare_exchange_weak(seen, taken)) continue;
    compute(seen.next, scratch);
    return true;
  }
  return false;
}

// Nothing of the step may be read once the share is done: the next one may be written.
void Steps::compute(int share, Scratch& scratch) {
  const int shares = shares_;
  try {
    const int64_t tasks = tasks_;
    (*work_)(static_cast<int>(tasks * share / shares), static_cast<int>(tasks * (share + 1) / shares), scratch);
  } catch (...) {
    const std::lock_guard<std::mutex> lock(mutex_);
    error_ = std::current_exception();
  }
  if (++done_ < shares || !sleeps_) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  all_done_.notify_one();
}

void Steps::wait() {
  const auto all_done = [&] { return done_ == shares_; };
  if (!soon(all_done)) {
    std::unique_lock<std::mutex> lock(mutex_);
    sleeps_ = true;
    all_done_.wait(lock, all_done);
    sleeps_ = false;
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

}  // namespace bei
