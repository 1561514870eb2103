#include "trainer/model/expert_pool.h"

#include "absl/strings/str_cat.h"

namespace moesaic {

ExpertPool::ExpertPool(const ParameterCatalog& catalog, int layer)
    : layers_(catalog.PoolLayers(layer)) {
  for (const int owner : layers_) {
    for (int index = 0; index < catalog.experts(owner); ++index) {
      const std::string prefix = absl::StrCat("layers.", owner, ".moe.experts.", index, ".");
      experts_.push_back(
          {catalog.Find(prefix + "gate_up"), catalog.Find(prefix + "down"), owner, index});
    }
  }
}

}  // namespace moesaic
