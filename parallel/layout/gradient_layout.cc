#include "parallel/layout/gradient_layout.h"

#include <algorithm>

namespace moesaic {

std::vector<int> RootOwners(std::span<const SummedParameter> parameters, int ranks) {
  std::vector<int64_t> load(ranks, 0);
  std::vector<int> owners;
  for (const SummedParameter& parameter : parameters) {
    if (parameter.primary >= 0) {
      owners.push_back(parameter.primary);
      continue;
    }
    const auto least = std::min_element(load.begin(), load.end());
    owners.push_back(static_cast<int>(least - load.begin()));
    *least += parameter.elements;
  }
  return owners;
}

std::vector<ParameterRange> GradientBatches(std::span<const SummedParameter> parameters,
                                            int64_t batch_elements) {
  std::vector<ParameterRange> batches;
  int64_t elements = 0;
  for (int p = 0; p < static_cast<int>(parameters.size()); ++p) {
    if (p == 0 || elements + parameters[p].elements > batch_elements) {
      batches.push_back({p, p});
      elements = 0;
    }
    elements += parameters[p].elements;
    batches.back().end = p + 1;
  }
  return batches;
}

}  // namespace moesaic
