// What `moesaic plan` predicts is what a run holds and sends.
#include "trainer/catalog/sizing.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <numeric>
#include <optional>

#include "base/mutex.h"
#include "parallel/comm/in_process.h"
#include "parallel/layout/balanced_placement.h"
#include "parallel/layout/micro_batch_plan.h"
#include "tests/base/scratch_folder.h"
#include "tests/equivalence/counted_memory.h"
#include "tests/equivalence/counting_communicator.h"
#include "tests/equivalence/training_run.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/write_plan.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/shard_files.h"
#include "trainer/checkpoint/format/snapshot_arena.h"
#include "trainer/loop/stored_state.h"
#include "trainer/loop/trainer.h"

namespace moesaic {
namespace {

constexpr int kExperts = 8;
constexpr int kMoreSteps = 4;
// Shares of an all-reduce are fractions of bytes in the prediction.
constexpr double kRounding = 0.01;
// Who brings a row that an expert takes is left to chance, in a step of twenty samples.
constexpr double kTokenTolerance = 0.1;
constexpr int64_t kIndexBytesPerObject = 160;
constexpr int64_t kPage = 4096;  // the index is whole pages

struct Case {
  std::string name;
  int ranks = 1;
  int expert = 1;
  int per_node = 1;
  int copies = 0;  // experts beyond a rank's share
  bool bf16 = false;
  bool reproducible = false;
  bool sgd = false;
  bool tied = false;
  const char* preset = "";
  void (*more)(RecipeSpec& recipe) = nullptr;
  int sequence = 64;  // long enough for every expert to get rows of every micro-batch
  bool qk_norm = false;
};

// What a run held and sent.
struct Measured {
  struct Rank {
    int64_t store = 0;
    int64_t gradients = 0;
    int64_t most = 0;  // of all tensors at once
    int64_t arena = 0;
    int64_t arena_index = 0;
    int objects = 0;
    SentBytes first_step;
  };
  std::vector<Rank> ranks;
  TrainingState first;  // after the first step: its load is that step's
  TrainingState last;
  std::string checkpoint;
  int64_t wire_bytes = 0;  // by the metrics of the first step

  int64_t Sent(const std::string& communicator, const std::string& operation) const {
    int64_t bytes = 0;
    for (size_t r = 0; r < ranks.size(); ++r) {
      bytes += ranks[r].first_step.ToOthers(communicator, operation, static_cast<int>(r));
    }
    return bytes;
  }
  int64_t Between(const Mesh& mesh) const {
    int64_t bytes = 0;
    for (int from = 0; from < mesh.size(); ++from) {
      for (const auto& [kind, to] : ranks[from].first_step.to) {
        for (size_t r = 0; r < to.size(); ++r) {
          if (mesh.place(from).node != mesh.place(static_cast<int>(r)).node) bytes += to[r];
        }
      }
    }
    return bytes;
  }
};

class SizingTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    spec_ = TinyJob(folder_.path(), kExperts);
    spec_.mutable_model()->set_sequence(GetParam().sequence);
    spec_.mutable_model()->set_tie_head(GetParam().tied);
    spec_.mutable_model()->set_qk_norm(GetParam().qk_norm);
    spec_.mutable_train()->set_reproducible(GetParam().reproducible);
    spec_.mutable_train()->set_precision(GetParam().bf16 ? BF16 : FP32);
    if (GetParam().sgd) spec_.mutable_train()->mutable_optimizer()->mutable_sgd()->set_lr(0.01);
    if (GetParam().more != nullptr) {
      if (HasOpenGate()) spec_.mutable_model()->mutable_moe()->set_active(1);
      spec_ = WithRecipe(spec_, GetParam().preset, GetParam().more);
    }
    layout_ = {.ranks = GetParam().ranks,
               .expert = GetParam().expert,
               .ranks_per_node = GetParam().per_node};
    mesh_ = MeshOf(layout_);
    experts_ = ExpertsOfLayers(spec_.model());
    placement_ = Place(SomeLoad(), GetParam().copies);
  }

  static bool HasOpenGate() {
    RecipeSpec recipe;
    GetParam().more(recipe);
    return recipe.router().select().has_dense_to_sparse();
  }

  ExpertLoad SomeLoad() const {
    ExpertLoad load(experts_.size());
    for (size_t layer = 0; layer < load.size(); ++layer) {
      for (int e = 0; e < experts_[layer]; ++e) load[layer].push_back(1.0 + (e * 5 + layer) % 8);
    }
    return load;
  }
  ExpertPlacement Place(const ExpertLoad& load, int copies) const {
    return BalancedPlacement(
        {.mesh = &*mesh_, .experts = experts_, .load = &load, .copies = copies, .epoch = 1});
  }

