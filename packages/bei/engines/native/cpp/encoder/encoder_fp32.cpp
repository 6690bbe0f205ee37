#include <cstdint>
#include <memory>

#include "encoder/precision_encoder.h"

namespace bei {

std::unique_ptr<BeiEncoder> make_fp32_encoder(const BeiModel& model, const BeiMachine& machine,
                                              const int32_t* allowed) {
  return std::make_unique<PrecisionEncoder<Fp32>>(model, machine, allowed);
}

}  // namespace bei
