#include <memory>

#include "encoder_in.h"

namespace bei {

std::unique_ptr<BeiEncoder> make_bf16_encoder(const BeiModel& model, int threads) {
  return std::make_unique<EncoderIn<Bf16>>(model, threads);
}

}  // namespace bei
