#include "trainer/checkpoint/convert/upcycle.h"

#include <gmock/gmock.h>
#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "trainer/catalog/initial_values.h"
#include "trainer/catalog/random_stream.h"
#include "trainer/catalog/spawn_mask.h"
#include "trainer/checkpoint/convert/parameter_reader.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kUpdates = 17;

JobSpec JobOf(const std::string& text) {
  JobSpec spec;
  EXPECT_TRUE(google::protobuf::TextFormat::MergeFromString(text, &spec)) << text;
  ApplyDefaults(&spec);
  for (const JobProblem& problem : ValidateJob(spec)) {
    if (problem.path.rfind("model", 0) == 0) ADD_FAILURE() << problem.path << problem.message;
  }
  return spec;
}

constexpr char kBody[] =
    "name: 'job' model { layers: 3 hidden: 8 heads: 2 kv_heads: 1 head_width: 4 sequence: 8 "
    "vocabulary: 16 dense_width: 12 } train { seed: 5 optimizer { adamw { lr: 1 } } } ";
constexpr char kCopies[] =
    "model { moe { experts: 4 active: 2 expert_width: 12 pattern { every: 2 first: 0 } } } "
    "recipe { router { weight { renormalize: true scale: 1 } } } ";
constexpr char kPieces[] =
    "model { moe { experts: 6 active: 3 expert_width: 4 } } "
    "recipe { router { weight { renormalize: true scale: 3 } } } ";

JobSpec DenseJob() { return JobOf(kBody); }
JobSpec MoeJob(const std::string& more) { return JobOf(absl::StrCat(kBody, more)); }

// Element i of an object of the dense model.
float DenseValue(ObjectKind kind, const std::string& name, uint64_t i) {
  return RandomStream(1, ObjectKindName(kind), name).Normal(i);
}

std::vector<float> DenseObject(ObjectKind kind, const ParameterSpec& parameter) {
  std::vector<float> values(static_cast<size_t>(parameter.elements()));
  for (size_t i = 0; i < values.size(); ++i) values[i] = DenseValue(kind, parameter.name, i);
  return values;
}

class UpcycleTest : public ::testing::Test {
 protected:
  void WriteDense(const JobSpec& spec, bool weights_only = false) {
    const ParameterCatalog catalog = *ParameterCatalog::Build(spec);
    FirstStep step;
    step.to = "/dense";
    step.spec = spec;
    step.weights_only = weights_only;
    step.state.set_optimizer_updates(kUpdates);
    for (const ParameterSpec& parameter : catalog.parameters()) {
      for (const ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
        if (kind != MASTER && weights_only) continue;
        step.sources.push_back(ShardOf(kind, parameter));
        step.sources.back().produce = [kind, &parameter](const ByteSink& sink) {
          const std::vector<float> values = DenseObject(kind, parameter);
          return sink(std::as_bytes(std::span<const float>(values)));
        };
      }
    }
    const auto committed = CommitFirstStep(&files_, std::move(step));
    ASSERT_TRUE(committed.ok()) << committed.status();
  }

  Upcycle Request(const std::string& job, UpcycleMethod method) {
    Upcycle request;
    request.from = "/dense";
    request.to = "/moe";
    request.spec = MoeJob(job);
    request.method = method;
    request.binary = "test";
    return request;
  }

  void Make(const Upcycle& request) {
    const auto made = UpcycleModel(&files_, request);
    ASSERT_TRUE(made.ok()) << made.status();
    step_ = *OpenCheckpoint(&files_, request.to);
    manifest_ = *ReadManifest(*step_.folder);
    catalog_ = *ParameterCatalog::Build(request.spec);
    EXPECT_THAT(VerifyStep(*step_.folder, VerifyDepth::kContent).problems, IsEmpty());
  }

  std::vector<float> Object(ObjectKind kind, const std::string& name) {
    const ParameterSpec& parameter = (*catalog_)[catalog_->Find(name)];
    std::vector<float> values(static_cast<size_t>(parameter.elements()));
    const absl::Status read =
        CheckpointParameters(step_.folder.get(), &manifest_).Read(kind, parameter, 0, values);
    EXPECT_TRUE(read.ok()) << read;
    return values;
  }

  void ExpectRestIsTheDenseModels(const JobSpec& dense) {
    const ParameterCatalog of_dense = *ParameterCatalog::Build(dense);
    int same = 0;
    for (const ParameterSpec& parameter : catalog_->parameters()) {
      const ParameterId id = of_dense.Find(parameter.name);
      if (id == kNoParameter) continue;
      EXPECT_EQ(Object(MASTER, parameter.name), DenseObject(MASTER, of_dense[id]))
          << parameter.name;
      ++same;
    }
    EXPECT_GE(same, 4 * static_cast<int>(dense.model().layers()) + 3);
  }

