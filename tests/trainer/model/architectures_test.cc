// What models of several architectures compute, as Hugging Face transformers has it (tests/peers).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"
#include "tests/base/scratch_folder.h"
#include "tests/trainer/model/architecture_golden.h"
#include "tests/trainer/model/golden.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/checkpoint/convert/architecture.h"
#include "trainer/checkpoint/convert/import.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/restore.h"
#include "trainer/model/decode.h"
#include "trainer/model/feed_forward.h"
#include "trainer/optim/optimizer.h"

namespace moesaic {
namespace {

constexpr double kTolerance = 1e-4;

MicroBatch BatchOf(const at::Tensor& tokens, const at::Tensor& targets) {
  MicroBatch batch;
  batch.id = 0;
  batch.sequences = tokens.size(0);
  batch.length = tokens.size(1);
  batch.tokens = tokens.reshape({-1});
  batch.targets = targets.reshape({-1});
  return batch;
}

class ArchitectureGolden : public ::testing::TestWithParam<const char*> {
 protected:
  ArchitectureGolden()
      : name_(GetParam()),
        model_(GoldenJob(name_)),
        golden_(ReadGolden(name_ + "/golden.safetensors")),
        weights_(model_.catalog(), FromHuggingFace(name_, model_.catalog(),
                                                   ReadGolden(name_ + "/model.safetensors"), "")),
        batch_(BatchOf(golden_.at("tokens"), golden_.at("targets"))) {}

  PassOptions Options() const {
    PassOptions options;
    options.loss_scale = 1.0 / batch_.targets.ge(0).sum().item<double>();
    return options;
  }

  const std::string name_;
  const SingleRankModel model_;
  std::map<std::string, at::Tensor> golden_;
  FixedWeights weights_;
  MicroBatch batch_;
};

// So that what is shown of these weights below holds for an imported checkpoint.
TEST_P(ArchitectureGolden, ImportGivesTheseParameters) {
  const ScratchFolder folder;
  const std::string to = folder / "imported";
  const auto imported = ImportFolder(&FileSystem::System(), {.from = "tests/peers/golden/" + name_,
                                                             .to = to,
                                                             .tokenizer = "",
                                                             .binary = "test",
                                                             .created = absl::UnixEpoch(),
                                                             .progress = {}});
  ASSERT_TRUE(imported.ok()) << imported.status();
  const auto step = OpenCheckpoint(&FileSystem::System(), to);
  const auto manifest = ReadManifest(*step->folder);
  ASSERT_TRUE(manifest.ok()) << manifest.status();
  JobSpec job = GoldenJob(name_), read = manifest->spec();
  for (JobSpec* spec : {&job, &read}) {
    spec->mutable_recipe()->clear_preset();
    spec->mutable_train()->clear_seed();
  }
  EXPECT_THAT(DescribeChanges(job, read, IDENTITY), ::testing::IsEmpty());
  for (const ParameterSpec& parameter : model_.catalog().parameters()) {
    at::Tensor values = at::empty(parameter.shape, at::kFloat);
    const std::vector<uint64_t> shape(parameter.shape.begin(), parameter.shape.end());
    const RestoreTarget target = {.kind = MASTER,
                                  .name = parameter.name,
                                  .box = WholeBox(shape),
                                  .destination = {values.mutable_data_ptr<float>(),
                                                  static_cast<size_t>(values.numel())}};
    const absl::Status restored = RestoreObjects(*step->folder, *manifest, {&target, 1}, 1);
    ASSERT_TRUE(restored.ok()) << restored;
    EXPECT_TRUE(at::equal(values, weights_.Lease(model_.catalog().Find(parameter.name))))
        << parameter.name;
  }
}

TEST_P(ArchitectureGolden, LossAndRouterScores) {
  const PassOptions options = Options();
  TransformerPass pass(model_.transformer(), batch_, options, weights_);
  pass.RunForward();
  const double loss = golden_.at("loss").item<double>();
  EXPECT_NEAR(pass.scalars().loss_sum * options.loss_scale, loss, kTolerance * loss);
  for (int layer = 0; layer < model_.catalog().layers(); ++layer) {
    if (!model_.catalog().IsMoe(layer)) continue;
    const Routing& routing = MoeBlock::RoutingOf(pass.contexts()[2 + 2 * layer]);
    EXPECT_LT(RelativeError(routing.scores, golden_.at(absl::StrCat("router.", layer))),
              kTolerance);
  }
}

TEST_P(ArchitectureGolden, EveryGradient) {
  const ParameterCatalog& catalog = model_.catalog();
  const auto expected = FromHuggingFace(name_, catalog, golden_, "gradient.");
  for (const bool reproducible : {false, true}) {
    PassOptions options = Options();
    options.reproducible = reproducible;
    TransformerPass pass(model_.transformer(), batch_, options, weights_);
    LeafSink sink(catalog);
    pass.RunForward();
    pass.RunBackward(sink);
    for (ParameterId id = 0; id < catalog.size(); ++id) {
      if (!catalog[id].learnt) continue;
      EXPECT_LT(RelativeError(sink.Sum(id), expected[id]), kTolerance) << catalog[id].name;
    }
  }
}

TEST_P(ArchitectureGolden, LogitsOfEveryPosition) {
  Decoder decoder(model_.transformer(), weights_, batch_.sequences, batch_.length, at::kFloat);
  const at::Tensor tokens = golden_.at("tokens");
  for (int64_t t = 0; t < batch_.length; ++t) {
    const at::Tensor logits = decoder.Append(tokens.narrow(1, t, 1));
    EXPECT_LT(RelativeError(logits, golden_.at("logits").select(1, t)), kTolerance) << t;
  }
}

// The curve of AdamW, gradients and updates together, over the golden batches.
TEST_P(ArchitectureGolden, TrainingCurve) {
  const ParameterCatalog& catalog = model_.catalog();
  const JobSpec job = GoldenJob(name_);
  const Mesh mesh = Mesh::Flat(1, 1);
  const auto placement = ExpertPlacement::Even(mesh, ExpertsByLayer(catalog));
  ParameterStore store(catalog, mesh, placement, {});
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    store.master(id).copy_(weights_.Lease(id));
    store.RefreshCompute(id);
  }
  const auto optimizer = MakeOptimizer(job.train().optimizer());
  const at::Tensor expected = golden_.at("curve.loss");
  for (int64_t step = 0; step < expected.size(0); ++step) {
    const MicroBatch batch =
        BatchOf(golden_.at("curve.tokens")[step], golden_.at("curve.targets")[step]);
    PassOptions options;
    options.loss_scale = 1.0 / batch.targets.ge(0).sum().item<double>();
    TransformerPass pass(model_.transformer(), batch, options, store);
    LeafSink sink(catalog);
    pass.RunForward();
    pass.RunBackward(sink);
    const double loss = expected[step].item<double>();
    EXPECT_NEAR(pass.scalars().loss_sum * options.loss_scale, loss, kTolerance * loss) << step;
    UpdateScalars scalars;
    scalars.update = static_cast<uint64_t>(step + 1);
    for (ParameterId id = 0; id < catalog.size(); ++id) {
      if (!catalog[id].learnt) continue;
      optimizer->Update(catalog[id], id, sink.Sum(id), scalars, store);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, ArchitectureGolden,
                         ::testing::Values("mixtral", "qwen3_moe", "dots1", "llama"),
                         [](const auto& c) { return c.param; });

}  // namespace
}  // namespace moesaic
