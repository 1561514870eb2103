// A dense model in training becomes one with experts, and goes on under any layout.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "proto/job_spec.h"
#include "tests/base/scratch_folder.h"
#include "tests/equivalence/training_run.h"
#include "trainer/checkpoint/convert/first_step.h"
#include "trainer/checkpoint/convert/parameter_reader.h"
#include "trainer/checkpoint/convert/upcycle.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr int kDenseSteps = 3;
constexpr int kSteps = 3;

const at::Tensor* ObjectOf(const RunResult& run, ObjectKind kind, const std::string& name) {
  const auto& objects = kind == MASTER   ? run.weights
                        : kind == ADAM_M ? run.first_moments
                                         : run.second_moments;
  const auto found = objects.find(name);
  return found == objects.end() ? nullptr : &found->second;
}

class UpcycleEquality : public ::testing::Test {
 protected:
  void SetUp() override {
    dense_ = TinyJob(folder_.path(), 8);
    dense_.mutable_model()->clear_moe();
    dense_.mutable_model()->set_dense_width(24);
    dense_.mutable_train()->set_reproducible(true);
    moe_ = dense_;
    MoeSpec& moe = *moe_.mutable_model()->mutable_moe();
    moe.set_experts(8);
    moe.set_active(4);
    moe.set_expert_width(12);
    moe.set_shared_width(0);
    moe_.mutable_recipe()->mutable_router()->mutable_weight()->set_scale(2);
    // What it trains is to be the loss of the dense model alone.
    moe_.mutable_recipe()->mutable_router()->mutable_balance()->set_coefficient(0);
    moe_.mutable_recipe()->mutable_router()->mutable_balance()->set_z_loss(0);
    ApplyDefaults(&moe_);
    for (const JobProblem& problem : ValidateJob(moe_)) {
      ADD_FAILURE() << problem.path << ": " << problem.message;
    }
  }

  void Save(const RunResult& run, const std::string& to) {
    const ParameterCatalog catalog = *ParameterCatalog::Build(dense_);
    FirstStep step;
    step.to = to;
    step.spec = dense_;
    step.weights_only = false;
    step.state.set_optimizer_updates(run.state.optimizer_updates());
    for (const ParameterSpec& parameter : catalog.parameters()) {
      for (const ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
        step.sources.push_back(ShardOf(kind, parameter));
        step.sources.back().produce = [values = ObjectOf(run, kind, parameter.name)](
                                          const ByteSink& sink) {
          return sink({static_cast<const std::byte*>(values->data_ptr()),
                       static_cast<size_t>(values->nbytes())});
        };
      }
    }
    const auto committed = CommitFirstStep(&FileSystem::System(), std::move(step));
    ASSERT_TRUE(committed.ok()) << committed.status();
  }

  // As a run that resumes from the checkpoint would begin.
  RunResult Load(const std::string& from) {
    const auto step = OpenCheckpoint(&FileSystem::System(), from);
    const auto manifest = ReadManifest(*step->folder);
    CheckpointParameters reader(step->folder.get(), &*manifest);
    RunResult start;
    start.state = manifest->state();
    const ParameterCatalog catalog = *ParameterCatalog::Build(moe_);
    for (const ParameterSpec& parameter : catalog.parameters()) {
      for (auto [kind, into] : {std::pair(MASTER, &start.weights), {ADAM_M, &start.first_moments},
                                {ADAM_V, &start.second_moments}}) {
        at::Tensor values = at::empty(parameter.shape, at::kFloat);
        const absl::Status read =
            reader.Read(kind, parameter, 0, {values.mutable_data_ptr<float>(),
                                             static_cast<size_t>(values.numel())});
        EXPECT_TRUE(read.ok()) << read;
        (*into)[parameter.name] = values;
      }
    }
    return start;
  }

  const ScratchFolder folder_;
  JobSpec dense_;
  JobSpec moe_;
};

TEST_F(UpcycleEquality, AnyLayoutGoesOnBitForBitFromTheLossOfTheDenseModel) {
  const RunResult dense = TrainInProcess(dense_, {}, kDenseSteps);
  Save(dense, folder_ / "dense");
  Upcycle request;
  request.from = folder_ / "dense";
  request.to = folder_ / "moe";
  request.spec = moe_;
  request.method = UpcycleMethod::kGranular;
  request.keep_moments = true;
  const auto made = UpcycleModel(&FileSystem::System(), request);
  ASSERT_TRUE(made.ok()) << made.status();

  const RunResult start = Load(request.to);
  EXPECT_EQ(start.state.optimizer_updates(), static_cast<uint64_t>(kDenseSteps));
  EXPECT_EQ(start.state.router_updates_from(), static_cast<uint64_t>(kDenseSteps));
  const RunResult one = TrainInProcess(moe_, {}, kSteps, &start);
  for (const auto& [ranks, expert] : {std::pair(2, 2), {4, 4}, {4, 2}, {3, 3}}) {
    SCOPED_TRACE(testing::Message() << ranks << " ranks, expert " << expert);
    ExpectSameBits(one, TrainInProcess(moe_, {.ranks = ranks, .expert = expert}, kSteps, &start));
  }

  // The dense model on the same first batch.
  RunResult again = dense;
  again.state = start.state;
  const RunResult gone_on = TrainInProcess(dense_, {}, 1, &again);
  EXPECT_NEAR(one.losses[0], gone_on.losses[0], 1e-5 * gone_on.losses[0]);
}

}  // namespace
}  // namespace moesaic