  JobSize Predict(const TrainingState& state) const {
    const ParameterCatalog catalog =
        *ParameterCatalog::Build(spec_, ExpertsAt(spec_, state.step()));
    const ExpertLoad load = RecordedLoad(spec_.model(), state);
    EXPECT_EQ(load.empty(), catalog.which() == Experts::kOne);
    return SizeJob({.spec = &spec_,
                    .catalog = &catalog,
                    .mesh = &*mesh_,
                    .placement = &*placement_,
                    .load = &load});
  }

  // Rows of all layers that each rank computes, by the load.
  std::vector<double> Received(const ExpertLoad& load) const {
    std::vector<double> rows(mesh_->size(), 0);
    for (size_t layer = 0; layer < load.size(); ++layer) {
      const auto tokens = ExpectedTokens(*mesh_, *placement_, static_cast<int>(layer), load);
      for (size_t r = 0; r < rows.size(); ++r) rows[r] += tokens[r];
    }
    return rows;
  }
  // Rows of all layers that a rank's micro-batches bring.
  double Brought(const ExpertLoad& load, int rank) const {
    const TrainSpec& train = spec_.train();
    const MicroBatchPlan plan{train.global_batch() / train.micro_batch(), mesh_->size()};
    double all = 0;
    for (const auto& layer : load) all = std::accumulate(layer.begin(), layer.end(), all);
    return all * static_cast<double>(plan.end(rank) - plan.begin(rank)) /
           static_cast<double>(plan.micro_batches);
  }

  // The most that each rank's tensors took from the first step to the one that ends in the spawn.
  std::vector<int64_t> MostUntilTheSpawn() const {
    std::vector<int64_t> most(mesh_->size());
    RunRanks(mesh_->size(), [&](Communicator& world) {
      at::set_num_threads(1);
      const CountedMemory memory;
      auto trainer = Trainer::Create({.spec = spec_,
                                      .mesh = *mesh_,
                                      .placement = *placement_,
                                      .rank = world.rank(),
                                      .world = &world,
                                      .experts = Experts::kOne});
      if (!trainer.ok()) throw std::runtime_error(std::string(trainer.status().message()));
      (*trainer)->InitialiseParameters();
      while ((*trainer)->catalog().which() == Experts::kOne) {
        const auto outcome = (*trainer)->Step({});
        if (!outcome.ok()) throw std::runtime_error(std::string(outcome.status().message()));
      }
      most[world.rank()] = memory.most();
    });
    return most;
  }

  Measured Run() {
    Measured all;
    all.ranks.resize(mesh_->size());
    Mutex mutex;
    RunRanks(mesh_->size(), [&](Communicator& inner) {
      Measured mine;
      mine.ranks.resize(1);
      RunRank(inner, mine);
      MutexLock lock(&mutex);
      all.ranks[inner.rank()] = mine.ranks[0];
      all.first = mine.first;
      all.wire_bytes = mine.wire_bytes;
      all.last = mine.last;
    });
    Persist(all);
    return all;
  }

  void RunRank(Communicator& inner, Measured& mine) {
    at::set_num_threads(1);
    Measured::Rank& rank = mine.ranks[0];
    CountedMemory memory;
    SentBytes sent;
    const auto world = CountSentBytes(&inner, &sent);
    auto created = Trainer::Create({.spec = spec_,
                                    .mesh = *mesh_,
                                    .placement = *placement_,
                                    .rank = inner.rank(),
                                    .world = world.get()});
    if (!created.ok()) throw std::runtime_error(std::string(created.status().message()));
    Trainer& trainer = **created;
    trainer.InitialiseParameters();
    sent.to.clear();
    memory.ForgetMost();
    for (int step = 0; step <= kMoreSteps; ++step) {
      const auto outcome = trainer.Step({});
      if (!outcome.ok()) throw std::runtime_error(std::string(outcome.status().message()));
      ASSERT_FALSE(outcome->metrics.skipped());
      if (step > 0) continue;
      mine.first = trainer.state();
      rank.first_step = sent;
      mine.wire_bytes = outcome->routing.wire_bytes;
    }
    rank.most = memory.most();
    rank.store = trainer.store().bytes();
    rank.gradients = trainer.gradient_bytes();
    mine.last = trainer.state();
    TakeSnapshot(trainer, inner.rank(), rank);
  }

