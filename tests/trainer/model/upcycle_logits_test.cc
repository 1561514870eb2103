// A model with experts that is made of a dense one computes what that one did, where its method
// promises it. The dense one is the golden Llama (tests/peers), read from its Hugging Face folder.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/base/scratch_folder.h"
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
  std::string job;
  double mask = 0;
};

std::string Experts(int experts, int active, int width, const char* pattern = "every: 1 first: 0") {
  return absl::StrCat("model { moe { experts: ", experts, " active: ", active,
                      " expert_width: ", width, " pattern { ", pattern, " } } } ");
}

constexpr char kDeepSeekV3[] =
    "recipe { preset: 'deepseek_v3' router { select { groups: 3 group_limit: 2 } } }";
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
  for (int64_t t = 0; t < tokens.size(1); ++t) {
    logits.push_back(decoder.Append(tokens.narrow(1, t, 1)));
  }
  return at::stack(logits, 1);
}

at::Tensor UpcycledLogits(const Case& c, const char* weight, const at::Tensor& tokens) {
  const ScratchFolder folder;
  const std::string to = folder / "upcycled";
  Upcycle request;
  request.from = "tests/peers/golden/llama";
  request.to = to;
  request.spec = JobOf(c, weight);
  request.method = c.method;
  request.mask = c.mask;
  const auto made = UpcycleModel(&FileSystem::System(), request);
  EXPECT_TRUE(made.ok()) << made.status();
  return LogitsOf(request.spec, Load(to, CatalogOf(request.spec)), tokens);
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
        Case{"Copy", UpcycleMethod::kCopy, Experts(4, 2, 48)},
        Case{"CopyOfEverySecondLayer", UpcycleMethod::kCopy,
             Experts(3, 1, 48, "every: 2 first: 1")},
        Case{"CopyWithTheGateOfDeepSeekV3", UpcycleMethod::kCopy, Experts(6, 4, 48) + kDeepSeekV3},
        Case{"CopyWithARecurrentRouter", UpcycleMethod::kCopy,
             Experts(4, 2, 48) + "recipe { preset: 'rmoe' router { state { width: 6 } } }"},
        Case{"GranularHalves", UpcycleMethod::kGranular, Experts(8, 4, 24)},
        Case{"GranularQuarters", UpcycleMethod::kGranular, Experts(16, 4, 12)},
        Case{"GranularQuartersOfOneCopy", UpcycleMethod::kGranular,
             Experts(4, 4, 12, "every: 2 first: 0")},
        Case{"GranularHalvesBySigmoid", UpcycleMethod::kGranular, Experts(12, 4, 24) + kDeepSeekV3},
        Case{"SpawnWithoutAMask", UpcycleMethod::kSpawn, Experts(4, 2, 48)}),
    [](const auto& c) { return c.param.name; });

TEST(UpcycleLogits, AMaskMakesAnotherModel) {
  const auto golden = ReadGolden("llama/golden.safetensors");
  const at::Tensor logits = UpcycledLogits(
      {"SpawnMasked", UpcycleMethod::kSpawn, Experts(4, 2, 48), 0.3}, kWhole, golden.at("tokens"));
  EXPECT_GT(RelativeError(logits, golden.at("logits")), 1e-2);
}

}  // namespace
}  // namespace moesaic
