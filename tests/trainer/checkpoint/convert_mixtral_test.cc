#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "proto/job_spec.h"
#include "tests/base/scratch_folder.h"
#include "tests/trainer/checkpoint/converted_folder.h"
#include "trainer/checkpoint/convert/export.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/safetensors.h"
#include "trainer/checkpoint/restore.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;

constexpr char kConfig[] = R"({
  "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_act": "silu",
  "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
  "intermediate_size": 6, "num_local_experts": 3, "num_experts_per_tok": 2, "vocab_size": 16,
  "max_position_embeddings": 32, "rope_theta": 50000.0, "rms_norm_eps": 1e-06,
  "sliding_window": null, "tie_word_embeddings": false, "router_aux_loss_coef": 0.02,
  "torch_dtype": "bfloat16"})";

struct HfTensor {
  std::vector<uint64_t> shape;
  std::vector<float> values;
};

// The tensors of a Mixtral folder with values that every dtype holds exactly.
std::map<std::string, HfTensor> MixtralTensors() {
  std::map<std::string, HfTensor> tensors;
  int count = 0;
  const auto add = [&](const std::string& name, std::vector<uint64_t> shape) {
    HfTensor& tensor = tensors[name + ".weight"];
    tensor.values.resize(*CheckedElements(shape));
    ++count;
    for (size_t i = 0; i < tensor.values.size(); ++i) {
      tensor.values[i] = (i % 2 == 0 ? 1.0f : -1.0f) * static_cast<float>((i * 7 + count) % 128) / 64;
    }
    tensor.shape = std::move(shape);
  };
  add("model.embed_tokens", {16, 8});
  add("model.norm", {8});
  add("lm_head", {16, 8});
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = absl::StrCat("model.layers.", layer, ".");
    add(at + "input_layernorm", {8});
    add(at + "post_attention_layernorm", {8});
    add(at + "self_attn.q_proj", {8, 8});
    add(at + "self_attn.k_proj", {4, 8});
    add(at + "self_attn.v_proj", {4, 8});
    add(at + "self_attn.o_proj", {8, 8});
    add(at + "block_sparse_moe.gate", {3, 8});
    for (int expert = 0; expert < 3; ++expert) {
      const std::string e = absl::StrCat(at, "block_sparse_moe.experts.", expert, ".");
      add(e + "w1", {6, 8});
      add(e + "w2", {8, 6});
      add(e + "w3", {6, 8});
    }
  }
  return tensors;
}

// To half precision, for values that it holds exactly.
uint16_t ToHalf(float value) {
  if (value == 0) return std::signbit(value) ? 0x8000 : 0;
  int exponent = 0;
  const float fraction = std::frexp(std::fabs(value), &exponent);
  const auto mantissa = static_cast<uint16_t>(std::lround((fraction * 2 - 1) * 1024));
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 14) << 10 | mantissa);
}

std::string Encode(const std::vector<float>& values, ElementKind element) {
  std::string bytes;
  for (float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (element == ELEMENT_F32) {
      bytes.append(reinterpret_cast<const char*>(&bits), 4);
    } else {
      const uint16_t half = element == ELEMENT_F16 ? ToHalf(value) : static_cast<uint16_t>(bits >> 16);
      bytes.append(reinterpret_cast<const char*>(&half), 2);
    }
  }
  return bytes;
}

std::string SafetensorsFile(const std::map<std::string, HfTensor>& tensors, ElementKind element) {
  std::vector<SafetensorsTensor> layout;
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    layout.emplace_back().name = name;
    layout.back().element = element;
    layout.back().shape = tensor.shape;
    data += Encode(tensor.values, element);
  }
  return *LayOutSafetensors(&layout, {{"format", "pt"}}) + data;
}

class ImportTest : public ::testing::Test {
 protected:
  ImportTest() {
    files_.MakeFolders("/hf").IgnoreError();
    files_.Write("/hf/config.json", kConfig);
  }

  void WriteOne(ElementKind element) {
    files_.Write("/hf/model.safetensors", SafetensorsFile(tensors_, element));
  }

  absl::Status Import() { return moesaic::Import(&files_, "/hf", "/out"); }

