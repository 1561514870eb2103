#include "trainer/model/expert_pool.h"

#include "absl/strings/str_cat.h"

namespace moesaic {

ExpertPool::ExpertPool(const ParameterCatalog& catalog, int owner_layer)
    : owner_layer_(owner_layer) {
  for (int index = 0; index < catalog.experts(owner_layer); ++index) {
    const std::string prefix = absl::StrCat("layers.", owner_layer, ".moe.experts.", index, ".");
    experts_.push_back({catalog.Find(prefix + "gate_up"), catalog.Find(prefix + "down")});
  }
}

}  // namespace moesaic
