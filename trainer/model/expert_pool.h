// ExpertPool: the parameters of a set of experts, apart from the layers that use them.
#pragma once

#include <vector>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

struct ExpertParameters {
  ParameterId gate_up = kNoParameter;
  ParameterId down = kNoParameter;
};

// An expert is (owner layer, index) everywhere. Immutable; thread-safe.
class ExpertPool {
 public:
  // The experts that layer `owner_layer` owns; none for a dense layer.
  ExpertPool(const ParameterCatalog& catalog, int owner_layer);

  int owner_layer() const { return owner_layer_; }
  int size() const { return static_cast<int>(experts_.size()); }
  const ExpertParameters& operator[](int index) const { return experts_[index]; }

 private:
  int owner_layer_;
  std::vector<ExpertParameters> experts_;
};

}  // namespace moesaic
