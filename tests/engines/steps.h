// The steps of a batch, whoever helps: each task is run once, and the step ends. For sanitized.cpp.
#pragma once
#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include "encoder/helper_pool.h"
#include "encoder/steps.h"
#include "encoder/waiting.h"

namespace {

constexpr int kTasks = 100, kShares = 7;

// How often each task was run.
struct Counts {
  std::vector<std::atomic<int>> of = std::vector<std::atomic<int>>(kTasks);

  void run(int from, int to) {
    for (int task = from; task < to; task++) of[task]++;
  }
  bool all(int times) const {
    for (const std::atomic<int>& count : of)
      if (count != times) return false;
    return true;
  }
};

void wait_for(const std::atomic<bool>& flag) {
  while (!flag) std::this_thread::yield();
}

void check_that_no_helper_is_needed() {
  bei::Steps steps;
  bei::Scratch scratch;
  Counts counts;
  for (int times = 1; times <= 3; times++) {
    steps.run(kTasks, kShares, scratch, [&](int from, int to, bei::Scratch&) { counts.run(from, to); }, [] {});
    check(counts.all(times) && !steps.has_share(), "tasks are left without helpers");
  }
}

// A helper comes once the batch's thread has taken its first share.
void check_a_late_helper() {
  bei::Steps steps;
  bei::Scratch scratch;
  Counts counts;
  std::atomic<bool> has_begun{false}, has_helped{false};
  std::thread helper([&] {
    bei::Scratch own;
    wait_for(has_begun);
    check(steps.take_share(own), "no share is left");
    has_helped = true;
    while (steps.take_share(own)) {
    }
  });
  const auto work = [&](int from, int to, bei::Scratch& of) {
    has_begun = true;
    if (&of == &scratch) wait_for(has_helped);
    counts.run(from, to);
  };
  steps.run(kTasks, kShares, scratch, work, [] {});
  check(counts.all(1), "a late helper ran a task again, or none did");
  helper.join();
}

// A helper's share takes longer than a thread waits without sleep, and then throws.
void check_a_slow_helper() {
  bei::Steps steps;
  bei::Scratch scratch;
  Counts counts;
  std::atomic<bool> has_share{false};
  std::thread helper([&] {
    bei::Scratch own;
    while (!steps.take_share(own)) std::this_thread::yield();
  });
  const auto work = [&](int from, int to, bei::Scratch& of) {
    counts.run(from, to);
    if (&of == &scratch) return wait_for(has_share);
    has_share = true;
    std::this_thread::sleep_for(3 * bei::kPatience);  // it is the slow one
    throw std::runtime_error("the helper's");
  };
  bool has_thrown = false;
  try {
    steps.run(kTasks, kShares, scratch, work, [] {});
  } catch (const std::runtime_error&) {
    has_thrown = true;
  }
  helper.join();
  check(has_thrown && counts.all(1), "the step ended before its helper, or without its error");
  steps.run(kTasks, kShares, scratch, [&](int from, int to, bei::Scratch&) { counts.run(from, to); }, [] {});
  check(counts.all(2), "a step after an error is not whole");
}

// While another batch runs, the pool of two has no helper; then it has one, which runs a share.
void check_that_a_helper_comes_and_leaves() {
  bei::HelperPool pool(2, nullptr);
  bei::Scratch scratch, of_another;
  bei::HelperPool::Running running(pool, scratch);
  std::atomic<bool> is_helped{false};
  const auto until_helped = [&](int, int, bei::Scratch& of) {
    if (&of == &scratch) return wait_for(is_helped);
    is_helped = true;
  };
  check(running.threads() == 2, "the second thread is not idle");
  running.share(kTasks, until_helped);
  {
    const bei::HelperPool::Running another(pool, of_another);
    while (running.threads() > 1) std::this_thread::yield();
    running.share(kTasks, [&](int, int, bei::Scratch& of) { check(&of == &scratch, "a helper is there at once"); });
  }
  is_helped = false;
  running.share(kTasks, until_helped);
}

void check_steps() {
  check_that_no_helper_is_needed();
  check_a_late_helper();
  check_a_slow_helper();
  check_that_a_helper_comes_and_leaves();
}

}  // namespace
