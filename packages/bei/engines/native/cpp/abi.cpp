#include "abi.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

#include "encoder/activation.h"
#include "encoder/encoder.h"
#include "encoder/head.h"
#include "encoder/sharing.h"

namespace {

// No exception leaves the library: its caller is not C++.
template <class Run>
int32_t guarded(Run run) {
  try {
    return run();
  } catch (const std::bad_alloc&) {
    return BEI_OUT_OF_MEMORY;
  } catch (...) {
    return BEI_FAILED;
  }
}

std::unique_ptr<BeiEncoder> make_encoder(const BeiModel& model, const BeiMachine& machine, const int32_t* allowed) {
  switch (model.precision) {
    case BEI_BF16:
    case BEI_INT4:
      return bei::make_bf16_encoder(model, machine, allowed);
    case BEI_INT8:
      return bei::make_int8_encoder(model, machine, allowed);
    default:
      return bei::make_fp32_encoder(model, machine, allowed);
  }
}

}  // namespace

extern "C" {

BeiSharing bei_sharing(const BeiModel* model, const BeiMachine* machine, int32_t tokens) noexcept {
  return bei::sharing_of(*model, *machine, tokens, machine->threads);
}

BeiEncoder* bei_encoder_create(const BeiModel* model, const BeiMachine* machine, const int32_t* allowed) noexcept {
  try {
    return make_encoder(*model, *machine, allowed).release();
  } catch (...) {
    return nullptr;
  }
}

void bei_encoder_destroy(BeiEncoder* encoder) noexcept { delete encoder; }

int32_t bei_encoder_pooled(BeiEncoder* encoder, const BeiBatch* batch, float* rows) noexcept {
  return guarded([&] {
    if (!encoder->fits(*batch)) return BEI_BAD_BATCH;
    return encoder->pooled(*batch, rows), BEI_OK;
  });
}

int32_t bei_encoder_tokens(BeiEncoder* encoder, const BeiBatch* batch, float* states) noexcept {
  return guarded([&] {
    if (!encoder->fits(*batch)) return BEI_BAD_BATCH;
    return encoder->tokens(*batch, states), BEI_OK;
  });
}

int32_t bei_linear(const BeiLinear* linear, const float* x, int32_t row_count, float* out) noexcept {
  return guarded([&] {
    const BeiHeadLayer layer{BEI_DENSE, 0, *linear, {}, {}};
    bei::Scratch scratch;
    const int n = linear->inputs, outputs = linear->outputs;
    const bei::MatrixView<float> copied = scratch.block.inner.get<float>(row_count, n);
    for (int i = 0; i < row_count; i++) std::copy_n(x + static_cast<size_t>(i) * n, n, copied.row(i));
    const bei::MatrixView<float> y = bei::HeadLayers{&layer, 1}.apply(copied, n, row_count, scratch);
    for (int i = 0; i < row_count; i++) std::copy_n(y.row(i), outputs, out + static_cast<size_t>(i) * outputs);
    return BEI_OK;
  });
}

}  // extern "C"