  // The whole master of a parameter of the import.
  std::vector<float> Load(const std::string& name) {
    const auto step = OpenCheckpoint(&files_, "/out");
    const auto manifest = ReadManifest(*step->folder);
    for (const StoredObject& object : manifest->objects()) {
      if (object.name() != name) continue;
      std::vector<float> values(*CheckedElements(AsShape(object.shape())));
      RestoreTarget target = {MASTER, name, WholeBox(AsShape(object.shape())), values};
      EXPECT_TRUE(RestoreObjects(*step->folder, *manifest, {&target, 1}, 1).ok());
      return values;
    }
    ADD_FAILURE() << name;
    return {};
  }

  std::vector<float> Joined(const std::vector<std::string>& names) {
    std::vector<float> values;
    for (const std::string& name : names) {
      const std::vector<float>& part = tensors_.at(name + ".weight").values;
      values.insert(values.end(), part.begin(), part.end());
    }
    return values;
  }

  void ExpectImported() {
    const std::string at = "model.layers.1.";
    const std::string expert = at + "block_sparse_moe.experts.2.";
    EXPECT_EQ(Load("embedding"), Joined({"model.embed_tokens"}));
    EXPECT_EQ(Load("head"), Joined({"lm_head"}));
    EXPECT_EQ(Load("norm"), Joined({"model.norm"}));
    EXPECT_EQ(Load("layers.1.attention_norm"), Joined({at + "input_layernorm"}));
    EXPECT_EQ(Load("layers.1.feed_forward_norm"), Joined({at + "post_attention_layernorm"}));
    EXPECT_EQ(Load("layers.1.attention.qkv"),
              Joined({at + "self_attn.q_proj", at + "self_attn.k_proj", at + "self_attn.v_proj"}));
    EXPECT_EQ(Load("layers.1.attention.output"), Joined({at + "self_attn.o_proj"}));
    EXPECT_EQ(Load("layers.1.moe.router"), Joined({at + "block_sparse_moe.gate"}));
    EXPECT_EQ(Load("layers.1.moe.experts.2.gate_up"), Joined({expert + "w1", expert + "w3"}));
    EXPECT_EQ(Load("layers.1.moe.experts.2.down"), Joined({expert + "w2"}));
  }

  MemoryFileSystem files_;
  std::map<std::string, HfTensor> tensors_ = MixtralTensors();
};

TEST_F(ImportTest, EveryDtypeGivesTheSameMasters) {
  for (ElementKind element : {ELEMENT_F32, ELEMENT_BF16, ELEMENT_F16}) {
    const auto config = files_.Read("/hf/config.json");
    files_ = MemoryFileSystem();
    files_.MakeFolders("/hf").IgnoreError();
    files_.Write("/hf/config.json", config);
    WriteOne(element);
    const absl::Status imported = Import();
    ASSERT_TRUE(imported.ok()) << imported;
    ExpectImported();
    const auto step = OpenCheckpoint(&files_, "/out");
    EXPECT_THAT(VerifyStep(*step->folder, VerifyDepth::kContent).problems, testing::IsEmpty());
    const auto manifest = ReadManifest(*step->folder);
    EXPECT_TRUE(manifest->weights_only());
    EXPECT_TRUE(CheckInitFrom(*manifest, *ParameterCatalog::Build(manifest->spec())).ok());
  }
}

TEST_F(ImportTest, ReadsAnIndexedFolder) {
  std::map<std::string, HfTensor> halves[2];
  std::string map;
  int i = 0;
  for (const auto& [name, tensor] : tensors_) {
    halves[i % 2].insert({name, tensor});
    absl::StrAppend(&map, map.empty() ? "" : ",", "\"", name, "\":\"part-", i % 2, ".safetensors\"");
    ++i;
  }
  for (int half = 0; half < 2; ++half) {
    files_.Write(absl::StrCat("/hf/part-", half, ".safetensors"),
                 SafetensorsFile(halves[half], ELEMENT_BF16));
  }
  const std::string index = "{\"metadata\":{},\"weight_map\":{" + map + "}}";
  files_.Write("/hf/model.safetensors.index.json", index);
  const absl::Status imported = Import();
  ASSERT_TRUE(imported.ok()) << imported;
  ExpectImported();

  files_.Write("/hf/model.safetensors.index.json",
               absl::StrReplaceAll(index, {{"part-1", "../part-1"}}));
  EXPECT_THAT(Import().message(), HasSubstr("not a plain file name"));
}

