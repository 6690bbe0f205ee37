// Every function of abi.h over an encoder that throws what it is told to; says what came back (test_native.py).
#include <cstdio>
#include <memory>
#include <new>
#include <stdexcept>

#include "encoder/encoder.h"
#include "encoder/head.h"
#include "encoder/sharing.h"

namespace {

int thrown;

void fail() {
  if (thrown == 0) throw std::bad_alloc();
  if (thrown == 1) throw std::runtime_error("a");
  throw 1;
}

struct Throwing : BeiEncoder {
  bool in_fits = false;
  void pooled(const BeiBatch&, float*) override { fail(); }
  void tokens(const BeiBatch&, float*) override { fail(); }
  bool fits(const BeiBatch&) const override { return in_fits ? (fail(), true) : true; }
};

}  // namespace

namespace bei {

std::unique_ptr<BeiEncoder> make_fp32_encoder(const BeiModel&, const BeiMachine&, const int32_t*) { return fail(), nullptr; }
std::unique_ptr<BeiEncoder> make_bf16_encoder(const BeiModel&, const BeiMachine&, const int32_t*) { return fail(), nullptr; }
std::unique_ptr<BeiEncoder> make_int8_encoder(const BeiModel&, const BeiMachine&, const int32_t*) { return fail(), nullptr; }
BeiSharing sharing_of(const BeiModel&, const BeiMachine&, int, int) { return {}; }
MatrixView<float> HeadLayers::apply(MatrixView<float> x, int, int, Scratch&) const { return fail(), x; }

}  // namespace bei

int main() {
  const BeiModel model{};
  const BeiBatch batch{};
  const BeiMachine machine{};
  BeiLinear linear{};
  float numbers[16] = {};
  linear.inputs = linear.outputs = 1;
  for (thrown = 0; thrown < 3; thrown++) {
    std::printf("%d", bei_encoder_create(&model, &machine, nullptr) != nullptr);
    for (bool in_fits : {false, true}) {
      BeiEncoder* encoder = new Throwing;
      static_cast<Throwing*>(encoder)->in_fits = in_fits;
      std::printf(" %d %d", bei_encoder_pooled(encoder, &batch, numbers), bei_encoder_tokens(encoder, &batch, numbers));
      bei_encoder_destroy(encoder);
    }
    std::printf(" %d\n", bei_linear(&linear, numbers, 1, numbers));
  }
}
