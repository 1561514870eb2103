#include "tests/trainer/model/model_fixture.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"
#include "trainer/catalog/random_stream.h"

namespace moesaic {

JobSpec SmallJob(const std::string& more) {
  JobSpec spec;
  const std::string text = R"(
    name: "small"
    model { layers: 2 hidden: 16 heads: 4 kv_heads: 2 sequence: 12 dense_width: 24 vocabulary: 40
            moe { experts: 5 active: 2 expert_width: 12 pattern { every: 2 first: 1 } } }
    data { train { path: "x" } }
    train { steps: 1 global_batch: 4 micro_batch: 2 }
  )";
  TORCH_CHECK(google::protobuf::TextFormat::MergeFromString(text, &spec));
  TORCH_CHECK(google::protobuf::TextFormat::MergeFromString(more, &spec), more);
  TORCH_CHECK(ApplyPreset(&spec).empty());
  ApplyDefaults(&spec);
  return spec;
}

std::vector<at::Tensor> RandomWeights(const ParameterCatalog& catalog, uint64_t seed) {
  std::vector<at::Tensor> weights;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    at::Tensor w = at::empty(parameter.shape, at::kFloat);
    const bool is_norm = parameter.kind == ParameterKind::kNorm;
    const bool is_router = parameter.kind == ParameterKind::kRouter;
    RandomStream(seed, "test", parameter.name)
        .FillNormal(0,
                    is_norm     ? 0.2
                    : is_router ? 0.6
                                : 0.25,
                    {w.data_ptr<float>(), static_cast<size_t>(w.numel())});
    if (is_norm) w.add_(1);
    if (parameter.kind == ParameterKind::kRouterState) w.abs_();  // loads are
    weights.push_back(w);
  }
  return weights;
}

FixedWeights::FixedWeights(const ParameterCatalog& catalog, const std::vector<at::Tensor>& weights,
                           at::ScalarType compute) {
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    weights_.push_back(catalog[id].fp32 ? weights[id] : weights[id].to(compute));
  }
}

GradientSink::Slot LeafSink::Open(ParameterId id, int use, int64_t micro_batch) {
  const Leaf leaf{id, use, micro_batch};
  EXPECT_FALSE(open_[leaf]) << catalog_[id].name << " opened twice";
  open_[leaf] = true;
  const auto found = leaves_.find(leaf);
  if (found != leaves_.end()) return {found->second, true};
  // Garbage, so that a block that adds where it should overwrite is seen.
  return {leaves_[leaf] = at::full(catalog_[id].shape, 1e30, at::kFloat), false};
}

void LeafSink::Close(ParameterId id, int use, int64_t micro_batch) {
  EXPECT_TRUE((open_[Leaf{id, use, micro_batch}])) << catalog_[id].name << " closed, not open";
  open_[Leaf{id, use, micro_batch}] = false;
}

void LeafSink::Skip(ParameterId id, int use, int64_t micro_batch) {
  EXPECT_FALSE((open_.contains(Leaf{id, use, micro_batch})))
      << catalog_[id].name << " is reported and skipped";
  skipped_.insert(id);
}

at::Tensor LeafSink::Sum(ParameterId id) const {
  at::Tensor sum = at::zeros(catalog_[id].shape, at::kFloat);
  for (const auto& [leaf, gradient] : leaves_) {
    if (std::get<0>(leaf) == id) sum.add_(gradient);
  }
  return sum;
}

bool LeafSink::Reported(ParameterId id) const {
  if (skipped_.contains(id)) return true;
  for (const auto& [leaf, gradient] : leaves_) {
    if (std::get<0>(leaf) == id) return true;
  }
  return false;
}

MicroBatch RandomMicroBatch(const JobSpec& spec, int64_t id, int64_t sequences, uint64_t seed) {
  MicroBatch batch;
  batch.id = id;
  batch.sequences = sequences;
  batch.length = spec.model().sequence();
  const int64_t tokens = sequences * batch.length;
  const RandomStream stream(seed, "tokens", absl::StrCat(id));
  batch.tokens = at::empty({tokens}, at::kLong);
  batch.targets = at::empty({tokens}, at::kLong);
  const double vocabulary = spec.model().vocabulary();
  for (int64_t t = 0; t < tokens; ++t) {
    batch.tokens.data_ptr<int64_t>()[t] = static_cast<int64_t>(vocabulary * stream.Uniform(3 * t));
    batch.targets.data_ptr<int64_t>()[t] =
        stream.Uniform(3 * t + 1) < 0.125
            ? -1
            : static_cast<int64_t>(vocabulary * stream.Uniform(3 * t + 2));
  }
  return batch;
}

MicroBatch NoMicroBatch(const JobSpec& spec) {
  MicroBatch batch;
  batch.length = spec.model().sequence();
  batch.tokens = at::empty({0}, at::kLong);
  batch.targets = at::empty({0}, at::kLong);
  return batch;
}

ParameterCatalog CatalogOf(const JobSpec& spec, Experts experts) {
  auto catalog = ParameterCatalog::Build(spec, experts);
  TORCH_CHECK(catalog.ok(), catalog.status().ToString());
  return *std::move(catalog);
}

std::vector<int> ExpertsByLayer(const ParameterCatalog& catalog) {
  std::vector<int> experts;
  for (int layer = 0; layer < catalog.layers(); ++layer) experts.push_back(catalog.experts(layer));
  return experts;
}

SingleRankModel::SingleRankModel(const JobSpec& spec, int64_t positions, Experts experts)
    : spec_(spec),
      catalog_(CatalogOf(spec, experts)),
      mesh_(Mesh::Flat(1, 1)),
      placement_(ExpertPlacement::Even(mesh_, ExpertsByLayer(catalog_))),
      transformer_(std::make_unique<Transformer>(TransformerInputs{
          &spec_, &catalog_, RecipeAt(spec_, 0), {&mesh_, &placement_, 0, nullptr}, positions})) {}

std::vector<std::vector<int64_t>> CountsOf(const PassScalars& scalars) {
  std::vector<std::vector<int64_t>> counts;
  for (const LayerRouting& layer : scalars.routing) counts.push_back(layer.counts);
  return counts;
}

int64_t DroppedOf(const PassScalars& scalars) {
  int64_t dropped = 0;
  for (const LayerRouting& layer : scalars.routing) dropped += layer.dropped;
  return dropped;
}

double RelativeError(const at::Tensor& a, const at::Tensor& b) {
  const double scale = b.abs().max().item<double>();
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>() /
         (scale > 0 ? scale : 1);
}

}  // namespace moesaic