TEST_F(ImportTest, ReadsAFolderThatTransformersWrote) {
  WriteGoldenFolder(&files_, "mixtral", "/hf");
  const absl::Status imported = Import();
  ASSERT_TRUE(imported.ok()) << imported;
  const auto step = OpenCheckpoint(&files_, "/out");
  const auto manifest = ReadManifest(*step->folder);
  ASSERT_TRUE(manifest.ok());
  EXPECT_EQ(manifest->spec().model().vocabulary(), 64u);
  EXPECT_EQ(manifest->spec().model().rope_base(), 10000.0);
  EXPECT_EQ(Load("layers.0.moe.experts.3.gate_up").size(), 2u * 48 * 32);
}

TEST_F(ImportTest, DerivesTheJob) {
  const auto read = ReadConfig(kConfig, "m");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->architecture, &kMixtral);
  const JobSpec* spec = &read->spec;
  EXPECT_EQ(spec->model().kv_heads(), 2u);
  EXPECT_EQ(spec->model().head_width(), 2u);
  EXPECT_EQ(spec->model().rope_base(), 50000.0);
  EXPECT_EQ(spec->model().norm_epsilon(), 1e-6);
  EXPECT_EQ(spec->model().moe().expert_width(), 6u);
  EXPECT_TRUE(spec->recipe().router().weight().renormalize());
  EXPECT_EQ(spec->recipe().router().balance().coefficient(), 0.02);
  const auto newer = ReadConfig(
      absl::StrReplaceAll(kConfig, {{"\"rope_theta\": 50000.0",
                                     "\"rope_parameters\": {\"rope_theta\": 7.0, "
                                     "\"rope_type\": \"default\"}"}}),
      "m");
  ASSERT_TRUE(newer.ok()) << newer.status();
  EXPECT_EQ(newer->spec.model().rope_base(), 7.0);
}

TEST_F(ImportTest, RefusesWhatHasNoCounterpart) {
  const struct {
    const char* from;
    const char* to;
    const char* reason;
  } cases[] = {
      {"\"mixtral\"", "\"gpt2\"", "model_type is \"gpt2\"; what has a counterpart here: mixtral"},
      {"\"mixtral\"", "7", "model_type is 7"},
      {"\"model_type\": \"mixtral\",", "", "model_type is missing"},
      {"\"silu\"", "\"gelu\"", "hidden_act is \"gelu\""},
      {"\"sliding_window\": null", "\"sliding_window\": 16", "sliding_window is shorter"},
      {"\"hidden_size\": 8", "\"hidden_size\": -8", "hidden_size must be a whole number"},
      {"\"vocab_size\": 16,", "", "vocab_size must be a whole number"},
      {"\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 4", "model.moe.active"},
      {"\"rope_theta\": 50000.0", "\"rope_scaling\": {\"type\": \"yarn\"}", "rope_scaling"},
      {"\"vocab_size\": 16", "\"vocab_size\": 17", "make [16, 8]"},
      {"\"num_local_experts\": 3", "\"num_local_experts\": 4", "layers.0.moe.router has shape [4, 8]"},
      {"\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1", "has no counterpart here"},
      {"\"tie_word_embeddings\": false", "\"tie_word_embeddings\": 1", "must be true or false"},
  };
  WriteOne(ELEMENT_BF16);
  for (const auto& wrong : cases) {
    files_.Write("/hf/config.json", absl::StrReplaceAll(kConfig, {{wrong.from, wrong.to}}));
    const absl::Status status = Import();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_THAT(status.message(), HasSubstr(wrong.reason));
  }
  files_.Write("/hf/config.json", "[1]");
  EXPECT_TRUE(absl::IsDataLoss(Import()));
  files_.Remove("/hf/config.json");
  EXPECT_TRUE(absl::IsNotFound(Import()));
}

TEST_F(ImportTest, ATiedHeadIsNotStoredTwice) {
  files_.Write("/hf/config.json",
               absl::StrReplaceAll(kConfig, {{"\"tie_word_embeddings\": false",
                                              "\"tie_word_embeddings\": true"}}));
  WriteOne(ELEMENT_BF16);
  const absl::Status imported = Import();
  ASSERT_TRUE(imported.ok()) << imported;
  const auto step = OpenCheckpoint(&files_, "/out");
  const auto manifest = ReadManifest(*step->folder);
  for (const StoredObject& object : manifest->objects()) {
    EXPECT_NE(object.name(), "head");
  }
  EXPECT_TRUE(absl::IsAlreadyExists(Import()));
}

