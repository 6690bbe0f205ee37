// How each kernel reads packed matrices, for Python to ask before it packs one: those of this level, and those of every
// level, since a plan may be made for another machine.
#include <cstdint>
#include <cstring>

#include "abi.h"
#include "kernel/kernel.h"

namespace {

enum class Way { dot, tiles, mmla };

// The facts that decide a layout, of the level with this name.
struct LevelFacts {
  const char* name;
  int lanes, vectors;
  Way way;
  bool pairs_in_16_bits, bf16;
};

constexpr LevelFacts kLevels[] = {
    {"amx", 16, 4, Way::tiles, false, true},        {"avx512_bf16", 16, 4, Way::dot, false, true},
    {"avx512_vnni", 16, 4, Way::dot, false, false}, {"avx512", 16, 4, Way::dot, true, false},
    {"avx2_vnni", 8, 2, Way::dot, false, false},    {"avx2", 8, 2, Way::dot, true, false},
    {"neon_i8mm", 4, 4, Way::mmla, false, true},    {"neon_dotprod", 4, 4, Way::dot, false, false},
    {"neon", 4, 4, Way::dot, false, false},
};

template <class K>
BeiLayout layout_of(int lanes, int panel, int block_rows, float largest, float largest_pair) {
  return {lanes, panel, K::kWordMultiple, K::kGroup, block_rows, largest, largest_pair};
}

template <class T>
BeiLayout layout_at(const LevelFacts& level, float largest, float largest_pair) {
  constexpr bool wide = sizeof(T) == sizeof(float);
  const int lanes = level.lanes, rows = bei::block_rows(level.way == Way::tiles);
  if (level.way == Way::tiles && !wide)
    return layout_of<bei::Tiles<T>>(lanes, bei::Tiles<T>::kPanel, rows, largest, largest_pair);
  if (level.way == Way::mmla && !wide)
    return layout_of<bei::Mmla<T>>(lanes, bei::panel_of_mmla(lanes), rows, largest, largest_pair);
  return layout_of<bei::Dot<T>>(lanes, lanes * level.vectors, rows, largest, largest_pair);
}

// Four bits lie in the order of the numbers that are multiplied, in whole groups.
BeiLayout of_groups(BeiLayout layout) {
  layout.word_multiple = bei::kInt4Group;
  return layout;
}

BeiLayout layout_at(const LevelFacts& level, int32_t precision) {
  switch (precision) {
    case BEI_BF16:
      return layout_at<bei::bf16>(level, 0, 0);
    case BEI_INT4:
      return of_groups(level.bf16 ? layout_at<bei::bf16>(level, 0, 0) : layout_at<float>(level, 0, 0));
    case BEI_INT8:
      return layout_at<uint8_t>(level, bei::kLargestWeight, bei::largest_pair(level.pairs_in_16_bits));
    default:
      return layout_at<float>(level, 0, 0);
  }
}

template <class T>
BeiLayout own_layout(float largest, float largest_pair) {
  return layout_of<bei::Kernel<T>>(bei::kLanes, bei::Kernel<T>::kPanel, bei::kBlockRows, largest, largest_pair);
}

}  // namespace

extern "C" {

BeiLayout bei_layout(int32_t precision) noexcept {
  switch (precision) {
    case BEI_BF16:
      return own_layout<bei::bf16>(0, 0);
    case BEI_INT4:
      return of_groups(own_layout<bei::Half>(0, 0));
    case BEI_INT8:
      return own_layout<uint8_t>(bei::kLargestWeight, bei::kLargestPair);
    default:
      return own_layout<float>(0, 0);
  }
}

BeiLayout bei_layout_of(const char* level, int32_t precision) noexcept {
  for (const LevelFacts& facts : kLevels)
    if (!std::strcmp(facts.name, level)) return layout_at(facts, precision);
  return {};
}

}  // extern "C"
