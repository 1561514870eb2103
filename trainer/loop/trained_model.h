// TrainedModel: what a trainer has because of its parameters, and makes anew where a recipe changes
// them (EvoMoE's spawn): the catalogue, the parameters themselves, the blocks, the path of the
// gradients and who writes what of a checkpoint.
#pragma once

#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"
#include "parallel/expert/token_exchange.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/loop/parameter_gradients.h"
#include "trainer/model/transformer.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

// The pointees outlive the model.
struct TrainedModelInputs {
  const JobSpec* spec = nullptr;  // resolved and valid
  const Mesh* mesh = nullptr;
  const ExpertPlacement* placement = nullptr;  // of all experts
  int rank = 0;
  Communicator* data = nullptr;  // of all data ranks, in their order
  TokenExchange* exchange = nullptr;
  at::ScalarType compute = at::kFloat;
  bool moments = true;
};

// Thread-compatible. Parameters are zero until they are filled.
struct TrainedModel {
  TrainedModel(const TrainedModelInputs& inputs, ParameterCatalog all);
  TrainedModel(const TrainedModel&) = delete;
  TrainedModel& operator=(const TrainedModel&) = delete;

  const ParameterCatalog catalog;
  ParameterStore store;
  const Transformer transformer;
  ParameterGradients gradients;
  std::vector<int> moe_layers;  // ascending
  std::vector<int> writers;     // trainer/catalog/write_plan.h
};

}  // namespace moesaic