  MemoryFileSystem files_;
  StepFolder step_;
  Manifest manifest_;
  std::optional<ParameterCatalog> catalog_;
};

TEST_F(UpcycleTest, EachCopyIsTheDenseLayerAndTheRestStays) {
  WriteDense(DenseJob());
  Make(Request(kCopies, UpcycleMethod::kCopy));
  ExpectRestIsTheDenseModels(DenseJob());
  const ParameterCatalog dense = *ParameterCatalog::Build(DenseJob());
  for (const int layer : {0, 2}) {
    for (const char* matrix : {"gate_up", "down"}) {
      const auto values = DenseObject(
          MASTER, dense[dense.Find(absl::StrCat("layers.", layer, ".dense.", matrix))]);
      for (int e = 0; e < 4; ++e) {
        EXPECT_EQ(Object(MASTER, absl::StrCat("layers.", layer, ".moe.experts.", e, ".", matrix)),
                  values);
      }
    }
  }
  // The router is that of a new run.
  const ParameterSpec& router = (*catalog_)[catalog_->Find("layers.2.moe.router")];
  std::vector<float> initial(static_cast<size_t>(router.elements()));
  FillInitial(router, 5, 0, initial);
  EXPECT_EQ(Object(MASTER, router.name), initial);
  EXPECT_TRUE(manifest_.weights_only());
  EXPECT_TRUE(CheckInitFrom(manifest_, *catalog_).ok());
  EXPECT_EQ(manifest_.layout(), "upcycled (copy) from /dense");
}

// Total = dense + (N - 1) feed-forwards a layer with experts + routers.
TEST_F(UpcycleTest, AddsFeedForwardsAndRoutersAlone) {
  WriteDense(DenseJob());
  Make(Request(kCopies, UpcycleMethod::kCopy));
  const int64_t feed_forward = 3 * 12 * 8, router = 4 * 8;
  EXPECT_EQ(catalog_->total_elements(), ParameterCatalog::Build(DenseJob())->total_elements() +
                                            2 * (3 * feed_forward + router));
}

// Expert copy * g + s has the hidden units [s * w, (s + 1) * w) of the dense layer.
void ExpectPieces(const std::vector<float>& gate_up, const std::vector<float>& down,
                  uint64_t hidden, uint64_t width, uint64_t piece_width, uint64_t first,
                  const std::vector<float>& dense_gate_up, const std::vector<float>& dense_down) {
  int wrong = 0;
  for (uint64_t unit = 0; unit < piece_width; ++unit) {
    for (uint64_t h = 0; h < hidden; ++h) {
      const uint64_t source = first + unit;
      wrong += gate_up[unit * hidden + h] != dense_gate_up[source * hidden + h];
      wrong += gate_up[(piece_width + unit) * hidden + h] !=
               dense_gate_up[(width + source) * hidden + h];
      wrong += down[h * piece_width + unit] != dense_down[h * width + source];
    }
  }
  EXPECT_EQ(wrong, 0);
}

TEST_F(UpcycleTest, PiecesAreHiddenUnitsOfTheDenseLayer) {
  WriteDense(DenseJob());
  Make(Request(kPieces, UpcycleMethod::kGranular));
  ExpectRestIsTheDenseModels(DenseJob());
  const ParameterCatalog dense = *ParameterCatalog::Build(DenseJob());
  for (int layer = 0; layer < 3; ++layer) {
    const std::string at = absl::StrCat("layers.", layer, ".");
    const auto gate_up = DenseObject(MASTER, dense[dense.Find(at + "dense.gate_up")]);
    const auto down = DenseObject(MASTER, dense[dense.Find(at + "dense.down")]);
    for (int e = 0; e < 6; ++e) {
      const std::string expert = absl::StrCat(at, "moe.experts.", e, ".");
      ExpectPieces(Object(MASTER, expert + "gate_up"), Object(MASTER, expert + "down"), 8, 12, 4,
                   4 * (e % 3), gate_up, down);
    }
    const std::vector<float> router = Object(MASTER, at + "moe.router");
    const auto row = [&](int e) {
      return std::vector<float>(router.begin() + e * 8, router.begin() + e * 8 + 8);
    };
    for (int e = 0; e < 6; ++e) EXPECT_EQ(row(e), row(e / 3 * 3)) << e;
    EXPECT_NE(row(0), row(3));
  }
}

