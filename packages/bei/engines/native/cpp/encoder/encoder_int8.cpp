#include <cstdint>
#include <memory>

#include "encoder/precision_encoder.h"

namespace bei {

std::unique_ptr<BeiEncoder> make_int8_encoder(const BeiModel& model, const BeiMachine& machine,
                                              const int32_t* allowed) {
  return std::make_unique<PrecisionEncoder<Int8>>(model, machine, allowed);
}

}  // namespace bei
