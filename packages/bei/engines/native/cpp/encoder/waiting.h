// Waiting for another thread without sleep, for a bounded time.
#pragma once
#include <chrono>
#include <thread>

#include "isa/isa.h"

namespace bei {

using Clock = std::chrono::steady_clock;

constexpr int kPauses = 500;  // some 10 us; a sleeping thread takes 50 us to wake up
constexpr std::chrono::microseconds kPatience{300};

// Whether it is ready before long. After some pauses each look gives the processor to any other thread that wants it.
template <class Ready>
bool soon(Ready ready) {
  for (int i = 0; i < kPauses; i++, pause())
    if (ready()) return true;
  const auto end = Clock::now() + kPatience;
  while (Clock::now() < end) {
    if (ready()) return true;
    std::this_thread::yield();
  }
  return ready();
}

}  // namespace bei
