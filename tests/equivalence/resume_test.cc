// Training that goes on from snapshots in memory is training that was never disturbed: from its own
// node's, from a peer's, from the disk, from some of each, into the same layout and into others.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <optional>

#include "base/mutex.h"
#include "parallel/comm/in_process.h"
#include "tests/base/scratch_folder.h"
#include "tests/equivalence/training_run.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/shard_files.h"
#include "trainer/checkpoint/format/snapshot_arena.h"
#include "trainer/checkpoint/format/verify.h"
#include "trainer/loop/stored_state.h"
#include "trainer/loop/trainer.h"

namespace moesaic {
namespace {

constexpr int kExperts = 8;
constexpr int kSavedStep = 2;
constexpr int kSteps = 4;

// Reads an arena file, whose path is its "address".
class FilePeer : public SnapshotPeer {
 public:
  explicit FilePeer(const std::string& path) : reader_(SnapshotReader::Open(path)) {}
  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef&) override {
    if (!reader_.ok()) return absl::UnavailableError("the host is away");
    return (*reader_)->index();
  }
  absl::Status Read(const ReadSnapshotRequest& request, const Sink& sink) override {
    const auto& range = request.ranges(0);
    return (*reader_)->Read(
        static_cast<int>(range.object()), range.begin(), range.begin() + range.bytes(),
        [&](uint64_t, std::span<const std::byte> bytes) { return sink(bytes); });
  }

 private:
  const absl::StatusOr<std::unique_ptr<SnapshotReader>> reader_;
};

// Masters and moments by "<kind>/<name>"; each equal on all ranks that own it.
using LogicalState = std::map<std::string, at::Tensor>;

struct Trained {
  LogicalState state;
  std::vector<double> losses;  // of the steps of this run
};

std::unique_ptr<Trainer> MakeTrainer(const JobSpec& spec, const RunLayout& layout,
                                     Communicator& world,
                                     std::optional<Experts> experts = std::nullopt) {
  at::set_num_threads(1);
  const Mesh mesh = Mesh::Flat(layout.ranks, layout.expert);
  const ExpertPlacement placement =
      ExpertPlacement::Even(mesh, std::vector<int>(spec.model().layers(), kExperts));
  auto trainer = Trainer::Create({.spec = spec,
                                  .mesh = mesh,
                                  .placement = placement,
                                  .rank = world.rank(),
                                  .world = &world,
                                  .experts = experts});
  if (!trainer.ok()) throw std::runtime_error(std::string(trainer.status().message()));
  return *std::move(trainer);
}

void Collect(Trainer& trainer, LogicalState* all) {
  const auto add = [&](const std::string& name, const at::Tensor& tensor) {
    const auto [entry, fresh] = all->emplace(name, tensor.clone());
    EXPECT_TRUE(fresh || at::equal(entry->second, tensor)) << name << " differs among ranks";
  };
  for (const ParameterId id : trainer.store().owned()) {
    const std::string& name = trainer.catalog()[id].name;
    add("master/" + name, trainer.store().master(id));
    add("adam_m/" + name, trainer.store().first_moment(id));
    add("adam_v/" + name, trainer.store().second_moment(id));
  }
}

void ExpectSame(const LogicalState& a, const LogicalState& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) EXPECT_TRUE(at::equal(tensor, b.at(name))) << name;
}

class ResumeTest : public ::testing::Test {
 protected:
  void SetUp() override { spec_ = TinyJob(folder_.path(), kExperts); }

  std::string ArenaOf(int rank) const { return folder_ / ("g1-r" + std::to_string(rank)); }

  // From the start, or from what `restore` says, up to `steps`; `snapshot` leaves the last step's
  // in arenas.
  Trained Run(const RunLayout& layout, int steps, bool snapshot,
              const std::optional<RestoreFrom>& restore = std::nullopt) {
    Mutex mutex;
    Trained all;
    RunRanks(layout.ranks, [&](Communicator& world) {
      const auto trainer = MakeTrainer(
          spec_, layout, world,
          restore ? std::optional(StoredExperts(*restore, spec_).value()) : std::nullopt);
      if (restore) {
        auto restored = RestoreTraining(*restore, spec_,
                                        {&trainer->catalog(), &trainer->store(), /*threads=*/2});
        if (!restored.ok()) throw std::runtime_error(std::string(restored.status().message()));
        trainer->state() = std::move(restored->state);
        const absl::Status settled = trainer->Settle();
        if (!settled.ok()) throw std::runtime_error(std::string(settled.message()));
        trainer->PublishWeights();
        if (world.rank() == 0) summary_ = restored->summary;
      } else {
        trainer->InitialiseParameters();
      }
      std::vector<double> losses;
      while (trainer->state().step() < static_cast<uint64_t>(steps)) {
        const auto outcome = trainer->Step({});
        if (!outcome.ok()) throw std::runtime_error(std::string(outcome.status().message()));
        losses.push_back(outcome->metrics.loss());
      }
      if (snapshot) TakeSnapshot(*trainer, world.rank(), layout.ranks);
      MutexLock lock(&mutex);
      Collect(*trainer, &all.state);
      if (world.rank() == 0) all.losses = losses;
    });
    return all;
  }

