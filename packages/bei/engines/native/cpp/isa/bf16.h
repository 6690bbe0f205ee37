// A number of the type bf16: the upper half of a float.
#pragma once
#include <cstdint>

namespace bei {

struct bf16 {
  uint16_t bits;
};

}  // namespace bei
