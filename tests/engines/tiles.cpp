// The faults that emulated tiles refuse, a line each, and a product of theirs (test_emulated.py).
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace {

// As Intel lays it out: palette, first row, reserved, bytes of a row, reserved, rows, reserved.
struct Shapes {
  uint8_t palette = 1, start_row = 0, unused[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(Shapes) == 64, "the memory that is loaded");

template <class Fn>
void refused(Fn fn) {
  try {
    fn();
    std::printf("nothing\n");
  } catch (const std::logic_error& error) {
    std::printf("%s\n", error.what());
  }
}

template <class Change>
void refused_shapes(Change change) {
  Shapes shapes;
  change(shapes);
  refused([&] { bei::_tile_loadconfig(&shapes); });
}

// A product of tiles 1 and 2, whose shapes `change` spoils.
template <class Change>
void refused_product(Change change) {
  Shapes shapes;
  change(shapes);
  bei::_tile_loadconfig(&shapes);
  refused([] { bei::_tile_dpbusd(0, 1, 2); });
}

template <class T>
float first_sum(const std::vector<T>& a, const std::vector<T>& b, float start, void (*product)(int, int, int)) {
  Shapes shapes;
  char sums[16][64] = {}, x[16][64] = {}, y[16][64] = {};
  std::memcpy(sums, &start, sizeof start);
  std::memcpy(x, a.data(), a.size() * sizeof(T));
  const int per_word = 4 / sizeof(T);
  for (size_t i = 0; i < b.size(); i++) std::memcpy(y[i / per_word] + i % per_word * sizeof(T), &b[i], sizeof(T));
  bei::_tile_loadconfig(&shapes);
  bei::_tile_loadd(0, sums, 64), bei::_tile_loadd(1, x, 64), bei::_tile_loadd(2, y, 64);
  product(0, 1, 2);
  bei::_tile_stored(0, sums, 64);
  std::memcpy(&start, sums, sizeof start);
  return start;
}

uint16_t half(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 16;
}

float halves(const std::vector<float>& a, const std::vector<float>& b, float start) {
  std::vector<uint16_t> x, y;
  for (float v : a) x.push_back(half(v));
  for (float v : b) y.push_back(half(v));
  return first_sum(x, y, start, bei::_tile_dpbf16ps);
}

}  // namespace

int main() {
  refused_shapes([](Shapes& s) { s.palette = 2; });
  refused_shapes([](Shapes& s) { s.start_row = 1; });
  refused_shapes([](Shapes& s) { s.rows[3] = 17; });
  refused_shapes([](Shapes& s) { s.row_bytes[3] = 65; });
  refused_shapes([](Shapes& s) { s.rows[3] = 0; });
  refused_shapes([](Shapes& s) { s.unused[0] = 1; });
  refused_shapes([](Shapes& s) { s.rows[8] = 1; });
  refused_shapes([](Shapes&) {});
  refused_product([](Shapes& s) { s.rows[0] = 8; });
  refused_product([](Shapes& s) { s.row_bytes[2] = 32; });
  refused_product([](Shapes& s) { s.row_bytes[1] = 32; });
  refused_product([](Shapes& s) { s.rows[1] = 0, s.row_bytes[1] = 0; });
  refused_product([](Shapes&) {});
  refused([] { bei::_tile_dpbusd(0, 1, 1); });
  refused([] { bei::_tile_zero(8); });
  bei::_tile_release();
  refused([] { bei::_tile_zero(0); });
  const float bytes = first_sum<uint8_t>({255, 255, 1}, {128, 128, 3}, 0, bei::_tile_dpbusd);
  int32_t sum;
  std::memcpy(&sum, &bytes, sizeof sum);
  std::printf("%d\n", sum);
  std::printf("%g\n", halves({16777216, -16777216, 1}, {1, 1, 1}, 0));    // even: the 1 is lost; odd; both
  std::printf("%g\n", halves({0, 1e-20f}, {0, 1e-20f}, 0));                // a denormal product
  std::printf("%g\n", halves({1e-39f}, {1e30f}, 0));                      // a denormal factor
}
