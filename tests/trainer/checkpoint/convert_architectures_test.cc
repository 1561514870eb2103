// What each architecture of Hugging Face transformers can say, beside Mixtral.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/job_spec.h"
#include "tests/trainer/checkpoint/converted_folder.h"
#include "trainer/checkpoint/convert/export.h"
#include "trainer/checkpoint/convert/tensor_folder.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

absl::StatusOr<JobSpec> JobOf(const std::string& config) {
  absl::StatusOr<DescribedModel> model = ReadConfig(config, "m");
  if (!model.ok()) return model.status();
  return model->spec;
}

// A change of a config.json, and what is said of it.
struct Change {
  const char* from;
  const char* to;
  const char* reason;
};

void ExpectRefused(const std::string& architecture, std::span<const Change> changes) {
  const std::string config = GoldenFile(architecture, "config.json");
  ASSERT_TRUE(JobOf(config).ok()) << JobOf(config).status();
  for (const Change& change : changes) {
    SCOPED_TRACE(change.to);
    const std::string changed = absl::StrReplaceAll(config, {{change.from, change.to}});
    ASSERT_NE(changed, config);
    const absl::Status status = JobOf(changed).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr(change.reason));
  }
}

JobSpec Changed(const std::string& architecture, const Change& change) {
  return *JobOf(absl::StrReplaceAll(GoldenFile(architecture, "config.json"),
                                    {{change.from, change.to}}));
}

