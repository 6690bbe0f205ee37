// The vectors of the level that this is compiled for, and what it multiplies.
#pragma once

#if defined(__aarch64__)
#include "isa/neon.h"
#elif defined(__AVX512F__)
#include "isa/avx512.h"
#else
#include "isa/avx2.h"
#endif

#if !defined(BEI_HAS_MMLA)
#define BEI_HAS_MMLA 0
#endif

#if defined(__AVX512BF16__) || BEI_HAS_MMLA
#define BEI_MULTIPLIES_BF16 1
#else
#define BEI_MULTIPLIES_BF16 0
#endif

#if defined(__AMX_INT8__) && defined(__AMX_BF16__)
#define BEI_MULTIPLIES_TILES 1
#else
#define BEI_MULTIPLIES_TILES 0
#endif

namespace bei {

// Whether an instruction multiplies bf16.
constexpr bool kMultipliesBf16 = BEI_MULTIPLIES_BF16;

// Whether tiles of bytes and of bf16 are multiplied.
constexpr bool kMultipliesTiles = BEI_MULTIPLIES_TILES;

}  // namespace bei