  void TakeSnapshot(Trainer& trainer, int rank, int ranks) const {
    WorkerIdentity worker;
    worker.set_job(spec_.name());
    worker.set_generation(1);
    worker.set_rank(static_cast<uint32_t>(rank));
    SnapshotTaker taker(worker, static_cast<uint32_t>(ranks), ArenaOf(rank));
    const auto taken = taker.Take(trainer.state(), ObjectsToWrite(trainer, rank), 1);
    ASSERT_TRUE(taken.ok() && taken->has_value()) << taken.status();
  }

  std::string Persist(int ranks) const {
    const auto root = *CheckpointRoot::Open(&FileSystem::System(), folder_ / "checkpoints");
    const std::string staging = *root->BeginStaging(saved_step_, 1);
    const auto staged = *FileSystem::System().OpenFolder(staging);
    std::vector<ShardsPersisted> reports;
    for (int rank = 0; rank < ranks; ++rank) {
      const auto reader = *SnapshotReader::Open(ArenaOf(rank) + ".0");
      reports.push_back(*PersistShards(*reader, saved_step_, staged.get()));
    }
    CommitRequest request;
    request.staging = staging;
    request.generation = 1;
    request.ranks = static_cast<uint32_t>(ranks);
    request.reports = reports;
    request.spec = spec_;
    request.binary = "test";
    const auto committed = root->Commit(request);
    EXPECT_TRUE(committed.ok()) << committed.status();
    return committed->path;
  }

  // `own` says for which ranks' snapshots the files are on the own node; the others are a peer's.
  RestoreFrom From(int ranks, const std::function<bool(int)>& own, const std::string& path = "") {
    RestoreFrom from;
    from.node = "here";
    from.open_peer = [](const std::string& address) { return std::make_unique<FilePeer>(address); };
    from.sources.set_step(saved_step_);
    from.sources.set_path(path);
    for (int rank = 0; rank < ranks; ++rank) {
      SnapshotSource* source = from.sources.add_snapshots();
      source->set_node(own(rank) ? "here" : "there");
      source->set_address(ArenaOf(rank) + ".0");
      HeldSnapshot* held = source->mutable_snapshot();
      held->set_job(spec_.name());
      held->set_generation(1);
      held->set_step(saved_step_);
      held->set_rank(static_cast<uint32_t>(rank));
      held->set_path(ArenaOf(rank) + ".0");
    }
    return from;
  }
  RestoreFrom FromDisk(const std::string& path) {
    RestoreFrom from;
    from.sources.set_path(path);
    return from;
  }
  static bool Own(int) { return true; }
  static bool Peers(int) { return false; }

  const ScratchFolder folder_;
  JobSpec spec_;
  uint64_t saved_step_ = kSavedStep;  // of Persist and From
  std::string summary_;
};

TEST_F(ResumeTest, C3_EveryTierGivesTheBitsOfAnUndisturbedRun) {
  const RunLayout layout = {.ranks = 2, .expert = 2};
  const Trained whole = Run(layout, kSteps, false);
  Run(layout, kSavedStep, true);
  const std::string path = Persist(2);
  const auto expect_same = [&](const RestoreFrom& from, const std::string& tier) {
    const Trained resumed = Run(layout, kSteps, false, from);
    ExpectSame(resumed.state, whole.state);
    EXPECT_EQ(resumed.losses,
              std::vector<double>(whole.losses.begin() + kSavedStep, whole.losses.end()));
    EXPECT_NE(summary_.find(tier), std::string::npos) << summary_;
  };
  expect_same(From(2, Own), "own memory");
  expect_same(From(2, Peers), "memory of other nodes");
  expect_same(From(2, [](int rank) { return rank == 0; }), "own memory");
  expect_same(FromDisk(path), "disk");
  // A peer that is gone, and a snapshot that is damaged: the disk has the same step.
  RestoreFrom mixed = From(2, [](int rank) { return rank == 0; }, path);
  mixed.sources.mutable_snapshots(1)->set_address("nobody");
  expect_same(mixed, "from disk; not used: ");
  std::filesystem::resize_file(ArenaOf(1) + ".0", 1000);
  expect_same(From(2, Own, path), "from disk; not used: ");
  EXPECT_THROW(Run(layout, kSteps, false, From(2, Own)), std::runtime_error);
}

