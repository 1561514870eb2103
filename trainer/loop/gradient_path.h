// GradientPath: from the leaves that blocks report to the summed gradient at the parameter's owner.
//   fast          leaves are added into fused buckets; buckets are summed over the holders
//   reproducible  leaves are summed in the fixed tree over (micro-batch, use)
// Every reduction is a sum: the loss scale made it right beforehand.
#pragma once

#include <memory>

#include <ATen/core/Tensor.h>

#include "parallel/comm/communicator.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/model/block.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

struct GradientPathInputs {
  const ParameterCatalog* catalog = nullptr;
  const Mesh* mesh = nullptr;
  const ExpertPlacement* placement = nullptr;
  const ParameterStore* store = nullptr;
  int rank = 0;
  Communicator* data = nullptr;  // of all data ranks, in their order
};

// Thread-compatible. All ranks make the same calls.
class GradientPath : public GradientSink {
 public:
  // Before the first leaf of a step. Forgets the step before.
  virtual void Begin(int64_t micro_batches) = 0;
  // After the last leaf. Collective over the data communicator.
  virtual void Reduce() = 0;
  // Sends the compute weights of experts from their primaries to their other holders. Collective over
  // the data communicator.
  virtual void ShareWeights(ParameterStore& store) = 0;
  // After Reduce, until Begin: the summed gradient, fp32, of the parameter's shape. Owned
  // parameters only.
  virtual at::Tensor Reduced(ParameterId id) const = 0;
};

std::unique_ptr<GradientPath> MakeFastGradientPath(const GradientPathInputs& inputs);
std::unique_ptr<GradientPath> MakeReproducibleGradientPath(const GradientPathInputs& inputs);

}  // namespace moesaic
