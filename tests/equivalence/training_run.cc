#include "tests/equivalence/training_run.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "absl/strings/str_format.h"
#include "base/mutex.h"
#include "parallel/comm/in_process.h"
#include "proto/job_spec.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/random_stream.h"
#include "trainer/data/indexed_tokens.h"
#include "trainer/loop/trainer.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {
namespace {

constexpr int kVocabulary = 61;

// Tokens that repeat with some noise, in documents of 5 to 60.
void WriteCorpus(const std::string& prefix, uint64_t seed, int documents) {
  auto writer = IndexedTokenWriter::Create(prefix, TokenType::kUint16);
  ASSERT_TRUE(writer.ok()) << writer.status();
  const RandomStream random(seed, "test", prefix.substr(prefix.find_last_of('/')));
  uint64_t draw = 0;
  for (int document = 0; document < documents; ++document) {
    std::vector<int32_t> tokens;
    const int length = 5 + static_cast<int>(random.Uniform(draw++) * 55);
    for (int i = 0; i < length; ++i) {
      const bool noise = random.Uniform(draw++) < 0.3;
      tokens.push_back(noise ? static_cast<int>(random.Uniform(draw++) * kVocabulary)
                             : (document * 7 + i * 3) % kVocabulary);
    }
    ASSERT_TRUE((*writer)->Append(tokens).ok());
    (*writer)->EndDocument();
  }
  const absl::Status finished = (*writer)->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
}

// A step that ended in other parameters has no gradients of them.
void Collect(Trainer& trainer, RunResult& result) {
  const ParameterStore& store = trainer.store();
  const bool has_gradients =
      !result.steps.empty() && result.steps.back().recipe.expert_cosine.empty();
  for (const ParameterId id : store.owned()) {
    const std::string& name = trainer.catalog()[id].name;
    if (has_gradients && trainer.catalog()[id].learnt)
      result.gradients[name] = trainer.Gradient(id).clone();
    result.weights[name] = store.master(id).clone();
    if (!store.first_moment(id).defined()) continue;
    result.first_moments[name] = store.first_moment(id).clone();
    result.second_moments[name] = store.second_moment(id).clone();
  }
  result.state = trainer.state();
}

void Begin(Trainer& trainer, const RunResult* from) {
  if (from == nullptr) return trainer.InitialiseParameters();
  const ParameterStore& store = trainer.store();
  for (const ParameterId id : store.owned()) {
    const std::string& name = trainer.catalog()[id].name;
    store.master(id).copy_(from->weights.at(name));
    if (!store.first_moment(id).defined()) continue;
    store.first_moment(id).copy_(from->first_moments.at(name));
    store.second_moment(id).copy_(from->second_moments.at(name));
  }
  trainer.state() = from->state;
  trainer.PublishWeights();
}

ExpertPlacement PlacementOf(const JobSpec& spec, const RunLayout& layout, const Mesh& mesh) {
  if (layout.holders.empty()) return ExpertPlacement::Even(mesh, ExpertsOfLayers(spec.model()));
  return ExpertPlacement::Create(mesh, 1, layout.holders).value();
}

void ExpectValid(const JobSpec& spec) {
  for (const JobProblem& problem : ValidateJob(spec)) {
    ADD_FAILURE() << problem.path << ": " << problem.message;
  }
}

std::string TextOf(RoutingMetrics routing) {
  routing.wire_rows = routing.wire_bytes = 0;
  return RoutingJson(routing, /*loads=*/true).dump();
}

std::string TextOf(const ValidationRouting& validation) {
  std::string text = TextOf(validation.routing);
  for (const LayerPairInformation& pair : validation.information) {
    text += absl::StrFormat(" %d %d %.17g %.17g", pair.first, pair.second, pair.information,
                            pair.shuffled);
  }
  return text;
}

}  // namespace

Mesh MeshOf(const RunLayout& layout) {
  std::vector<RankPlace> places;
  for (int r = 0; r < layout.ranks; ++r) {
    const int per_node = layout.ranks_per_node > 0 ? layout.ranks_per_node : layout.ranks;
    places.push_back({.rank = r,
                      .node = "n" + std::to_string(r / per_node),
                      .local_rank = r % per_node,
                      .data = r,
                      .expert_group = r / layout.expert,
                      .expert = r % layout.expert});
  }
  return Mesh::Create(std::move(places)).value();
}

JobSpec TinyJob(const std::string& folder, int experts) {
  WriteCorpus(folder + "/train", 11, 200);
  WriteCorpus(folder + "/validation", 12, 20);
  JobSpec spec;
  spec.set_name("tiny");
  ModelSpec* model = spec.mutable_model();
  model->set_layers(2);
  model->set_hidden(32);
  model->set_heads(4);
  model->set_kv_heads(2);
  model->set_sequence(12);
  model->set_vocabulary(kVocabulary);
  model->set_init_std(0.08);
  model->mutable_moe()->set_experts(experts);
  model->mutable_moe()->set_active(2);
  model->mutable_moe()->set_expert_width(24);
  model->mutable_moe()->set_shared_width(16);
  spec.mutable_data()->add_train()->set_path(folder + "/train");
  spec.mutable_data()->add_validation()->set_path(folder + "/validation");
  TrainSpec* train = spec.mutable_train();
  train->set_steps(20);
  train->set_global_batch(20);
  train->set_micro_batch(2);
  train->mutable_optimizer()->mutable_adamw()->set_lr(3e-3);
  train->mutable_schedule()->set_warmup_steps(2);
  spec.mutable_recipe()->mutable_router()->mutable_balance()->set_z_loss(1e-3);
  EXPECT_TRUE(ApplyPreset(&spec).empty());
  ApplyDefaults(&spec);
  ExpectValid(spec);
  return spec;
}