  std::string ArenaOf(int rank) const { return folder_ / ("g1-r" + std::to_string(rank)); }

  void TakeSnapshot(Trainer& trainer, int rank, Measured::Rank& measured) const {
    WorkerIdentity worker;
    worker.set_job(spec_.name());
    worker.set_generation(1);
    worker.set_rank(static_cast<uint32_t>(rank));
    SnapshotTaker taker(worker, static_cast<uint32_t>(mesh_->size()), ArenaOf(rank));
    const auto taken = taker.Take(trainer.state(), ObjectsToWrite(trainer, rank), 1);
    ASSERT_TRUE(taken.ok() && taken->has_value()) << taken.status();
    const auto reader = *SnapshotReader::Open(ArenaOf(rank) + ".0");
    const auto file = static_cast<int64_t>(std::filesystem::file_size(ArenaOf(rank) + ".0"));
    measured.arena_index = reader->index().objects_size() > 0
                               ? static_cast<int64_t>(reader->index().objects(0).offset())
                               : file;
    measured.objects = reader->index().objects_size();
    measured.arena = file - measured.arena_index;
  }

  void Persist(Measured& all) const {
    const auto root = *CheckpointRoot::Open(&FileSystem::System(), folder_ / "checkpoints");
    const uint64_t step = all.last.step();
    std::vector<ShardsPersisted> reports;
    CommitRequest request;
    request.staging = *root->BeginStaging(step, 1);
    request.generation = 1;
    request.ranks = static_cast<uint32_t>(mesh_->size());
    request.spec = spec_;
    request.binary = "test";
    const auto staged = *FileSystem::System().OpenFolder(request.staging);
    for (int rank = 0; rank < mesh_->size(); ++rank) {
      const auto reader = *SnapshotReader::Open(ArenaOf(rank) + ".0");
      reports.push_back(*PersistShards(*reader, step, staged.get()));
    }
    request.reports = reports;
    const auto committed = root->Commit(request);
    ASSERT_TRUE(committed.ok()) << committed.status();
    all.checkpoint = committed->path;
  }

  const ScratchFolder folder_;
  JobSpec spec_;
  RunLayout layout_;
  std::optional<Mesh> mesh_;
  std::vector<int> experts_;
  std::optional<ExpertPlacement> placement_;
};

// Of a file of tensors: their bytes without the header.
int64_t TensorBytes(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  uint64_t header = 0;
  in.read(reinterpret_cast<char*>(&header), sizeof header);
  return static_cast<int64_t>(std::filesystem::file_size(file) - sizeof header - header);
}

TEST_P(SizingTest, MemoryOfRanksIsAsPredicted) {
  const Measured run = Run();
  const JobSize size = Predict(run.first);
  for (int r = 0; r < mesh_->size(); ++r) {
    const RankMemory& predicted = size.ranks[r];
    const Measured::Rank& real = run.ranks[r];
    SCOPED_TRACE("rank " + std::to_string(r));
    EXPECT_EQ(predicted.weights + predicted.moments, real.store);
    if (GetParam().reproducible) {
      EXPECT_GE(predicted.gradients, real.gradients);
      EXPECT_LE(static_cast<double>(predicted.gradients),
                1.25 * static_cast<double>(real.gradients));
    } else {
      EXPECT_EQ(predicted.gradients, real.gradients);
    }
    // All tensors of the rank at once, activations among them.
    EXPECT_NEAR(static_cast<double>(predicted.process()), static_cast<double>(real.most),
                0.12 * static_cast<double>(real.most));
  }
}

TEST_P(SizingTest, BytesOnTheWireAreAsPredicted) {
  const Measured run = Run();
  const StepTraffic traffic = Predict(run.first).traffic;
  const auto sums = run.Sent("data", "all_reduce f64") + run.Sent("data", "all_gather");
  EXPECT_NEAR(traffic.sums, static_cast<double>(sums), kRounding);
  const auto moved =
      static_cast<double>(run.Sent("data", "all_to_all") + run.Sent("data", "all_reduce f32") +
                          run.Sent("data", "all_gather_v"));
  if (GetParam().reproducible) {
    EXPECT_GE(traffic.gradients + traffic.weights, moved - kRounding);
    EXPECT_LE(traffic.gradients + traffic.weights, 1.05 * moved);
  } else {
    EXPECT_NEAR(traffic.gradients + traffic.weights, moved, kRounding);
  }
  EXPECT_NEAR(traffic.counts, static_cast<double>(run.Sent("expert", "all_gather")), kRounding);
  const auto tokens = static_cast<double>(run.Sent("expert", "all_to_all"));
  EXPECT_NEAR(traffic.tokens, tokens, kTokenTolerance * tokens);
  const auto between = static_cast<double>(run.Between(*mesh_));
  EXPECT_NEAR(traffic.between_nodes, between, kTokenTolerance * between);
}

