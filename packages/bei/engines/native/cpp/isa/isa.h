// The vectors of the level that this is compiled for, and what it multiplies.
#pragma once

#if defined(__AVX512F__)
#include "isa/avx512.h"
#else
#include "isa/avx2.h"
#endif

#if defined(__AVX512BF16__)
#define BEI_MULTIPLIES_BF16 1
#else
#define BEI_MULTIPLIES_BF16 0
#endif

namespace bei {

// Whether an instruction multiplies bf16.
constexpr bool kMultipliesBf16 = BEI_MULTIPLIES_BF16;

}  // namespace bei
