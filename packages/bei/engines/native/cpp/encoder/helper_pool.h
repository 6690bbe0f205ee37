// Helper threads for a batch that runs alone, while other processors are idle.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "encoder/steps.h"
#include "encoder/waiting.h"
#include "memory.h"

namespace bei {

// At most `threads` threads run at once: those of batches, and helpers while there are fewer batches. `allowed`, null for no
// other bound, is how many may run now; another process writes it at any time.
class HelperPool {
  // A batch's steps, and the helpers that it has and wants. `is_known`: once it has invited one.
  struct Team {
    Steps steps;
    std::atomic<int> helpers{0}, wanted{0};
    bool is_known = false;
  };

 public:
  HelperPool(int threads, const int32_t* allowed);
  ~HelperPool();

  // A batch. While it lives, its thread counts as running.
  class Running {
   public:
    Running(HelperPool& pool, Scratch& mine);
    ~Running();
    Running(const Running&) = delete;

    // The memory of its own thread.
    Scratch& mine() const { return mine_; }

    // The threads that may share a step: this one, its helpers, and idle ones; at most those that it is limited to.
    int threads() const { return std::min(most_, 1 + team_->helpers + pool_.idle()); }
    void limit(int threads) { most_ = threads; }

    // For short steps helpers are asked only while they come in time: other processes may take their processors.
    bool are_prompt() const { return pool_.are_prompt(); }
    void need_prompt() { needs_prompt_ = true; }

    // Run tasks 0 to count - 1, which are short and alike, in any order, on this thread and on helpers. Rethrows the
    // exception of a task.
    void share(int count, const Work& work) { run(count, kShares * threads(), work); }

    // The same with tasks of any length, each by a call of f(task, scratch).
    template <class Fn>
    void each(int count, const Fn& f) {
      run(count, kMostShares, [&](int from, int to, Scratch& scratch) {
        for (int task = from; task < to; task++) f(task, scratch);
      });
    }

   private:
    void run(int count, int shares, const Work& work);

    HelperPool& pool_;
    Scratch& mine_;
    const std::shared_ptr<Team> team_;
    int most_;
    bool needs_prompt_ = false;
  };

 private:
  static constexpr int kShares = 4;  // of a step for each thread: one that is late leaves some of them to the others

  int most() const { return allowed_ ? std::min(threads_, __atomic_load_n(allowed_, __ATOMIC_RELAXED)) : threads_; }
  int idle() const { return std::max(0, most() - running_); }
  bool are_prompt() const { return Clock::now().time_since_epoch().count() >= prompt_from_; }

  void invite(const std::shared_ptr<Team>& team, int helpers);
  void leave(const std::shared_ptr<Team>& team);
  void help();
  void help_with(Steps& steps, Scratch& scratch);
  std::shared_ptr<Team> open_team() const;

  const int threads_;
  const int32_t* const allowed_;
  std::mutex mutex_;
  std::condition_variable invited_;
  std::vector<std::shared_ptr<Team>> teams_;  // that have invited helpers
  std::atomic<int> running_{0};               // batches and helpers
  std::atomic<Clock::rep> prompt_from_{0};    // the time from which on helpers are asked again
  bool closing_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace bei
