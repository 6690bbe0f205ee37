// How each kernel reads packed matrices, for Python to ask before it packs one.
#include <cstdint>

#include "abi.h"
#include "kernel/kernel.h"

namespace {

template <class T>
BeiLayout layout_of(float largest, float largest_pair) {
  using K = bei::Kernel<T>;
  return {bei::kLanes, K::kPanel, K::kWordMultiple, K::kGroup, bei::kBlockRows, largest, largest_pair};
}

}  // namespace

extern "C" BeiLayout bei_layout(int32_t precision) noexcept {
  switch (precision) {
    case BEI_BF16:
      return layout_of<bei::bf16>(0, 0);
    case BEI_INT8:
      return layout_of<uint8_t>(bei::kLargestWeight, bei::kLargestPair);
    default:
      return layout_of<float>(0, 0);
  }
}