// Parameters that are larger than what is held of them at a time, cut in the middle of a row.
TEST_F(UpcycleTest, LargeLayersAreCutInPassing) {
  const std::string body =
      "name: 'job' model { layers: 1 hidden: 512 heads: 2 kv_heads: 1 head_width: 4 sequence: 8 "
      "vocabulary: 16 dense_width: 4100 } train { optimizer { adamw { lr: 1 } } } ";
  const JobSpec dense_job = JobOf(body);
  WriteDense(dense_job, /*weights_only=*/true);
  Upcycle request = Request(kPieces, UpcycleMethod::kGranular);
  request.spec = JobOf(body +
                       "model { moe { experts: 2 active: 2 expert_width: 2050 } } "
                       "recipe { router { weight { renormalize: true scale: 2 } } }");
  Make(request);
  const ParameterCatalog dense = *ParameterCatalog::Build(dense_job);
  const auto gate_up = DenseObject(MASTER, dense[dense.Find("layers.0.dense.gate_up")]);
  const auto down = DenseObject(MASTER, dense[dense.Find("layers.0.dense.down")]);
  for (int e = 0; e < 2; ++e) {
    const std::string expert = absl::StrCat("layers.0.moe.experts.", e, ".");
    ExpectPieces(Object(MASTER, expert + "gate_up"), Object(MASTER, expert + "down"), 512, 4100,
                 2050, 2050 * e, gate_up, down);
  }
}

TEST_F(UpcycleTest, SpawnedExpertsAreMaskedCopies) {
  WriteDense(DenseJob());
  Upcycle request = Request(kCopies, UpcycleMethod::kSpawn);
  request.mask = 0.5;
  request.rescale = true;
  request.keep_moments = true;
  Make(request);
  ExpectRestIsTheDenseModels(DenseJob());
  const ParameterCatalog dense = *ParameterCatalog::Build(DenseJob());
  const ParameterSpec& down = dense[dense.Find("layers.2.dense.down")];
  std::vector<std::vector<float>> experts;
  for (int e = 0; e < 4; ++e) {
    const std::string name = absl::StrCat("layers.2.moe.experts.", e, ".down");
    for (const ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
      std::vector<float> want = DenseObject(kind, down);
      ApplySpawnMask({.seed = 5, .share = 0.5, .rescale = kind == MASTER}, name, 0, want);
      EXPECT_EQ(Object(kind, name), want) << name << " " << kind;
    }
    experts.push_back(Object(MASTER, name));
  }
  EXPECT_NE(experts[0], experts[1]);
}

TEST_F(UpcycleTest, MomentsGoTheWayOfTheWeights) {
  WriteDense(DenseJob());
  Upcycle request = Request(kPieces, UpcycleMethod::kGranular);
  request.keep_moments = true;
  Make(request);
  EXPECT_FALSE(manifest_.weights_only());
  EXPECT_EQ(manifest_.state().optimizer_updates(), kUpdates);
  EXPECT_EQ(manifest_.state().step(), 0u);
  const absl::Status resumable = CheckResumable(manifest_, request.spec, *catalog_);
  EXPECT_TRUE(resumable.ok()) << resumable;
  const ParameterCatalog dense = *ParameterCatalog::Build(DenseJob());
  for (const ObjectKind kind : {ADAM_M, ADAM_V}) {
    const ParameterSpec& qkv = dense[dense.Find("layers.1.attention.qkv")];
    EXPECT_EQ(Object(kind, qkv.name), DenseObject(kind, qkv));
    ExpectPieces(Object(kind, "layers.1.moe.experts.4.gate_up"),
                 Object(kind, "layers.1.moe.experts.4.down"), 8, 12, 4, 4,
                 DenseObject(kind, dense[dense.Find("layers.1.dense.gate_up")]),
                 DenseObject(kind, dense[dense.Find("layers.1.dense.down")]));
    EXPECT_THAT(Object(kind, "layers.1.moe.router"), Each(0.0f));
  }
}

