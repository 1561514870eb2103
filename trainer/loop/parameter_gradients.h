// ParameterGradients: the gradients of a catalogue's parameters, from the leaves that blocks report
// to the sum at the parameter's owner. Adapts GradientReducer (parallel/data), which knows neither
// blocks nor parameters.
#pragma once

#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

#include "parallel/comm/communicator.h"
#include "parallel/data/gradients.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/model/block.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

struct ParameterGradientsInputs {
  const ParameterCatalog* catalog = nullptr;
  const Mesh* mesh = nullptr;
  const ExpertPlacement* placement = nullptr;
  Communicator* data = nullptr;  // of all data ranks, in their order
  bool reproducible = false;     // the fixed summation tree, instead of fused buckets
};

// Thread-compatible. The pointees outlive it. BeginStep, Reduce and ShareWeights are collective.
class ParameterGradients : public GradientSink {
 public:
  explicit ParameterGradients(const ParameterGradientsInputs& inputs);

  void BeginStep(const GradientStep& step) { reducer_->BeginStep(step); }
  Slot Open(ParameterId id, int use, int64_t micro_batch) override;
  void Close(ParameterId id, int use, int64_t micro_batch) override;
  void Skip(ParameterId id, int use, int64_t micro_batch) override;
  void Reduce() { reducer_->Reduce(); }

  // After Reduce, until BeginStep: the summed gradient of an owned parameter, fp32, of its shape.
  at::Tensor Reduced(ParameterId id) const;

  // The most memory that gradients have had at once.
  int64_t bytes() const { return reducer_->bytes(); }

  // Sends the compute weights of experts from their primaries to their other holders.
  void ShareWeights(ParameterStore& store) const;

 private:
  const ParameterCatalog& catalog_;
  Communicator& data_;
  std::vector<HeldParameter> parameters_;  // by id
  std::unique_ptr<GradientReducer> reducer_;
};

}  // namespace moesaic