TEST(Qwen3Moe, SaysItsLayers) {
  const auto spec = JobOf(GoldenFile("qwen3_moe", "config.json"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_TRUE(spec->model().qk_norm());
  EXPECT_EQ(spec->model().head_width(), 12u);
  EXPECT_EQ(spec->model().dense_width(), 40u);
  EXPECT_EQ(spec->model().moe().pattern().first(), 1u);
  EXPECT_EQ(spec->model().moe().pattern().every(), 1u);
  EXPECT_TRUE(spec->recipe().router().weight().renormalize());

  const auto every_second = JobOf(absl::StrReplaceAll(
      GoldenFile("qwen3_moe", "config.json"),
      {{"\"mlp_only_layers\": [\n    0\n  ],", ""},
       {"\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 2"},
       {"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 6"}}));
  ASSERT_TRUE(every_second.ok()) << every_second.status();
  EXPECT_EQ(every_second->model().moe().pattern().first(), 1u);
  EXPECT_EQ(every_second->model().moe().pattern().every(), 2u);
  EXPECT_FALSE(Changed("qwen3_moe", {"\"norm_topk_prob\": true", "\"norm_topk_prob\": false", ""})
                   .recipe().router().weight().renormalize());
  const JobSpec older =
      Changed("qwen3_moe", {"\"num_local_experts\": 6", "\"num_experts\": 6", ""});
  EXPECT_EQ(older.model().moe().experts(), 6u);
}

TEST(Qwen3Moe, RefusesWhatHasNoCounterpart) {
  const Change changes[] = {
      {"\"num_local_experts\": 6", "\"num_local_experts\": 6, \"num_experts\": 7", "num_experts is 7"},
      {"\"use_sliding_window\": false", "\"use_sliding_window\": true, \"sliding_window\": 32",
       "sliding_window"},
      {"\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 0", "decoder_sparse_step is 0"},
      {"\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 9", "no layer has experts"},
      {"\"mlp_only_layers\": [\n    0\n  ]", "\"mlp_only_layers\": [\"0\"]", "mlp_only_layers"},
      {"\"mlp_only_layers\": [\n    0\n  ]", "\"mlp_only_layers\": [0, 0, 0, 0, 0]",
       "mlp_only_layers must be a list of at most 3"},
      {"\"num_hidden_layers\": 3,", "\"num_hidden_layers\": 4000000000,", "num_hidden_layers is above"},
      {"\"attention_bias\": false", "\"attention_bias\": true", "attention_bias is true"},
      {"\"rope_type\": \"default\"", "\"rope_type\": \"yarn\"", "rope_type"},
  };
  ExpectRefused("qwen3_moe", changes);
  const Change gaps = {"\"mlp_only_layers\": [\n    0\n  ]", "\"mlp_only_layers\": [1, 2]", ""};
  EXPECT_EQ(Changed("qwen3_moe", gaps).model().moe().pattern().every(), 3u);
  const std::string four = absl::StrReplaceAll(
      GoldenFile("qwen3_moe", "config.json"),
      {{"\"num_hidden_layers\": 3", "\"num_hidden_layers\": 5"},
       {"\"mlp_only_layers\": [\n    0\n  ]", "\"mlp_only_layers\": [1, 4]"}});
  EXPECT_THAT(JobOf(four).status().message(), HasSubstr("layer 3 has experts"));
}

TEST(Dots1, SaysTheGateOfDeepSeekV3) {
  const auto spec = JobOf(GoldenFile("dots1", "config.json"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  const RouterSpec& router = spec->recipe().router();
  EXPECT_EQ(router.score(), SIGMOID);
  EXPECT_EQ(router.select().groups(), 3u);
  EXPECT_EQ(router.select().group_limit(), 2u);
  EXPECT_EQ(router.select().group_score(), TOP_SUM);
  EXPECT_EQ(router.weight().scale(), 2.5);
  EXPECT_TRUE(router.balance().has_bias());
  EXPECT_EQ(spec->model().moe().shared_width(), 16u);
  EXPECT_EQ(spec->model().moe().pattern().first(), 1u);

  const JobSpec unlimited = Changed("dots1", {"\"topk_group\": 2", "\"topk_group\": 3", ""});
  EXPECT_EQ(unlimited.recipe().router().select().groups(), 1u);
}

TEST(Dots1, RefusesWhatHasNoCounterpart) {
  const Change changes[] = {
      {"\"num_experts_per_tok\": 4", "\"num_experts_per_tok\": 6", "best 2 experts"},
      {"\"topk_group\": 2", "\"topk_group\": 4", "topk_group must be"},
      {"\"topk_group\": 2", "\"topk_group\": 0", "topk_group must be"},
      {"\"n_shared_experts\": 2", "\"n_shared_experts\": 0", "n_shared_experts"},
      {"\"n_shared_experts\": 2", "\"n_shared_experts\": 4000000000", "n_shared_experts"},
      {"\"n_shared_experts\": 2,", "", "n_shared_experts must be a whole number"},
      {"\"first_k_dense_replace\": 1", "\"first_k_dense_replace\": 3", "leaves no experts"},
      {"\"sliding_window\": null", "\"sliding_window\": 8, \"moe_layer_freq\": 2",
       "moe_layer_freq is 2"},
      {"\"layer_types\": [", "\"layer_types\": [7, ", "layer_types must be"},
  };
  ExpectRefused("dots1", changes);
  // A window matters where layers have one and it is shorter than a sequence.
  const std::string windowed = absl::StrReplaceAll(
      GoldenFile("dots1", "config.json"), {{"[\n    \"full_attention\"", "[\n    \"sliding_attention\""}});
  EXPECT_TRUE(JobOf(windowed).ok()) << "the window is null";
  const auto with = [&](const char* window) {
    return JobOf(absl::StrReplaceAll(windowed, {{"\"sliding_window\": null,", window}})).status();
  };
  EXPECT_THAT(with("\"sliding_window\": 63,").message(), HasSubstr("sliding_window is shorter"));
  EXPECT_TRUE(with("\"sliding_window\": 64,").ok());
  EXPECT_TRUE(with("").ok()) << "4096 are enough";
}

TEST(Llama, IsADenseModel) {
  const auto spec = JobOf(GoldenFile("llama", "config.json"));
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_FALSE(spec->model().has_moe());
  EXPECT_EQ(spec->model().dense_width(), 48u);
  const Change changes[] = {
      {"\"mlp_bias\": false", "\"mlp_bias\": true", "mlp_bias is true"},
      {"\"rope_type\": \"default\"", "\"rope_type\": \"llama3\"", "rope_type is \"llama3\""},
      {"\"hidden_act\": \"silu\"", "\"hidden_act\": \"gelu\"", "hidden_act"},
  };
  ExpectRefused("llama", changes);
}

TEST(Architectures, AModelThatNoneCanSayIsRefusedWithTheReasonOfEach) {
  JobSpec spec = *JobOf(GoldenFile("qwen3_moe", "config.json"));
  spec.mutable_recipe()->mutable_router()->set_score(SIGMOID);
  const absl::Status refused = ArchitectureOf(spec).status();
  EXPECT_TRUE(absl::IsFailedPrecondition(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("mixtral (recipe.router.score is not softmax)"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("dots1 (model.moe.shared_width is 0"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("llama (model.moe: the model has experts)"));
  const absl::Status as = ArchitectureOf(spec, "qwen3_moe").status();
  EXPECT_EQ(std::string(as.message()),
            "the model has no counterpart in qwen3_moe: recipe.router.score is not softmax");
  EXPECT_TRUE(absl::IsInvalidArgument(ArchitectureOf(spec, "gpt2").status()));
}

// Validation and generation take the best expert in each of its phases.
TEST(Architectures, EvoMoeIsQwen3MoeOfOneExpertAToken) {
  JobSpec spec = *JobOf(GoldenFile("qwen3_moe", "config.json"));
  spec.mutable_model()->mutable_moe()->set_active(1);
  spec.clear_recipe();
  spec.mutable_recipe()->set_preset("evomoe");
  ASSERT_TRUE(ApplyPreset(&spec).empty());
  ApplyDefaults(&spec);
  ASSERT_TRUE(spec.recipe().router().select().has_dense_to_sparse());
  const auto architecture = ArchitectureOf(spec);
  ASSERT_TRUE(architecture.ok()) << architecture.status();
  const auto again = JobOf(WriteConfig(spec, **architecture, ELEMENT_F32));
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ((*architecture)->name, std::string("qwen3_moe"));
  EXPECT_EQ(again->model().moe().active(), 1u);
  EXPECT_FALSE(again->recipe().router().weight().renormalize());
}

TEST(Architectures, Dots1RefusesWhatItLacks) {
  const JobSpec spec = *JobOf(GoldenFile("dots1", "config.json"));
  const JobChange changes[] = {
      {[](JobSpec* s) { s->mutable_model()->set_qk_norm(false); }, "qk_norm"},
      {[](JobSpec* s) { s->mutable_model()->mutable_moe()->set_shared_width(17); }, "no multiple"},
      {[](JobSpec* s) { s->mutable_model()->mutable_moe()->mutable_pattern()->set_every(2); },
       "pattern.every"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_router()->set_score(SOFTMAX); }, "sigmoid"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_balance()->clear_bias(); },
       "balance.bias is absent"},
      {[](JobSpec* s) {
         s->mutable_recipe()->mutable_router()->mutable_select()->set_group_score(BEST);
       },
       "best 2 experts"},
      {[](JobSpec* s) { s->mutable_model()->mutable_moe()->set_active(6); }, "best 2 experts"},
  };
  ExpectNoCounterpart(spec, "dots1", changes);
}

class FolderRoundTrip : public ::testing::TestWithParam<const char*> {
 protected:
  FolderRoundTrip() {
    files_.MakeFolders("/hf").IgnoreError();
    WriteGoldenFolder(&files_, GetParam(), "/hf");
  }

  MemoryFileSystem files_;
};

TEST_P(FolderRoundTrip, AnExportIsImportedWithTheSameBits) {
  const absl::Status imported = Import(&files_, "/hf", "/one");
  ASSERT_TRUE(imported.ok()) << imported;
  FolderExport request;
  request.from = "/one";
  request.to = "/exported";
  request.element = ELEMENT_F32;
  const auto exported = ExportFolder(&files_, request);
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_EQ(exported->architecture, GetParam());
  const absl::Status again = Import(&files_, "/exported", "/two");
  ASSERT_TRUE(again.ok()) << again;
  EXPECT_EQ(Checksums(&files_, "/one"), Checksums(&files_, "/two"));
  EXPECT_THAT(DescribeChanges(NewestManifest(&files_, "/one").spec(),
                              NewestManifest(&files_, "/two").spec(), IDENTITY),
              IsEmpty());
}

// The tensors of a folder by name, without the header: to leave one out, or to give one another name.
TEST_P(FolderRoundTrip, TensorsThatAreMissingOrLeftOverAreNamed) {
  const std::string good = files_.Read("/hf/model.safetensors");
  const std::string layer = "model.layers.1.";
  for (const std::string& name : {layer + "self_attn.q_proj.weight", layer + "input_layernorm.weight",
                                  std::string("model.embed_tokens.weight")}) {
    std::string other = name;
    other[0] = 'n';
    files_.Write("/hf/model.safetensors", absl::StrReplaceAll(good, {{name, other}}));
    const absl::Status status = Import(&files_, "/hf", "/never");
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr(absl::StrCat("tensor ", name)));
  }
  const std::string config = files_.Read("/hf/config.json");
  files_.Write("/hf/model.safetensors", good);
  const Change sizes[] = {{"\"vocab_size\": 64", "\"vocab_size\": 65", "parameter embedding has shape [65, 32]"},
                          {"\"num_key_value_heads\": 2", "\"num_key_value_heads\": 4", "attention.qkv has shape"},
                          {"\"num_hidden_layers\": ", "\"num_hidden_layers\": 1", "missing"}};
  for (const Change& size : sizes) {
    std::string changed = absl::StrReplaceAll(config, {{size.from, size.to}});
    const size_t types = changed.find("\"layer_types\"");
    if (types != std::string::npos) changed.erase(types, changed.find(']', types) - types + 2);
    files_.Write("/hf/config.json", changed);
    const absl::Status status = Import(&files_, "/hf", "/never");
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr(size.reason));
  }
}

TEST_P(FolderRoundTrip, AnyRangeOfAParameterIsRead) {
  const auto tensors = TensorFolder::Open(**files_.OpenFolder("/hf"), "m");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  for (const ParameterSpec& parameter : (*tensors)->catalog().parameters()) {
    const auto elements = static_cast<size_t>(parameter.elements());
    std::vector<float> whole(elements);
    ASSERT_TRUE((*tensors)->Read(MASTER, parameter, 0, whole).ok());
    std::vector<float> part(elements - elements / 3);
    ASSERT_TRUE((*tensors)->Read(MASTER, parameter, elements / 3, part).ok());
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin() + elements / 3)) << parameter.name;
    EXPECT_TRUE(absl::IsOutOfRange((*tensors)->Read(MASTER, parameter, elements, part)));
    EXPECT_TRUE(absl::IsNotFound((*tensors)->Read(ADAM_M, parameter, 0, part)));
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, FolderRoundTrip,
                         ::testing::Values("mixtral", "qwen3_moe", "dots1", "llama"),
                         [](const auto& c) { return c.param; });

}  // namespace
}  // namespace moesaic