// EvoMoE with a spawn at step 2 and its hard switch at step 4.
class EvoMoeResume : public ResumeTest {
 protected:
  void SetUp() override {
    ResumeTest::SetUp();
    spec_.mutable_model()->mutable_moe()->set_active(1);
    spec_ = WithRecipe(spec_, "evomoe", [](RecipeSpec& recipe) {
      recipe.mutable_experts()->mutable_spawn()->set_step(2);
      recipe.mutable_router()->mutable_select()->mutable_dense_to_sparse()->set_hard_step(4);
    });
    spec_.mutable_train()->set_reproducible(true);
  }
};

// In each phase, and at the steps between two: from memory and from disk, at another expert degree.
TEST_F(EvoMoeResume, EVO10_ACheckpointOfAnyPhaseGoesOnExactly) {
  constexpr int kLast = 6;
  const Trained whole = Run({}, kLast, false);
  for (int saved = 1; saved < kLast; ++saved) {
    SCOPED_TRACE(::testing::Message() << "saved after step " << saved);
    saved_step_ = static_cast<uint64_t>(saved);
    Run({.ranks = 2, .expert = 2}, saved, true);
    const std::string path = Persist(2);
    const auto step = OpenCheckpoint(&FileSystem::System(), path);
    ASSERT_TRUE(step.ok()) << step.status();
    EXPECT_EQ(VerifyStep(*step->folder, {}).problems, std::vector<std::string>());
    for (const RestoreFrom& from : {From(2, Own), FromDisk(path)}) {
      const Trained resumed = Run({.ranks = 4, .expert = 4}, kLast, false, from);
      ExpectSame(resumed.state, whole.state);
      EXPECT_EQ(resumed.losses,
                std::vector<double>(whole.losses.begin() + saved, whole.losses.end()));
    }
  }
}

// The job's spawn now lies before the checkpoint's step: the same experts come of it.
TEST_F(EvoMoeResume, EVO10_ACheckpointOfOneExpertIsSpawnedByAJobThatIsPastIt) {
  spec_.mutable_recipe()->mutable_experts()->mutable_spawn()->set_step(4);
  const RunLayout layout = {.ranks = 2, .expert = 2};
  saved_step_ = 3;
  Run(layout, 3, true);
  const std::string path = Persist(2);
  const JobSpec late = spec_;
  spec_.mutable_recipe()->mutable_experts()->mutable_spawn()->set_step(3);
  const Trained spawned_in_time = Run({}, 3, false);
  ExpectSame(Run(layout, 3, false, FromDisk(path)).state, spawned_in_time.state);
  // The other way there is no way back.
  Run(layout, 3, true);
  std::filesystem::remove_all(folder_ / "checkpoints");
  const std::string spawned = Persist(2);
  spec_ = late;
  EXPECT_THROW(Run(layout, 3, false, FromDisk(spawned)), std::runtime_error);
}

struct Layout {
  int data = 1;
  int expert = 1;
  RunLayout run() const { return {.ranks = data * expert, .expert = expert}; }
};

// Saved at one, loaded at every other, from memory: each of DP 1, 2, 4 x EP 1, 2, 3, 4 is a source
// of some and a target of all.
class ResumeMatrix : public ResumeTest, public ::testing::WithParamInterface<int> {};

TEST_P(ResumeMatrix, C4_AnyLayoutGoesOnFromTheMemoryOfAnyOther) {
  std::vector<Layout> layouts;
  for (int data : {1, 2, 4}) {
    for (int expert : {1, 2, 3, 4}) layouts.push_back({data, expert});
  }
  const Layout saved = layouts[static_cast<size_t>(GetParam())];
  for (const bool reproducible : {false, true}) {
    spec_.mutable_train()->set_reproducible(reproducible);
    const Trained at_save = Run(saved.run(), kSavedStep, true);
    std::optional<Trained> whole;
    if (reproducible) whole = Run({}, kSavedStep + 1, false);
    for (const Layout& loaded : layouts) {
      SCOPED_TRACE(::testing::Message() << "data " << loaded.data << " expert " << loaded.expert);
      const RestoreFrom from =
          From(saved.run().ranks, [](int rank) { return rank % 2 == 0; });
      ExpectSame(Run(loaded.run(), kSavedStep, false, from).state, at_save.state);
      if (!reproducible || loaded.data + loaded.expert > 4) continue;
      ExpectSame(Run(loaded.run(), kSavedStep + 1, false, from).state, whole->state);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Saved, ResumeMatrix, ::testing::Range(0, 12));

}  // namespace
}  // namespace moesaic
