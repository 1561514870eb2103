#include "trainer/catalog/write_plan.h"

#include <algorithm>
#include <cstdint>

namespace moesaic {

std::vector<int> CheckpointWriters(const ParameterCatalog& catalog, const Mesh& mesh,
                                   const ExpertPlacement& placement) {
  std::vector<int> writers(catalog.size());
  std::vector<int64_t> load(mesh.size());
  std::vector<ParameterId> dense;
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    const ParameterSpec& spec = catalog[id];
    if (spec.expert < 0) {
      dense.push_back(id);
      continue;
    }
    writers[id] = placement.primary(spec.layer, spec.expert);
    load[writers[id]] += spec.elements();
  }
  std::stable_sort(dense.begin(), dense.end(), [&](ParameterId a, ParameterId b) {
    return catalog[a].elements() > catalog[b].elements();
  });
  for (const ParameterId id : dense) {
    const auto least = std::min_element(load.begin(), load.end());
    writers[id] = static_cast<int>(least - load.begin());
    *least += catalog[id].elements();
  }
  return writers;
}

}  // namespace moesaic
