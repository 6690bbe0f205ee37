#include "encoder/helper_pool.h"

#include <exception>
#include <mutex>
#include <thread>

namespace bei {

HelperPool::HelperPool(int threads, const int32_t* allowed) : threads_(threads), allowed_(allowed) {
  for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
}

HelperPool::~HelperPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  work_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

HelperPool::Running::Running(HelperPool& pool) : pool_(pool) { pool_.running_++; }
HelperPool::Running::~Running() { pool_.running_--; }

void HelperPool::each(int count, Scratch& mine, const Work& work) {
  Job job{work, count};
  const bool shared = count > 1 && idle();
  if (shared) {
    const std::lock_guard<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
    work_.notify_all();
  }
  take_tasks(job, mine, false);
  if (shared) {
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.remove(&job);
    done_.wait(lock, [&] { return job.helpers == 0; });
  }
  if (job.error) std::rethrow_exception(job.error);
}

void HelperPool::help() {
  Scratch scratch;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    Job* job = nullptr;
    work_.wait(lock, [&] { return closing_ || (job = open_job()); });
    if (closing_) return;
    job->helpers++;
    running_++;
    lock.unlock();
    take_tasks(*job, scratch, true);
    scratch.session.end();
    lock.lock();
    running_--;
    if (--job->helpers == 0) done_.notify_all();
  }
}

HelperPool::Job* HelperPool::open_job() {
  if (running_ >= most()) return nullptr;
  for (Job* job : jobs_)
    if (job->next < job->count) return job;
  return nullptr;
}

// A helper stops as soon as a new caller, or another process, needs its processor.
void HelperPool::take_tasks(Job& job, Scratch& scratch, bool helping) {
  try {
    for (int task; (!helping || running_ <= most()) && (task = job.next++) < job.count;) job.work(task, scratch);
  } catch (...) {
    job.next = job.count;
    const std::lock_guard<std::mutex> lock(mutex_);
    job.error = std::current_exception();
  }
}

}  // namespace bei