// Rows, there and back and again in backward: none is lost or padded, whatever ranks they go to.
TEST_P(SizingTest, EveryChosenRowIsMovedFourTimes) {
  if (GetParam().expert == 1) GTEST_SKIP() << "nothing is exchanged";
  const Measured run = Run();
  double chosen = 0;
  for (const std::vector<double>& layer : RecordedLoad(spec_.model(), run.first)) {
    chosen = std::accumulate(layer.begin(), layer.end(), chosen);
  }
  EXPECT_EQ(run.wire_bytes, run.Sent("expert", "all_to_all"));  // what the metrics say
  int64_t moved = 0;
  for (const Measured::Rank& rank : run.ranks) {
    const auto sent = rank.first_step.to.find({"expert", "all_to_all"});
    if (sent == rank.first_step.to.end()) continue;
    moved = std::accumulate(sent->second.begin(), sent->second.end(), moved);
  }
  const int row = static_cast<int>(spec_.model().hidden()) * (GetParam().bf16 ? 2 : 4);
  EXPECT_EQ(static_cast<double>(moved), 4 * chosen * row);
}

// Rows that ranks receive to compute, over the mean: as expected from the load, exactly where one
// group holds the experts once, because then it does not matter who brings a row.
TEST_P(SizingTest, ImbalanceIsAsExpectedFromTheLoad) {
  if (GetParam().expert == 1) GTEST_SKIP() << "nothing is exchanged";
  const Measured run = Run();
  const ExpertLoad load = RecordedLoad(spec_.model(), run.first);
  const std::vector<double> expected = Received(load);
  std::vector<double> real(mesh_->size(), 0);
  for (const Measured::Rank& rank : run.ranks) {
    const std::vector<int64_t>& to = rank.first_step.to.at({"expert", "all_to_all"});
    for (size_t r = 0; r < to.size(); ++r) real[r] += static_cast<double>(to[r]);
  }
  // What a rank gets of a layer is sent to it in Dispatch and back by it in Return, in forward and
  // in backward; so it is sent half of its own rows' bytes and half of those it computes.
  const double row = spec_.model().hidden() * (GetParam().bf16 ? 2.0 : 4.0);
  for (int r = 0; r < mesh_->size(); ++r) {
    const double computed = (real[r] - 2 * row * Brought(load, r)) / (2 * row);
    const bool exact = mesh_->expert_groups() == 1 && GetParam().copies == 0;
    EXPECT_NEAR(computed, expected[r], exact ? kRounding : kTokenTolerance * expected[r]) << r;
  }
}

TEST_P(SizingTest, SnapshotsAndCheckpointsAreAsPredicted) {
  const Measured run = Run();
  const JobSize size = Predict(run.first);
  for (int r = 0; r < mesh_->size(); ++r) {
    EXPECT_EQ(size.ranks[r].snapshot, run.ranks[r].arena) << "rank " << r;
    EXPECT_LE(run.ranks[r].arena_index, kIndexBytesPerObject * run.ranks[r].objects + kPage);
  }
  int64_t tensors = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(run.checkpoint)) {
    if (entry.path().extension() == ".safetensors") tensors += TensorBytes(entry.path());
  }
  EXPECT_EQ(size.checkpoint, tensors);
}

class SpawnSizingTest : public SizingTest {};

TEST_P(SpawnSizingTest, TheMomentOfTheSpawnIsAsPredicted) {
  const CatalogsAhead catalogs = *BuildCatalogsAhead(spec_, 0);
  const ExpertLoad even;
  const JobSize size = SizeJob({.spec = &spec_,
                                .catalog = &catalogs.all,
                                .mesh = &*mesh_,
                                .placement = &*placement_,
                                .load = &even,
                                .before_spawn = &*catalogs.before_spawn});
  const std::vector<int64_t> most = MostUntilTheSpawn();
  int64_t processes = 0;
  for (int r = 0; r < mesh_->size(); ++r) {
    SCOPED_TRACE("rank " + std::to_string(r));
    const int64_t predicted = size.ranks[r].at_spawn;
    processes += predicted;
    if (GetParam().reproducible) {  // the new parameters have no partial sums yet
      EXPECT_GE(predicted, most[r]);
      EXPECT_LE(static_cast<double>(predicted), 1.75 * static_cast<double>(most[r]));
    } else {
      EXPECT_NEAR(static_cast<double>(predicted), static_cast<double>(most[r]),
                  0.02 * static_cast<double>(most[r]));
    }
  }
  ASSERT_EQ(size.nodes.size(), 1u);
  EXPECT_GT(size.nodes[0].until_spawn, processes);  // with the snapshots of then
  EXPECT_EQ(size.nodes[0].most(), std::max(size.nodes[0].steady(), size.nodes[0].until_spawn));
}

