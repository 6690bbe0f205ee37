// The forward pass of an EncoderSpec over packed tokens.
#pragma once
#include <cstdint>
#include <memory>

#include "abi.h"
#include "encoder/helper_pool.h"

// Safe from several threads at a time.
struct BeiEncoder {
  virtual ~BeiEncoder() = default;

  // Pooled rows, or token states, after the model's head layers. Throws std::bad_alloc.
  virtual void pooled(const BeiBatch& batch, float* rows) = 0;
  virtual void tokens(const BeiBatch& batch, float* states) = 0;

  // Whether every number of the batch is within its bounds (batch.h).
  virtual bool fits(const BeiBatch& batch) const = 0;
};

namespace bei {

std::unique_ptr<BeiEncoder> make_fp32_encoder(const BeiModel& model, const BeiMachine& machine, const int32_t* allowed);
std::unique_ptr<BeiEncoder> make_bf16_encoder(const BeiModel& model, const BeiMachine& machine, const int32_t* allowed);
std::unique_ptr<BeiEncoder> make_int8_encoder(const BeiModel& model, const BeiMachine& machine, const int32_t* allowed);

}  // namespace bei