TEST_F(UpcycleTest, RefusesWhatWouldNotBeTheDenseModel) {
  WriteDense(DenseJob());
  const struct {
    UpcycleMethod method;
    const char* job;
    void (*change)(JobSpec* spec);
    const char* reason;
  } cases[] = {
      {UpcycleMethod::kCopy, kCopies, [](JobSpec* s) { s->mutable_model()->clear_moe(); },
       "no model.moe"},
      {UpcycleMethod::kCopy, kCopies, [](JobSpec* s) { s->mutable_model()->set_hidden(16); },
       "model.hidden is 8 in the dense model, and 16 in the job"},
      {UpcycleMethod::kCopy, kCopies, [](JobSpec* s) { s->mutable_model()->set_rope_base(7); },
       "model.rope_base"},
      {UpcycleMethod::kCopy, kCopies, [](JobSpec* s) { s->mutable_model()->set_qk_norm(true); },
       "model.qk_norm"},
      {UpcycleMethod::kCopy, kCopies, [](JobSpec* s) { s->mutable_model()->set_dense_width(13); },
       "model.dense_width"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) { s->mutable_model()->mutable_moe()->set_expert_width(6); },
       "a copy of the dense layer is 12 wide"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) { s->mutable_model()->mutable_moe()->set_shared_width(12); }, "shared_width"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) {
         s->mutable_recipe()->mutable_router()->mutable_weight()->set_renormalize(false);
       },
       "renormalize must be true"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_weight()->set_scale(2); },
       "weight.scale must be 1"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) { s->mutable_recipe()->mutable_experts()->set_reuse(2); }, "experts.reuse"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) { s->mutable_recipe()->mutable_experts()->set_null_experts(2); },
       "null_experts"},
      {UpcycleMethod::kCopy, kCopies,
       [](JobSpec* s) {
         s->mutable_recipe()->mutable_router()->mutable_select()->mutable_dense_to_sparse();
       },
       "dense_to_sparse"},
      {UpcycleMethod::kSpawn, kCopies,
       [](JobSpec* s) { s->mutable_recipe()->mutable_experts()->mutable_spawn(); },
       "recipe.experts.spawn"},
      {UpcycleMethod::kGranular, kPieces,
       [](JobSpec* s) { s->mutable_model()->mutable_moe()->set_expert_width(5); }, "must divide"},
      {UpcycleMethod::kGranular, kPieces,
       [](JobSpec* s) { s->mutable_model()->mutable_moe()->set_expert_width(24); }, "must divide"},
      {UpcycleMethod::kGranular, kPieces,
       [](JobSpec* s) { s->mutable_model()->mutable_moe()->set_active(2); }, "multiples of that"},
      {UpcycleMethod::kGranular, kPieces,
       [](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_weight()->set_scale(1); },
       "weight.scale must be 3"},
      {UpcycleMethod::kGranular, kPieces,
       [](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_select()->set_top_p(0.5); },
       "top_p"},
      {UpcycleMethod::kGranular, kPieces,
       [](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_select()->set_groups(3); },
       "groups cut through a copy"},
  };
  for (const auto& wrong : cases) {
    Upcycle request = Request(wrong.job, wrong.method);
    wrong.change(&request.spec);
    const absl::Status refused = UpcycleModel(&files_, request).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(refused)) << refused;
    EXPECT_THAT(std::string(refused.message()), HasSubstr(wrong.reason));
  }
  EXPECT_TRUE(absl::IsNotFound(files_.OpenFolder("/moe").status())) << "nothing was written";
}

TEST_F(UpcycleTest, RefusesSourcesThatLackSomething) {
  Upcycle request = Request(kCopies, UpcycleMethod::kCopy);
  EXPECT_TRUE(absl::IsNotFound(UpcycleModel(&files_, request).status()));
  WriteDense(DenseJob(), /*weights_only=*/true);
  request.keep_moments = true;
  EXPECT_THAT(std::string(UpcycleModel(&files_, request).status().message()),
              HasSubstr("no moments"));
  request.keep_moments = false;
  Make(request);
  EXPECT_TRUE(absl::IsAlreadyExists(UpcycleModel(&files_, request).status()));
  request.from = "/moe";
  request.to = "/again";
  EXPECT_THAT(std::string(UpcycleModel(&files_, request).status().message()),
              HasSubstr("no dense model"));
}

TEST_F(UpcycleTest, DamageIsFoundAndLeavesNothing) {
  WriteDense(DenseJob());
  const auto step = OpenCheckpoint(&files_, "/dense");
  const auto manifest = ReadManifest(*step->folder);
  const std::string file = absl::StrCat(step->path, "/", manifest->files(0).name());
  std::string bytes = files_.Read(file);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  files_.Write(file, bytes);
  EXPECT_TRUE(
      absl::IsDataLoss(UpcycleModel(&files_, Request(kCopies, UpcycleMethod::kCopy)).status()));
  EXPECT_TRUE(absl::IsNotFound(files_.OpenFolder("/moe").status()));
}

}  // namespace
}  // namespace moesaic
