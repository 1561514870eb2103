#include "parallel/data/gradients.h"

#include <algorithm>

namespace moesaic {

bool IsDense(const HeldParameter& parameter) { return parameter.holders.empty(); }

bool IsHeldBy(const HeldParameter& parameter, int rank) {
  const std::vector<int>& holders = parameter.holders;
  return holders.empty() || std::find(holders.begin(), holders.end(), rank) != holders.end();
}

int64_t PaddedElements(int64_t elements) {
  constexpr int64_t kLine = 64 / sizeof(float);
  return (elements + kLine - 1) / kLine * kLine;
}

}  // namespace moesaic
