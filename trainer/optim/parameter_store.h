// ParameterStore: the parameters that one rank holds, in one place and in the form each use wants:
// fp32 master weights and optimizer moments where the rank **owns** the parameter, and the compute
// weight (bf16 or fp32) of everything it **holds**.
//
// A data-parallel rank holds and owns every dense parameter. Of the experts it holds those that the
// placement gives it, and owns those whose primary it is; compute weights of the others come from
// their primary after each step.
#pragma once

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/model/block.h"

namespace moesaic {

// Ranks that hold a parameter, the owner of its checkpoint objects first: the holders of an expert
// (primary first), every data rank otherwise.
std::vector<int> ParameterHolders(const ParameterSpec& spec, const Mesh& mesh,
                                  const ExpertPlacement& placement);

struct ParameterStoreOptions {
  int rank = 0;
  at::ScalarType compute = at::kFloat;
  bool moments = true;  // AdamW's m and v
};

// Thread-compatible. Tensors returned are views of the store's memory: writing to them changes the
// parameters.
class ParameterStore : public WeightSource {
 public:
  // The catalogue must outlive the store. Memory is allocated here; weights are zero until they are
  // initialised or restored.
  ParameterStore(const ParameterCatalog& catalog, const Mesh& mesh,
                 const ExpertPlacement& placement, ParameterStoreOptions options);

  // Held parameters, ascending by id; the owned ones among them.
  std::span<const ParameterId> held() const { return held_; }
  std::span<const ParameterId> owned() const { return owned_; }
  bool Owns(ParameterId id) const { return entries_[id].master.defined(); }
  bool Holds(ParameterId id) const { return entries_[id].compute.defined(); }

  // Owned parameters only. fp32, of the parameter's shape. Moments are undefined without them
  // and for what is not learnt.
  at::Tensor master(ParameterId id) const { return entries_[id].master; }
  at::Tensor first_moment(ParameterId id) const { return entries_[id].first_moment; }
  at::Tensor second_moment(ParameterId id) const { return entries_[id].second_moment; }

  // Held parameters: what blocks compute with. The master itself where it is fp32 and owned.
  at::Tensor Lease(ParameterId id) override { return entries_[id].compute; }
  // Rounds the master into the compute weight (nothing to do where they are one).
  void RefreshCompute(ParameterId id);

  // Bytes of everything.
  int64_t bytes() const { return bytes_; }

 private:
  struct Entry {
    at::Tensor master;
    at::Tensor first_moment;
    at::Tensor second_moment;
    at::Tensor compute;
  };
  std::vector<Entry> entries_;  // by id
  std::vector<ParameterId> held_;
  std::vector<ParameterId> owned_;
  int64_t bytes_ = 0;
};

}  // namespace moesaic
