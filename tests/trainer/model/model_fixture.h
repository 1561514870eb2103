// A small model, its weights and micro-batches, and a sink that keeps every gradient leaf.
#pragma once

#include <ATen/ATen.h>

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "trainer/catalog/parameter_catalog.h"
#include "trainer/model/transformer.h"

namespace moesaic {

// A small resolved job; `more` is textproto merged over it.
JobSpec SmallJob(const std::string& more = "");

// Random fp32 weights of every parameter, by id; wide enough that every gradient is well above
// rounding.
std::vector<at::Tensor> RandomWeights(const ParameterCatalog& catalog, uint64_t seed);

class FixedWeights : public WeightSource {
 public:
  FixedWeights(const ParameterCatalog& catalog, const std::vector<at::Tensor>& weights,
               at::ScalarType compute = at::kFloat);
  at::Tensor Lease(ParameterId id) override { return weights_[id]; }

 private:
  std::vector<at::Tensor> weights_;
};

// Keeps leaves apart, in the catalogue's shapes.
class LeafSink : public GradientSink {
 public:
  using Leaf = std::tuple<ParameterId, int, int64_t>;
  explicit LeafSink(const ParameterCatalog& catalog) : catalog_(catalog) {}

  Slot Open(ParameterId id, int use, int64_t micro_batch) override;
  void Close(ParameterId id, int use, int64_t micro_batch) override;
  void Skip(ParameterId id, int use, int64_t micro_batch) override;

  const std::map<Leaf, at::Tensor>& leaves() const { return leaves_; }
  // The sum of the leaves of a parameter; zeros when there is none.
  at::Tensor Sum(ParameterId id) const;
  // As a leaf, or as one that is zero.
  bool Reported(ParameterId id) const;

 private:
  const ParameterCatalog& catalog_;
  std::map<Leaf, at::Tensor> leaves_;
  std::map<Leaf, bool> open_;
  std::set<ParameterId> skipped_;
};

// Random tokens, and targets of which about one in eight is none. Made from (seed, id) alone.
MicroBatch RandomMicroBatch(const JobSpec& spec, int64_t id, int64_t sequences, uint64_t seed = 1);
// A rank's part in a round where it has no micro-batch.
MicroBatch NoMicroBatch(const JobSpec& spec);

// A model whose experts are all on this one rank.
class SingleRankModel {
 public:
  explicit SingleRankModel(const JobSpec& spec, int64_t positions = 0,
                           Experts experts = Experts::kAll);
  const ParameterCatalog& catalog() const { return catalog_; }
  const Transformer& transformer() const { return *transformer_; }

 private:
  JobSpec spec_;
  ParameterCatalog catalog_;
  Mesh mesh_;
  ExpertPlacement placement_;
  std::unique_ptr<Transformer> transformer_;
};

ParameterCatalog CatalogOf(const JobSpec& spec, Experts experts = Experts::kAll);
// The number of experts of each layer.
std::vector<int> ExpertsByLayer(const ParameterCatalog& catalog);

// Chosen pairs by MoE layer and expert, and pairs dropped, all layers together.
std::vector<std::vector<int64_t>> CountsOf(const PassScalars& scalars);
int64_t DroppedOf(const PassScalars& scalars);

// max |a - b| / max |b|, where b is not all zeros.
double RelativeError(const at::Tensor& a, const at::Tensor& b);

}  // namespace moesaic