void ReuseOfTwo(RecipeSpec& recipe) {
  recipe.mutable_experts()->set_reuse(2);
  // From the first step on.
  recipe.mutable_router()->mutable_select()->mutable_candidates()->set_from(2 * kExperts);
}
void StateOfTwenty(RecipeSpec& recipe) { recipe.mutable_router()->mutable_state()->set_width(20); }
void NullExperts(RecipeSpec& recipe) { recipe.mutable_experts()->set_null_experts(kExperts); }
// After the steps that are run.
void SpawnLater(RecipeSpec& recipe) { recipe.mutable_experts()->mutable_spawn()->set_step(15); }
void SpawnSoon(RecipeSpec& recipe) { recipe.mutable_experts()->mutable_spawn()->set_step(2); }
// Every token takes every expert.
void OpenGate(RecipeSpec& recipe) {
  RouterSpec& router = *recipe.mutable_router();
  router.mutable_select()->mutable_dense_to_sparse()->set_threshold(0);
  router.mutable_weight()->set_renormalize(false);
}
void AsItIs(RecipeSpec&) {}

INSTANTIATE_TEST_SUITE_P(
    Recipes, SizingTest,
    ::testing::Values(
        Case{
            .name = "DeepSeekV3", .ranks = 4, .expert = 2, .preset = "deepseek_v3", .more = AsItIs},
        Case{.name = "DeepSeekV3Reproducible",
             .ranks = 2,
             .expert = 2,
             .reproducible = true,
             .preset = "deepseek_v3",
             .more = AsItIs},
        Case{.name = "AdaMoe",
             .ranks = 4,
             .expert = 2,
             .preset = "adamoe",
             .more = NullExperts,
             .sequence = 256},
        Case{.name = "OneExpert", .ranks = 2, .preset = "top_k", .more = SpawnLater},
        Case{.name = "OneExpertReproducible",
             .ranks = 3,
             .reproducible = true,
             .preset = "top_k",
             .more = SpawnLater},
        Case{.name = "OpenGate", .ranks = 4, .expert = 2, .preset = "top_k", .more = OpenGate},
        Case{.name = "RMoe", .ranks = 2, .expert = 2, .preset = "rmoe", .more = StateOfTwenty},
        Case{.name = "RMoeReproducible",
             .ranks = 3,
             .expert = 3,
             .reproducible = true,
             .preset = "rmoe",
             .more = StateOfTwenty},
        Case{.name = "ReXMoe", .ranks = 4, .expert = 2, .preset = "rexmoe", .more = ReuseOfTwo},
        Case{.name = "ReXMoeReproducible",
             .ranks = 3,
             .expert = 3,
             .reproducible = true,
             .preset = "rexmoe",
             .more = ReuseOfTwo,
             .sequence = 256}),
    [](const auto& param) { return param.param.name; });

// On one node. Steps of few tokens, so that no rank has more in its steps than at the spawn.
Case SpawnCase(const char* name, int ranks) {
  return {.name = name,
          .ranks = ranks,
          .expert = ranks,
          .per_node = ranks,
          .preset = "top_k",
          .more = SpawnSoon,
          .sequence = 8};
}

Case SpawnOfCopiesInBf16() {
  Case copies = SpawnCase("SpawnBf16Copies", 4);
  copies.copies = 1;
  copies.bf16 = true;
  return copies;
}

Case ReproducibleSpawn() {
  Case reproducible = SpawnCase("SpawnReproducible", 2);
  reproducible.reproducible = true;
  return reproducible;
}

INSTANTIATE_TEST_SUITE_P(Recipes, SpawnSizingTest,
                         ::testing::Values(SpawnCase("Spawn", 2), SpawnOfCopiesInBf16(),
                                           ReproducibleSpawn()),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace moesaic
