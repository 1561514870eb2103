// Which instructions the computing kernels may use: found once from the CPU's features, so that the
// same class of CPU always runs the same code and gives the same bits.
#pragma once

namespace moesaic {

// Each level includes the ones before it.
enum class CpuLevel {
  kGeneric,     // what the compiler's default target has
  kAvx2,        // AVX2 and FMA
  kAvx512,      // AVX-512 F, BW, DQ, VL
  kAvx512Bf16,  // and its products of bfloat16
  kAmx,         // and tiles of bfloat16
};

// Thread-safe; the same answer for the life of the process.
CpuLevel DetectCpuLevel();

const char* CpuLevelName(CpuLevel level);

}  // namespace moesaic