JobSpec WithRecipe(JobSpec spec, const std::string& preset,
                   const std::function<void(RecipeSpec&)>& more) {
  spec.clear_recipe();
  spec.mutable_recipe()->set_preset(preset);
  more(*spec.mutable_recipe());
  EXPECT_TRUE(ApplyPreset(&spec).empty());
  ApplyDefaults(&spec);
  ExpectValid(spec);
  return spec;
}

RunResult TrainAsRank(const JobSpec& spec, const RunLayout& layout, int steps, Communicator& world,
                      const RunResult* from) {
  at::set_num_threads(1);
  const Mesh mesh = MeshOf(layout);
  auto trainer = Trainer::Create({.spec = spec,
                                  .mesh = mesh,
                                  .placement = PlacementOf(spec, layout, mesh),
                                  .rank = world.rank(),
                                  .world = &world,
                                  .experts = ExpertsAt(spec, from ? from->state.step() : 0)});
  if (!trainer.ok()) throw std::runtime_error(std::string(trainer.status().message()));
  Begin(**trainer, from);
  RunResult result;
  for (int step = 0; step < steps; ++step) {
    const auto outcome = (*trainer)->Step({});
    if (!outcome.ok()) throw std::runtime_error(std::string(outcome.status().message()));
    result.losses.push_back(outcome->metrics.loss());
    result.aux_losses.push_back(outcome->metrics.aux_loss());
    result.norms.push_back(outcome->metrics.grad_norm());
    result.routing.push_back(TextOf(outcome->routing));
    result.steps.push_back(*outcome);
  }
  const ValidationResult validation = (*trainer)->Validate({}).value();
  result.validation_loss = validation.loss;
  result.validation_routing = TextOf(validation.routing);
  Collect(**trainer, result);
  return result;
}

RunResult TrainInProcess(const JobSpec& spec, const RunLayout& layout, int steps,
                         const RunResult* from) {
  Mutex mu;
  RunResult all;
  RunRanks(layout.ranks, [&](Communicator& world) {
    RunResult mine = TrainAsRank(spec, layout, steps, world, from);
    MutexLock lock(&mu);
    if (world.rank() == 0) {
      all.losses = mine.losses;
      all.aux_losses = mine.aux_losses;
      all.norms = mine.norms;
      all.steps = mine.steps;
      all.validation_loss = mine.validation_loss;
      all.routing = mine.routing;
      all.validation_routing = mine.validation_routing;
      all.state = mine.state;
    }
    // Where several ranks own a dense parameter, all must have the same bits.
    for (auto& [name, weight] : mine.weights) {
      const auto [entry, fresh] = all.weights.emplace(name, weight);
      EXPECT_TRUE(fresh || at::equal(entry->second, weight)) << name << " differs among ranks";
    }
    all.gradients.merge(mine.gradients);
    all.first_moments.merge(mine.first_moments);
    all.second_moments.merge(mine.second_moments);
  });
  return all;
}

void ExpectSameBits(const RunResult& a, const RunResult& b) {
  EXPECT_EQ(a.losses, b.losses);
  EXPECT_EQ(a.aux_losses, b.aux_losses);
  EXPECT_EQ(a.norms, b.norms);
  EXPECT_EQ(a.validation_loss, b.validation_loss);
  EXPECT_EQ(a.routing, b.routing);
  EXPECT_EQ(a.validation_routing, b.validation_routing);
  EXPECT_EQ(a.state.SerializeAsString(), b.state.SerializeAsString());
  const auto expect_equal = [](const std::map<std::string, at::Tensor>& all,
                               const std::map<std::string, at::Tensor>& others, const char* what) {
    ASSERT_EQ(all.size(), others.size());
    for (const auto& [name, tensor] : all) {
      EXPECT_TRUE(at::equal(tensor, others.at(name))) << what << " of " << name;
    }
  };
  expect_equal(a.gradients, b.gradients, "gradient");
  expect_equal(a.weights, b.weights, "weights");
  expect_equal(a.first_moments, b.first_moments, "first moment");
  expect_equal(a.second_moments, b.second_moments, "second moment");
}

void ExpectClose(const RunResult& a, const RunResult& b, double tolerance, bool weights) {
  ASSERT_EQ(a.losses.size(), b.losses.size());
  for (size_t step = 0; step < a.losses.size(); ++step) {
    EXPECT_NEAR(a.losses[step], b.losses[step], tolerance * a.losses[step]) << "step " << step;
  }
  EXPECT_NEAR(a.validation_loss, b.validation_loss, tolerance * a.validation_loss);
  const auto expect_near = [&](const at::Tensor& x, const at::Tensor& y, const std::string& what) {
    const double largest = x.abs().max().item<double>();
    EXPECT_LE((x - y).abs().max().item<double>(), tolerance * largest) << what;
  };
  ASSERT_EQ(a.weights.size(), b.weights.size());
  for (const auto& [name, gradient] : a.gradients) {
    expect_near(gradient, b.gradients.at(name), "gradient of " + name);
    if (weights) expect_near(a.weights.at(name), b.weights.at(name), "weights of " + name);
  }
}

}  // namespace moesaic
