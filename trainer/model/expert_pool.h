// ExpertPool: the parameters of the experts that a layer chooses from, apart from the layers that
// use them: its own, or those of a group of layers (ReXMoE).
#pragma once

#include <vector>

#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

struct ExpertParameters {
  ParameterId gate_up = kNoParameter;
  ParameterId down = kNoParameter;
  // As the placement knows it.
  int layer = 0;
  int index = 0;
};

// Experts by id in the pool: those of one layer after those of the other. Immutable; thread-safe.
class ExpertPool {
 public:
  // The pool of `layer`; none for a dense layer.
  ExpertPool(const ParameterCatalog& catalog, int layer);

  // That own the experts, in the order of their ids.
  const std::vector<int>& layers() const { return layers_; }
  int size() const { return static_cast<int>(experts_.size()); }
  const ExpertParameters& operator[](int id) const { return experts_[id]; }

 private:
  std::vector<int> layers_;
  std::vector<ExpertParameters> experts_;
};

}  // namespace moesaic