TEST_F(ImportTest, ProgressGoesUpToTheTotal) {
  WriteOne(ELEMENT_BF16);
  std::vector<int64_t> seen;
  int64_t last_total = 0;
  const auto progress = [&](int64_t done, int64_t total) {
    seen.push_back(done);
    last_total = total;
  };
  ASSERT_TRUE(ImportFolder(&files_, {"/hf", "/out", "", "test", {}, progress}).ok());
  EXPECT_TRUE(std::ranges::is_sorted(seen));
  EXPECT_EQ(seen.back(), last_total);
}

TEST_F(ImportTest, DamageLeavesNothingBehind) {
  WriteOne(ELEMENT_BF16);
  const std::string good = files_.Read("/hf/model.safetensors");
  files_.Write("/hf/model.safetensors", good.substr(0, good.size() - 1));
  const absl::Status status = Import();
  EXPECT_TRUE(absl::IsDataLoss(status)) << status;
  EXPECT_THAT(status.message(), HasSubstr("/hf/model.safetensors"));
}

// On the machine's own file system: a file of the model that is something else is refused at once.
TEST_F(ImportTest, FilesThatLeadElsewhereAreNotRead) {
  namespace fs = std::filesystem;
  WriteOne(ELEMENT_BF16);
  const ScratchFolder scratch;
  const std::string& dir = scratch.path();
  const auto import = [&] {
    fs::remove_all(dir + "/out");
    return moesaic::Import(&FileSystem::System(), dir + "/hf", dir + "/out");
  };
  fs::create_directory(dir + "/hf");
  for (const std::string name : {"config.json", "model.safetensors"}) {
    std::ofstream(dir + "/hf/" + name, std::ios::binary) << files_.Read("/hf/" + name);
  }
  ASSERT_TRUE(import().ok()) << import();
  for (const std::string name : {"config.json", "model.safetensors"}) {
    const std::string path = dir + "/hf/" + name;
    fs::rename(path, dir + "/outside");
    fs::create_symlink(dir + "/outside", path);
    EXPECT_FALSE(import().ok()) << name;
    fs::remove(path);
    ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
    EXPECT_FALSE(import().ok()) << name;
    fs::remove(path);
    fs::rename(dir + "/outside", path);
  }
  ASSERT_TRUE(import().ok());
}

class ExportTest : public ImportTest {
 protected:
  ExportTest() {
    WriteOne(ELEMENT_F32);
    EXPECT_TRUE(Import().ok());
  }

  absl::StatusOr<ExportedModel> Export(ElementKind element, uint64_t max_file_bytes = 1 << 30) {
    FolderExport request;
    request.from = "/out";
    request.to = "/exported";
    request.element = element;
    request.max_file_bytes = max_file_bytes;
    return ExportFolder(&files_, request);
  }

  absl::Status ImportAgain() { return moesaic::Import(&files_, "/exported", "/again"); }
};

TEST_F(ExportTest, ImportOfAnExportHasTheSameBits) {
  const auto exported = Export(ELEMENT_F32);
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_THAT(files_.List("/exported"), testing::ElementsAre("config.json", "model.safetensors"));
  const absl::Status imported = ImportAgain();
  ASSERT_TRUE(imported.ok()) << imported;
  EXPECT_EQ(Checksums(&files_, "/again"), Checksums(&files_, "/out"));
}

TEST_F(ExportTest, LargeModelsAreCutIntoFilesWithAnIndex) {
  const auto exported = Export(ELEMENT_F32, 1000);
  ASSERT_TRUE(exported.ok()) << exported.status();
  EXPECT_GT(exported->files, 3);
  const std::vector<std::string> names = files_.List("/exported");
  EXPECT_THAT(names, testing::Contains("model.safetensors.index.json"));
  EXPECT_THAT(names, testing::Contains(absl::StrCat("model-00001-of-0000", exported->files,
                                                    ".safetensors")));
  const absl::Status imported = ImportAgain();
  ASSERT_TRUE(imported.ok()) << imported;
  EXPECT_EQ(Checksums(&files_, "/again"), Checksums(&files_, "/out"));
}

