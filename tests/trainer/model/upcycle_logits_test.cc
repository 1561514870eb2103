// A model with experts that is made of a dense one computes what that one did, where its method
// promises it. The dense one is the golden Llama (tests/peers), read from its Hugging Face folder.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/architecture_golden.h"
#include "tests/trainer/model/golden.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/checkpoint/convert/parameter_reader.h"
#include "trainer/checkpoint/convert/upcycle.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/model/decode.h"

namespace moesaic {
namespace {

constexpr double kTolerance = 1e-5;

struct Case {
  const char* name;
  UpcycleMethod method;
  const char* job;
  double mask = 0;
};

constexpr char kWhole[] = " weight { renormalize: true scale: 1 } ";
constexpr char kHalves[] = " weight { renormalize: true scale: 2 } ";
constexpr char kQuarters[] = " weight { renormalize: true scale: 4 } ";

// The golden Llama's sizes, with experts.
JobSpec JobOf(const Case& c, const char* weight) {
  return SmallJob(absl::StrCat(
      "model { layers: 2 hidden: 32 heads: 4 kv_heads: 2 sequence: 16 vocabulary: 64 "
      "rope_base: 10000 norm_epsilon: 1e-5 dense_width: 48 } recipe { router { ",
      weight, " } } ", c.job));
}

std::vector<at::Tensor> Load(const std::string& path, const ParameterCatalog& catalog) {
  const auto step = OpenCheckpoint(&FileSystem::System(), path);
  const auto manifest = ReadManifest(*step->folder);
  CheckpointParameters reader(step->folder.get(), &*manifest);
  std::vector<at::Tensor> weights;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    weights.push_back(at::empty(parameter.shape, at::kFloat));
    const absl::Status read =
        reader.Read(MASTER, parameter, 0, {weights.back().mutable_data_ptr<float>(),
                                           static_cast<size_t>(parameter.elements())});
    EXPECT_TRUE(read.ok()) << read;
  }
  return weights;
}

// [sequences, length, vocabulary]
at::Tensor LogitsOf(const JobSpec& spec, const std::vector<at::Tensor>& weights,
                    const at::Tensor& tokens) {
  const SingleRankModel model(spec);
  FixedWeights source(model.catalog(), weights);
  Decoder decoder(model.transformer(), source, tokens.size(0), tokens.size(1), at::kFloat);
  std::vector<at::Tensor> logits;
  for (int64_t t = 0; t < tokens.size(1); ++t) logits.push_back(decoder.Append(tokens.narrow(1, t, 1)));
  return at::stack(logits, 1);
}

at::Tensor UpcycledLogits(const Case& c, const char* weight, const at::Tensor& tokens) {
  const std::string to = absl::StrCat(::testing::TempDir(), "/upcycle_", c.name, "_", getpid());
  Upcycle request;
  request.from = "tests/peers/golden/llama";
  request.to = to;
  request.spec = JobOf(c, weight);
  request.method = c.method;
  request.mask = c.mask;
  const auto made = UpcycleModel(&FileSystem::System(), request);
  EXPECT_TRUE(made.ok()) << made.status();
  const at::Tensor logits =
      LogitsOf(request.spec, Load(to, CatalogOf(request.spec)), tokens);
  std::filesystem::remove_all(to);
  return logits;
}

const char* WeightOf(const Case& c) {
  if (c.method != UpcycleMethod::kGranular) return kWhole;
  return std::string(c.name).find("Quarters") != std::string::npos ? kQuarters : kHalves;
}

class UpcycleLogits : public ::testing::TestWithParam<Case> {};

TEST_P(UpcycleLogits, AreThoseOfTheDenseModel) {
  const auto golden = ReadGolden("llama/golden.safetensors");
  const JobSpec dense = GoldenJob("llama");
  const at::Tensor tokens = golden.at("tokens");
  const at::Tensor expected = LogitsOf(
      dense, FromHuggingFace("llama", CatalogOf(dense), ReadGolden("llama/model.safetensors"), ""),
      tokens);
  const at::Tensor logits = UpcycledLogits(GetParam(), WeightOf(GetParam()), tokens);
  EXPECT_LT(RelativeError(logits, expected), kTolerance);
  EXPECT_LT(RelativeError(logits, golden.at("logits")), 1e-4);
}

INSTANTIATE_TEST_SUITE_P(
    Methods, UpcycleLogits,
    ::testing::Values(
        Case{"Copy", UpcycleMethod::kCopy,
             "model { moe { experts: 4 active: 2 expert_width: 48 pattern { every: 1 first: 0 } } }"},
        Case{"CopyOfEverySecondLayer", UpcycleMethod::kCopy,
             "model { moe { experts: 3 active: 1 expert_width: 48 pattern { every: 2 first: 1 } } }"},
        Case{"CopyWithTheGateOfDeepSeekV3", UpcycleMethod::kCopy,
             "model { moe { experts: 6 active: 4 expert_width: 48 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'deepseek_v3' router { select { groups: 3 group_limit: 2 } } }"},
        Case{"CopyWithARecurrentRouter", UpcycleMethod::kCopy,
             "model { moe { experts: 4 active: 2 expert_width: 48 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'rmoe' router { state { width: 6 } } }"},
        Case{"GranularHalves", UpcycleMethod::kGranular,
             "model { moe { experts: 8 active: 4 expert_width: 24 pattern { every: 1 first: 0 } } }"},
        Case{"GranularQuarters", UpcycleMethod::kGranular,
             "model { moe { experts: 16 active: 4 expert_width: 12 pattern { every: 1 first: 0 } } }"},
        Case{"GranularQuartersOfOneCopy", UpcycleMethod::kGranular,
             "model { moe { experts: 4 active: 4 expert_width: 12 pattern { every: 2 first: 0 } } }"},
        Case{"GranularHalvesBySigmoid", UpcycleMethod::kGranular,
             "model { moe { experts: 12 active: 4 expert_width: 24 pattern { every: 1 first: 0 } } } "
             "recipe { preset: 'deepseek_v3' router { select { groups: 3 group_limit: 2 } } }"},
        Case{"SpawnWithoutAMask", UpcycleMethod::kSpawn,
             "model { moe { experts: 4 active: 2 expert_width: 48 pattern { every: 1 first: 0 } } }"}),
    [](const auto& c) { return c.param.name; });

TEST(UpcycleLogits, AMaskMakesAnotherModel) {
  const auto golden = ReadGolden("llama/golden.safetensors");
  const at::Tensor logits = UpcycledLogits(
      {"SpawnMasked", UpcycleMethod::kSpawn,
       "model { moe { experts: 4 active: 2 expert_width: 48 pattern { every: 1 first: 0 } } }", 0.3},
      kWhole, golden.at("tokens"));
  EXPECT_GT(RelativeError(logits, golden.at("logits")), 1e-2);
}

}  // namespace
}  // namespace moesaic
