#include <memory>

#include "encoder_in.h"

namespace bei {

std::unique_ptr<BeiEncoder> make_fp32_encoder(const BeiModel& model, int threads) {
  return std::make_unique<EncoderIn<Fp32>>(model, threads);
}

}  // namespace bei
