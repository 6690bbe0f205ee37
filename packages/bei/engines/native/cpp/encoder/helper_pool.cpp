#include "encoder/helper_pool.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

namespace bei {
namespace {

constexpr std::chrono::milliseconds kAloneAfterLate{100};

}  // namespace

HelperPool::HelperPool(int threads, const int32_t* allowed) : threads_(threads), allowed_(allowed) {
  for (int i = 1; i < threads; i++) helpers_.emplace_back([this] { help(); });
}

HelperPool::~HelperPool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  invited_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

HelperPool::Running::Running(HelperPool& pool, Scratch& mine)
    : pool_(pool), mine_(mine), team_(std::make_shared<Team>()), most_(pool.threads_) {
  pool_.running_++;
}

HelperPool::Running::~Running() {
  team_->steps.end();
  pool_.leave(team_);
}

void HelperPool::Running::run(int count, int shares, const Work& work) {
  const int threads = std::min(count, this->threads());
  if (threads <= 1) return work(0, count, mine_);
  const bool was_late =
      team_->steps.run(count, std::min(count, shares), mine_, work, [&] { pool_.invite(team_, threads - 1); });
  if (!was_late || !needs_prompt_) return;
  limit(1);
  pool_.prompt_from_ = (Clock::now() + kAloneAfterLate).time_since_epoch().count();
}

void HelperPool::invite(const std::shared_ptr<Team>& team, int helpers) {
  const int wanted = team->wanted;
  if (wanted >= helpers) return;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!team->is_known) teams_.push_back(team);
    team->is_known = true;
    team->wanted += helpers - wanted;
  }
  for (int i = wanted; i < helpers; i++) invited_.notify_one();
}

// A batch that goes on may want the helper whose processor is free now.
void HelperPool::leave(const std::shared_ptr<Team>& team) {
  bool is_wanted = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    running_--;
    if (team->is_known) teams_.erase(std::remove(teams_.begin(), teams_.end(), team), teams_.end());
    is_wanted = open_team() != nullptr;
  }
  if (is_wanted) invited_.notify_one();
}

void HelperPool::help() {
  Scratch scratch;
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    std::shared_ptr<Team> team;
    invited_.wait(lock, [&] { return closing_ || (team = open_team()); });
    if (closing_) return;
    team->helpers++;
    running_++;
    lock.unlock();
    help_with(team->steps, scratch);
    scratch.session.end();
    lock.lock();
    running_--;
    team->helpers--;
    team->wanted--;
  }
}

std::shared_ptr<HelperPool::Team> HelperPool::open_team() const {
  if (running_ >= most()) return nullptr;
  for (const std::shared_ptr<Team>& team : teams_)
    if (team->helpers < team->wanted) return team;
  return nullptr;
}

// A helper stops as soon as a new batch, or another process, needs its processor, or if it has waited for long.
void HelperPool::help_with(Steps& steps, Scratch& scratch) {
  const auto is_wanted = [&] { return running_ <= most() && !steps.are_over(); };
  do {
    while (is_wanted() && steps.take_share(scratch)) {
    }
  } while (is_wanted() && soon([&] { return steps.has_share() || !is_wanted(); }));
}

}  // namespace bei
