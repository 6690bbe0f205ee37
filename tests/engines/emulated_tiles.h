// AMX in plain C++: each instruction as Intel's Software Developer's Manual defines it, with the faults that it raises.
#pragma once
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbusd
#undef _tile_dpbf16ps

namespace bei {
namespace emulated {

constexpr int kTiles = 8, kMostRows = 16, kMostBytes = 64;

struct Tile {
  int rows = 0, row_bytes = 0;  // none: the tile may not be used
  uint8_t bytes[kMostRows][kMostBytes] = {};
};

// Of a thread, as of a processor.
inline thread_local Tile tiles[kTiles];

inline void fault_unless(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "AMX: %s\n", what);
  throw std::logic_error(what);
}

inline Tile& shaped(int number) {
  fault_unless(number >= 0 && number < kTiles, "there are eight tiles");
  fault_unless(tiles[number].rows, "a tile has no shape");
  return tiles[number];
}

// The rest of a tile is zero after each write.
inline void clear(Tile& tile) { std::memset(tile.bytes, 0, sizeof tile.bytes); }

inline Tile& product(int sums, int a, int b) {
  fault_unless(sums != a && sums != b && a != b, "a product of one tile twice");
  Tile &c = shaped(sums), &x = shaped(a), &y = shaped(b);
  fault_unless(c.rows == x.rows, "sums and rows differ in their rows");
  fault_unless(c.row_bytes == y.row_bytes, "sums and columns differ in their columns");
  fault_unless(x.row_bytes % 4 == 0 && y.row_bytes % 4 == 0, "half a word");
  fault_unless(x.row_bytes / 4 == y.rows, "rows and columns differ in their words");
  return c;
}

inline float without_denormals(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.f, x) : x; }

// "FP32 FMA with DAZ=FTZ=1, RNE rounding."
inline float fused(float a, float b, float c) {
  return without_denormals(__builtin_fmaf(without_denormals(a), without_denormals(b), without_denormals(c)));
}

inline float half_at(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof bits);
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float x;
  std::memcpy(&x, &word, sizeof x);
  return x;
}

}  // namespace emulated

inline void _tile_loadconfig(const void* memory) {
  using namespace emulated;
  uint8_t from[64];
  std::memcpy(from, memory, sizeof from);
  const auto zero = [&](int first, int last) {
    for (int i = first; i < last; i++) fault_unless(!from[i], "a reserved byte of the shapes is not zero");
  };
  for (Tile& tile : tiles) tile = Tile{};
  if (from[0] == 0) return;
  fault_unless(from[0] == 1, "palette 1 is the only one");
  fault_unless(from[1] == 0, "an operation that was interrupted");
  zero(2, 16), zero(32, 48), zero(56, 64);
  for (int i = 0; i < kTiles; i++) {
    const int row_bytes = from[16 + 2 * i] | from[17 + 2 * i] << 8, rows = from[48 + i];
    fault_unless(row_bytes <= kMostBytes, "a row has 64 bytes at most");
    fault_unless(rows <= kMostRows, "a tile has 16 rows at most");
    fault_unless((row_bytes == 0) == (rows == 0), "rows without bytes, or bytes without rows");
  }
  for (int i = 0; i < kTiles; i++) tiles[i].row_bytes = from[16 + 2 * i], tiles[i].rows = from[48 + i];
}

inline void _tile_release() {
  for (emulated::Tile& tile : emulated::tiles) tile = emulated::Tile{};
}

inline void _tile_zero(int number) { emulated::clear(emulated::shaped(number)); }

inline void _tile_loadd(int number, const void* from, size_t stride) {
  emulated::Tile& tile = emulated::shaped(number);
  emulated::clear(tile);
  for (int i = 0; i < tile.rows; i++)
    std::memcpy(tile.bytes[i], static_cast<const char*>(from) + i * stride, tile.row_bytes);
}

inline void _tile_stored(int number, void* to, size_t stride) {
  const emulated::Tile& tile = emulated::shaped(number);
  for (int i = 0; i < tile.rows; i++) std::memcpy(static_cast<char*>(to) + i * stride, tile.bytes[i], tile.row_bytes);
}

// Unsigned bytes of `a` times signed ones of `b`, in 32 bits that wrap around.
inline void _tile_dpbusd(int sums, int a, int b) {
  emulated::Tile& c = emulated::product(sums, a, b);
  const emulated::Tile &x = emulated::tiles[a], &y = emulated::tiles[b];
  for (int m = 0; m < c.rows; m++)
    for (int k = 0; k < x.row_bytes / 4; k++)
      for (int n = 0; n < c.row_bytes / 4; n++) {
        uint32_t sum;
        std::memcpy(&sum, c.bytes[m] + 4 * n, sizeof sum);
        for (int i = 0; i < 4; i++)
          sum += static_cast<uint32_t>(x.bytes[m][4 * k + i] * static_cast<int8_t>(y.bytes[k][4 * n + i]));
        std::memcpy(c.bytes[m] + 4 * n, &sum, sizeof sum);
      }
}

// The even products of a row and a column are summed, and the odd ones; then both, and to what was there.
inline void _tile_dpbf16ps(int sums, int a, int b) {
  using emulated::without_denormals;
  emulated::Tile& c = emulated::product(sums, a, b);
  const emulated::Tile &x = emulated::tiles[a], &y = emulated::tiles[b];
  for (int m = 0; m < c.rows; m++)
    for (int n = 0; n < c.row_bytes / 4; n++) {
      float even = 0, odd = 0, sum;
      for (int k = 0; k < x.row_bytes / 4; k++) {
        const uint8_t *p = x.bytes[m] + 4 * k, *q = y.bytes[k] + 4 * n;
        even = emulated::fused(emulated::half_at(p), emulated::half_at(q), even);
        odd = emulated::fused(emulated::half_at(p + 2), emulated::half_at(q + 2), odd);
      }
      std::memcpy(&sum, c.bytes[m] + 4 * n, sizeof sum);
      sum = without_denormals(without_denormals(sum) + without_denormals(even + odd));
      std::memcpy(c.bytes[m] + 4 * n, &sum, sizeof sum);
    }
}

}  // namespace bei

// Only now: before it, the compiler's own header would take them for the processor's.
#define __AMX_TILE__ 1
#define __AMX_INT8__ 1
#define __AMX_BF16__ 1
