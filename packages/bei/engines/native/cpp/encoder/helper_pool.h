// Helper threads for a batch that runs alone, while other processors are idle.
#pragma once
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "memory.h"

namespace bei {

// At most `threads` threads run at once: the callers of `each`, and helpers while there are fewer callers. `allowed`, null
// for no other bound, is how many may run now; another process writes it at any time.
class HelperPool {
 public:
  HelperPool(int threads, const int32_t* allowed);
  ~HelperPool();

  using Work = std::function<void(int task, Scratch& scratch)>;

  // While it lives, its thread counts as running.
  class Running {
   public:
    explicit Running(HelperPool& pool);
    ~Running();

   private:
    HelperPool& pool_;
  };

  // The number of idle threads.
  int idle() const { return std::max(0, most() - running_); }

  // Run tasks 0 to count - 1 in any order, on this thread and on idle helpers. `mine` is this thread's memory.
  // Rethrows the exception of a task.
  void each(int count, Scratch& mine, const Work& work);

 private:
  struct Job {
    const Work& work;
    const int count;
    std::atomic<int> next{0};
    int helpers = 0;
    std::exception_ptr error{};
  };

  int most() const { return allowed_ ? std::min(threads_, __atomic_load_n(allowed_, __ATOMIC_RELAXED)) : threads_; }
  void help();
  Job* open_job();
  void take_tasks(Job& job, Scratch& scratch, bool helping);

  const int threads_;
  const int32_t* const allowed_;
  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::list<Job*> jobs_;
  std::atomic<int> running_{0};  // callers and helpers
  bool closing_ = false;
  std::vector<std::thread> helpers_;
};

}  // namespace bei