TEST_F(ExportTest, Bf16RoundsToNearestEven) {
  // 1 + 2^-8 lies half way between two bf16 values; the even one is 1.
  HfTensor& norm = tensors_.at("model.norm.weight");
  norm.values = {1.0f,       0x1.01p0f,       0x1.03p0f, 0x1.010002p0f,
                 -0x1.01p0f, 0x1.fffffep127f, -0.0f,     2.0f};
  WriteOne(ELEMENT_F32);
  files_.Remove("/out");
  ASSERT_TRUE(Import().ok());
  ASSERT_TRUE(Export(ELEMENT_BF16).ok());
  const absl::Status imported = ImportAgain();
  ASSERT_TRUE(imported.ok()) << imported;
  const auto step = OpenCheckpoint(&files_, "/again");
  std::vector<float> values(8);
  const RestoreTarget target = {MASTER, "norm", WholeBox(std::vector<uint64_t>{8}), values};
  ASSERT_TRUE(RestoreObjects(*step->folder, *ReadManifest(*step->folder), {&target, 1}, 1).ok());
  EXPECT_THAT(values, testing::ElementsAre(1.0f, 1.0f, 0x1.04p0f, 0x1.02p0f, -1.0f, INFINITY,
                                           -0.0f, 2.0f));
}

TEST_F(ExportTest, DamageAndWhatMixtralLacksAreRefusedAndLeaveNothing) {
  const auto step = OpenCheckpoint(&files_, "/out");
  const auto manifest = ReadManifest(*step->folder);
  const std::string file = absl::StrCat(step->path, "/", manifest->files(0).name());
  const std::string good = files_.Read(file);
  std::string bad = good;
  bad.back() = static_cast<char>(bad.back() ^ 1);
  files_.Write(file, bad);
  EXPECT_TRUE(absl::IsDataLoss(Export(ELEMENT_BF16).status()));
  EXPECT_THAT(files_.List("/exported"), testing::IsEmpty());
  files_.Write(file, good);

  // The disk is full at each call in turn.
  for (int call = 0;; ++call) {
    files_.FailAt(files_.calls() + call, absl::ResourceExhaustedError("no space left on device"));
    const auto exported = Export(ELEMENT_BF16, 2000);
    const bool reached = files_.Reached();
    files_.FailAt(-1, absl::OkStatus());
    EXPECT_EQ(exported.ok(), !reached) << call;
    if (!reached) break;
    EXPECT_THAT(files_.List("/exported"), testing::IsEmpty()) << call;
  }

  const JobChange changes[] = {
      {[](JobSpec* s) { s->mutable_model()->clear_moe(); }, "model.moe is absent"},
      {[](JobSpec* s) { s->mutable_model()->mutable_moe()->mutable_pattern()->set_every(2); },
       "model.moe.pattern"},
      {[](JobSpec* s) { s->mutable_model()->mutable_moe()->set_shared_width(4); }, "shared_width"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_router()->set_score(SIGMOID); }, "score"},
      {[](JobSpec* s) {
         s->mutable_recipe()->mutable_router()->mutable_weight()->set_renormalize(false);
       },
       "renormalize"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_weight()->set_scale(2); },
       "scale"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_experts()->set_reuse(2); }, "reuse"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_experts()->set_null_experts(1); },
       "null_experts"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_select()->set_top_p(0.5); },
       "top_p"},
      {[](JobSpec* s) { s->mutable_model()->set_qk_norm(true); }, "qk_norm"},
      {[](JobSpec* s) { s->mutable_recipe()->mutable_router()->mutable_state()->set_width(4); },
       "router.state"},
      {[](JobSpec* s) {
         s->mutable_recipe()->mutable_router()->mutable_balance()->mutable_bias()->set_speed(1);
       },
       "balance.bias"},
      {[](JobSpec* s) {
         s->mutable_recipe()->mutable_router()->mutable_select()->set_groups(2);
         s->mutable_recipe()->mutable_router()->mutable_select()->set_group_limit(1);
       },
       "group_limit"},
  };
  ExpectNoCounterpart(manifest->spec(), "mixtral", changes);
}

TEST_F(ExportTest, TheConfigSaysTheModel) {
  const auto step = OpenCheckpoint(&files_, "/out");
  const JobSpec spec = ReadManifest(*step->folder)->spec();
  const auto again = ReadConfig(WriteConfig(spec, kMixtral, ELEMENT_F32), spec.name());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_THAT(DescribeChanges(spec, again->spec, IDENTITY), testing::IsEmpty());
}

}  // namespace
}  // namespace moesaic
