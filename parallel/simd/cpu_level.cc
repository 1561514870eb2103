#include "parallel/simd/cpu_level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace moesaic {
namespace {

#if defined(__x86_64__)
// AMX is told by CPUID leaf 7; GCC 12 and clang 14 name it differently in __builtin_cpu_supports.
bool HasAmxBf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  const bool bf16 = (edx >> 22) & 1;
  const bool tile = (edx >> 24) & 1;
  return bf16 && tile;
}

bool HasAvx512Bf16() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && ((eax >> 5) & 1);
}

CpuLevel Detect() {
  __builtin_cpu_init();
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return CpuLevel::kGeneric;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
    return CpuLevel::kAvx2;
  }
  if (!HasAvx512Bf16()) return CpuLevel::kAvx512;
  return HasAmxBf16() ? CpuLevel::kAmx : CpuLevel::kAvx512Bf16;
}
#else
CpuLevel Detect() { return CpuLevel::kGeneric; }
#endif

}  // namespace

CpuLevel DetectCpuLevel() {
  static const CpuLevel level = Detect();
  return level;
}

const char* CpuLevelName(CpuLevel level) {
  switch (level) {
    case CpuLevel::kGeneric: return "generic";
    case CpuLevel::kAvx2: return "avx2";
    case CpuLevel::kAvx512: return "avx512";
    case CpuLevel::kAvx512Bf16: return "avx512_bf16";
    case CpuLevel::kAmx: return "amx";
  }
  return "?";
}

}  // namespace moesaic
