// The micro-kernel of AMX: tiles of 16 rows times 16 columns, and 64 bytes of the numbers that are multiplied.
#include "isa/isa.h"

#if BEI_MULTIPLIES_TILES
#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernel/kernel.h"

namespace bei {
namespace {

constexpr int kTileRows = 16, kTileBytes = 64, kTileColumns = 16;

// The operand of _tile_loadconfig: palette 1 has eight tiles. A tile that has no rows has no bytes.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, unused[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The compiler finishes all writes: it does not see what the instructions of tiles read.
inline void written(const void* p) { asm volatile("" : : "r"(p) : "memory"); }

// sums[c] += a * b, of these tiles.
#define BEI_TILE_PRODUCT(c, a, b) \
  if constexpr (sizeof(T) == 1)   \
    _tile_dpbusd(c, a, b);        \
  else                            \
    _tile_dpbf16ps(c, a, b)

// Where the operands and the sums of a product lie; strides in bytes.
struct Place {
  const char *a, *b;
  size_t a_stride, b_stride;
  int steps;  // of 64 bytes
  char* out;
  size_t out_stride;
};

// Up to 16 rows: their tile is read once for all columns of the panel. Sums are in tiles 0 to 3, rows in 4.
template <class T, int Columns>
void multiply_few(Place at) {
  _tile_zero(0);
  if constexpr (Columns > 1) _tile_zero(1);
  if constexpr (Columns > 2) _tile_zero(2);
  if constexpr (Columns > 3) _tile_zero(3);
  for (int k = 0; k < at.steps; k++, at.a += kTileBytes, at.b += kTileRows * at.b_stride) {
    _tile_loadd(4, at.a, at.a_stride);
    _tile_loadd(5, at.b, at.b_stride);
    BEI_TILE_PRODUCT(0, 4, 5);
    if constexpr (Columns > 1) {
      _tile_loadd(6, at.b + kTileBytes, at.b_stride);
      BEI_TILE_PRODUCT(1, 4, 6);
    }
    if constexpr (Columns > 2) {
      _tile_loadd(7, at.b + 2 * kTileBytes, at.b_stride);
      BEI_TILE_PRODUCT(2, 4, 7);
    }
    if constexpr (Columns > 3) {
      _tile_loadd(5, at.b + 3 * kTileBytes, at.b_stride);
      BEI_TILE_PRODUCT(3, 4, 5);
    }
  }
  _tile_stored(0, at.out, at.out_stride);
  if constexpr (Columns > 1) _tile_stored(1, at.out + kTileBytes, at.out_stride);
  if constexpr (Columns > 2) _tile_stored(2, at.out + 2 * kTileBytes, at.out_stride);
  if constexpr (Columns > 3) _tile_stored(3, at.out + 3 * kTileBytes, at.out_stride);
}

// 17 to 32 rows, times 16 or 32 columns: four products for four tiles that are read.
template <class T, int Columns>
void multiply_many(Place at) {
  const char* below = at.a + kTileRows * at.a_stride;
  _tile_zero(0);
  _tile_zero(2);
  if constexpr (Columns > 1) {
    _tile_zero(1);
    _tile_zero(3);
  }
  for (int k = 0; k < at.steps; k++, at.a += kTileBytes, below += kTileBytes, at.b += kTileRows * at.b_stride) {
    _tile_loadd(4, at.a, at.a_stride);
    _tile_loadd(6, at.b, at.b_stride);
    _tile_loadd(5, below, at.a_stride);
    BEI_TILE_PRODUCT(0, 4, 6);
    BEI_TILE_PRODUCT(2, 5, 6);
    if constexpr (Columns > 1) {
      _tile_loadd(7, at.b + kTileBytes, at.b_stride);
      BEI_TILE_PRODUCT(1, 4, 7);
      BEI_TILE_PRODUCT(3, 5, 7);
    }
  }
  char* out_below = at.out + kTileRows * at.out_stride;
  _tile_stored(0, at.out, at.out_stride);
  _tile_stored(2, out_below, at.out_stride);
  if constexpr (Columns > 1) {
    _tile_stored(1, at.out + kTileBytes, at.out_stride);
    _tile_stored(3, out_below + kTileBytes, at.out_stride);
  }
}

#undef BEI_TILE_PRODUCT

template <class T>
void multiply_few(const Place& at, int columns) {
  switch (columns / kTileColumns) {
    case 1:
      return multiply_few<T, 1>(at);
    case 2:
      return multiply_few<T, 2>(at);
    case 3:
      return multiply_few<T, 3>(at);
    default:
      return multiply_few<T, 4>(at);
  }
}

template <class T>
void multiply_many(Place at, int columns) {
  for (; columns >= 2 * kTileColumns; columns -= 2 * kTileColumns, at.b += 2 * kTileBytes, at.out += 2 * kTileBytes)
    multiply_many<T, 2>(at);
  if (columns) multiply_many<T, 1>(at);
}

}  // namespace

// Tiles 0 and 1 have sums of the first 16 rows, 2 and 3 those of the rest, or of the first, too; 4 has rows; 5 has the rest
// of them or columns, 6 and 7 columns.
void TileSession::shape(int rows) {
  const int first = std::min(rows, kTileRows), rest = rows - first;
  const int of_tile[] = {first,     first,    rest ? rest : first, rest ? rest : first, first, rest ? rest : kTileRows,
                         kTileRows, kTileRows};
  TileShapes shapes;
  for (int i = 0; i < 8; i++) shapes.rows[i] = static_cast<uint8_t>(of_tile[i]), shapes.row_bytes[i] = kTileBytes;
  written(&shapes);
  _tile_loadconfig(&shapes);
  rows_ = rows;
}

void TileSession::end() {
  if (rows_) _tile_release();
  rows_ = 0;
}

template <class T>
void Tiles<T>::multiply(Session& session, const T* a, int stride, int row_count, const void* panel, int columns,
                        int words, Sum<T>* out, int out_stride) {
  session.set_rows(row_count);
  written(a);
  const Place at{reinterpret_cast<const char*>(a),
                 static_cast<const char*>(panel),
                 stride * sizeof(T),
                 columns * sizeof(Word),
                 words / kTileRows,
                 reinterpret_cast<char*>(out),
                 out_stride * sizeof(Sum<T>)};
  row_count > kTileRows ? multiply_many<T>(at, columns) : multiply_few<T>(at, columns);
}

template struct Tiles<uint8_t>;
template struct Tiles<bf16>;

}  // namespace bei
#endif
