#include "trainer/checkpoint/format/import_mixtral.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job_spec.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/mixtral_names.h"
#include "trainer/checkpoint/format/safetensors.h"
#include "trainer/checkpoint/format/shard_files.h"

namespace moesaic {
namespace {

using Json = nlohmann::json;

constexpr char kConfigName[] = "config.json";
constexpr char kSingleName[] = "model.safetensors";
constexpr char kIndexName[] = "model.safetensors.index.json";
constexpr uint64_t kMaxConfigBytes = 1 << 20;
constexpr uint64_t kMaxIndexBytes = 64 << 20;
constexpr int kMaxDepth = 16;
constexpr uint64_t kChunkElements = 1 << 20;

// An object, not nested too deeply.
absl::StatusOr<Json> ParseJson(absl::string_view text, absl::string_view name) {
  bool too_deep = false;
  Json json = Json::parse(
      text.begin(), text.end(),
      [&](int depth, Json::parse_event_t, Json&) {
        too_deep |= depth > kMaxDepth;
        return depth <= kMaxDepth;
      },
      /*allow_exceptions=*/false);
  if (too_deep || json.is_discarded() || !json.is_object()) {
    return absl::DataLossError(absl::StrCat(name, " is not a JSON object"));
  }
  return json;
}

// Reads the values of a config.json and keeps the first complaint.
class ConfigReader {
 public:
  explicit ConfigReader(const Json& config) : config_(config) {}

  uint32_t Count(const char* key, std::optional<uint32_t> absent = std::nullopt) {
    const Json* value = Find(key);
    if (value == nullptr && absent) return *absent;
    if (value == nullptr || !value->is_number_unsigned() ||
        value->get<uint64_t>() > UINT32_MAX) {
      Complain(absl::StrCat(key, " must be a whole number"));
      return 0;
    }
    return value->get<uint32_t>();
  }

  double Number(const char* key, double absent) {
    const Json* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_number()) {
      Complain(absl::StrCat(key, " must be a number"));
      return absent;
    }
    return value->get<double>();
  }

  bool Flag(const char* key, bool absent) {
    const Json* value = Find(key);
    if (value == nullptr) return absent;
    if (!value->is_boolean()) Complain(absl::StrCat(key, " must be true or false"));
    return value->is_boolean() && value->get<bool>();
  }

  // The value must be absent, null or `only`.
  void Require(const char* key, const Json& only) {
    const Json* value = Find(key);
    if (value != nullptr && *value != only) {
      Complain(absl::StrCat(key, " is ", value->dump(-1, ' ', false, Json::error_handler_t::replace),
                            "; only ", only.dump(), " has a counterpart here"));
    }
  }

  // Null when it is absent or null.
  const Json* Find(const char* key) const {
    const auto found = config_.find(key);
    return found == config_.end() || found->is_null() ? nullptr : &*found;
  }

  void Complain(std::string text) {
    if (status_.ok()) {
      status_ = absl::FailedPreconditionError(absl::StrCat(kConfigName, ": ", text));
    }
  }
  const absl::Status& status() const { return status_; }

 private:
  const Json& config_;
  absl::Status status_;
};

// rope_theta stands at the top, or in rope_parameters (as newer writers have it).
double RopeBase(ConfigReader* config) {
  config->Require("rope_scaling", nullptr);
  const Json* parameters = config->Find("rope_parameters");
  if (parameters == nullptr) return config->Number("rope_theta", 1e6);
  if (!parameters->is_object()) {
    config->Complain("rope_parameters must be an object");
    return 0;
  }
  ConfigReader rope(*parameters);
  rope.Require("rope_type", "default");
  const double base = rope.Number("rope_theta", 1e6);
  if (!rope.status().ok()) config->Complain(std::string(rope.status().message()));
  return base;
}

// One tensor of the folder.
struct SourceTensor {
  std::shared_ptr<const ReadableFile> file;
  SafetensorsTensor tensor;
};

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t fraction = half & 0x3ff;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    return sign != 0 ? -value : value;
  }
  const uint32_t wide = exponent == 0x1f ? 0xff : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

void ToFloats(ElementKind element, std::span<const std::byte> bytes, std::vector<float>* values) {
  values->resize(bytes.size() / ElementBytes(element));
  if (element == ELEMENT_F32) {
    std::memcpy(values->data(), bytes.data(), bytes.size());
    return;
  }
  for (size_t i = 0; i < values->size(); ++i) {
    uint16_t bits = 0;
    std::memcpy(&bits, bytes.data() + 2 * i, sizeof(bits));
    (*values)[i] = element == ELEMENT_F16 ? HalfToFloat(bits)
                                          : std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  }
}

absl::Status StreamAsFloats(const SourceTensor& source, const ByteSink& sink) {
  const uint64_t size = ElementBytes(source.tensor.element);
  std::vector<std::byte> bytes;
  std::vector<float> values;
  for (uint64_t at = 0; at < source.tensor.bytes; at += bytes.size()) {
    bytes.resize(std::min(kChunkElements * size, source.tensor.bytes - at));
    absl::Status read = source.file->ReadAt(source.tensor.begin + at, bytes);
    if (!read.ok()) return read;
    ToFloats(source.tensor.element, bytes, &values);
    absl::Status written = sink(std::as_bytes(std::span<const float>(values)));
    if (!written.ok()) return written;
  }
  return absl::OkStatus();
}

// The tensors of a folder, by name.
class TensorFolder {
 public:
  static absl::StatusOr<TensorFolder> Open(const Folder& folder) {
    TensorFolder tensors;
    absl::StatusOr<std::string> index = ReadWholeFile(folder, kIndexName, kMaxIndexBytes);
    absl::Status added = absl::IsNotFound(index.status()) ? tensors.AddFile(folder, kSingleName)
                         : index.ok()                     ? tensors.AddIndexed(folder, *index)
                                                          : index.status();
    if (!added.ok()) return added;
    return tensors;
  }

  const SourceTensor* Find(const std::string& name) const {
    const auto found = tensors_.find(name);
    return found == tensors_.end() ? nullptr : &found->second;
  }

  const std::map<std::string, SourceTensor>& tensors() const { return tensors_; }

 private:
  absl::Status AddIndexed(const Folder& folder, absl::string_view text) {
    absl::StatusOr<Json> index = ParseJson(text, kIndexName);
    if (!index.ok()) return index.status();
    const auto map = index->find("weight_map");
    if (map == index->end() || !map->is_object()) {
      return absl::DataLossError(absl::StrCat(kIndexName, " has no weight_map"));
    }
    std::map<std::string, std::string> file_of;
    std::set<std::string> files;
    for (const auto& [tensor, file] : map->items()) {
      if (!file.is_string()) return absl::DataLossError(absl::StrCat(kIndexName, ": ", tensor));
      file_of[tensor] = file.get<std::string>();
      files.insert(file_of[tensor]);
    }
    for (const std::string& file : files) {
      if (absl::Status added = AddFile(folder, file); !added.ok()) return added;
    }
    for (const auto& [tensor, file] : file_of) {
      if (!tensors_.contains(tensor)) {
        return absl::DataLossError(
            absl::StrCat(kIndexName, ": tensor ", tensor, " is not in ", file));
      }
    }
    return absl::OkStatus();
  }

  absl::Status AddFile(const Folder& folder, const std::string& name) {
    absl::StatusOr<std::unique_ptr<ReadableFile>> file = folder.Open(name);
    if (!file.ok()) return file.status();
    absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(**file);
    if (!header.ok()) {
      return absl::Status(header.status().code(),
                          absl::StrCat(folder.path(), "/", name, ": ", header.status().message()));
    }
    const std::shared_ptr<const ReadableFile> shared = *std::move(file);
    for (SafetensorsTensor& tensor : header->tensors) {
      const std::string tensor_name = tensor.name;
      if (!tensors_.try_emplace(tensor_name, SourceTensor{shared, std::move(tensor)}).second) {
        return absl::DataLossError(absl::StrCat("tensor ", tensor_name, " is in two files"));
      }
    }
    return absl::OkStatus();
  }

  std::map<std::string, SourceTensor> tensors_;
};

// A parameter as the rows of its tensors, checked against the catalog's shape.
absl::StatusOr<ShardSource> SourceOf(const ParameterSpec& parameter, const TensorFolder& folder,
                                     std::set<std::string>* used) {
  ShardSource source;
  source.name = parameter.name;
  source.shape.assign(parameter.shape.begin(), parameter.shape.end());
  source.box = WholeBox(source.shape);
  source.layer = parameter.expert < 0 ? -1 : parameter.layer;
  source.expert = parameter.expert;
  std::vector<const SourceTensor*> parts;
  std::vector<uint64_t> stacked;
  for (const std::string& name : MixtralTensorsOf(parameter)) {
    const SourceTensor* part = folder.Find(name);
    if (part == nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", name, ", a part of ", parameter.name, ", is missing"));
    }
    const SafetensorsTensor& tensor = part->tensor;
    if (tensor.element != ELEMENT_F32 && tensor.element != ELEMENT_BF16 &&
        tensor.element != ELEMENT_F16) {
      return absl::FailedPreconditionError(absl::StrCat(
          "tensor ", name, " is ", ElementName(tensor.element), "; F32, BF16 and F16 are read"));
    }
    if (stacked.empty()) {
      stacked = tensor.shape;
    } else if (!tensor.shape.empty() && tensor.shape.size() == stacked.size() &&
               std::equal(tensor.shape.begin() + 1, tensor.shape.end(), stacked.begin() + 1)) {
      stacked[0] += tensor.shape[0];
    }
    parts.push_back(part);
    used->insert(name);
  }
  if (stacked != source.shape) {
    return absl::FailedPreconditionError(
        absl::StrCat("parameter ", parameter.name, " has shape ", DescribeShape(source.shape),
                     " by ", kConfigName, ", but ", absl::StrJoin(MixtralTensorsOf(parameter), " + "),
                     " make ", DescribeShape(stacked)));
  }
  source.produce = [parts](const ByteSink& sink) {
    for (const SourceTensor* part : parts) {
      if (absl::Status sent = StreamAsFloats(*part, sink); !sent.ok()) return sent;
    }
    return absl::OkStatus();
  };
  return source;
}

// Tensors that carry nothing which is not elsewhere: tables of older writers, the copy of a tied
// head.
bool IsRedundant(const std::string& name, const JobSpec& spec) {
  return absl::EndsWith(name, ".rotary_emb.inv_freq") ||
         (spec.model().tie_head() && name == "lm_head.weight");
}

absl::StatusOr<std::vector<ShardSource>> PlanSources(const JobSpec& spec,
                                                     const TensorFolder& folder) {
  absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(spec);
  if (!catalog.ok()) return catalog.status();
  std::vector<ShardSource> sources;
  std::set<std::string> used;
  for (const ParameterSpec& parameter : catalog->parameters()) {
    absl::StatusOr<ShardSource> source = SourceOf(parameter, folder, &used);
    if (!source.ok()) return source.status();
    sources.push_back(*std::move(source));
  }
  for (const auto& [name, tensor] : folder.tensors()) {
    if (!used.contains(name) && !IsRedundant(name, spec)) {
      return absl::FailedPreconditionError(
          absl::StrCat("tensor ", name, " has no counterpart here"));
    }
  }
  return sources;
}

// Counts what the sources give, over all of them.
void ReportProgress(const std::function<void(int64_t, int64_t)>& progress,
                    std::vector<ShardSource>* sources) {
  if (!progress) return;
  int64_t total = 0;
  for (const ShardSource& source : *sources) {
    total += static_cast<int64_t>(CheckedBytes(source.element, source.shape).value_or(0));
  }
  const auto done = std::make_shared<int64_t>(0);
  for (ShardSource& source : *sources) {
    source.produce = [=, produce = std::move(source.produce)](const ByteSink& sink) {
      return produce([&](std::span<const std::byte> piece) {
        *done += static_cast<int64_t>(piece.size());
        progress(*done, total);
        return sink(piece);
      });
    };
  }
}

absl::StatusOr<CommittedStep> WriteStep(FileSystem* files, CheckpointRoot* root,
                                        const std::string& staging, const JobSpec& spec,
                                        const std::vector<ShardSource>& sources,
                                        const MixtralImport& import) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = files->OpenFolder(staging);
  if (!folder.ok()) return folder.status();
  absl::StatusOr<WrittenShards> written =
      WriteShardFiles(sources, {.rank = 0, .step = 0}, folder->get());
  if (!written.ok()) return written.status();
  ShardsPersisted report;
  report.set_job(spec.name());
  report.mutable_state();
  report.mutable_files()->Assign(written->files.begin(), written->files.end());
  report.mutable_objects()->Assign(written->objects.begin(), written->objects.end());
  CommitRequest request;
  request.staging = staging;
  request.ranks = 1;
  request.reports = {&report, 1};
  request.spec = spec;
  request.tokenizer = import.tokenizer;
  request.binary = import.binary;
  request.layout = "import of a Mixtral folder";
  request.created = import.created;
  request.weights_only = true;
  return root->Commit(request);
}

}  // namespace

absl::StatusOr<JobSpec> JobOfMixtralConfig(absl::string_view config_json,
                                           const std::string& name) {
  absl::StatusOr<Json> json = ParseJson(config_json, kConfigName);
  if (!json.ok()) return json.status();
  ConfigReader config(*json);
  if (config.Find("model_type") == nullptr) config.Complain("model_type is missing");
  config.Require("model_type", "mixtral");
  config.Require("hidden_act", "silu");
  config.Require("attention_bias", false);

  JobSpec spec;
  spec.set_name(name);
  ModelSpec& model = *spec.mutable_model();
  model.set_layers(config.Count("num_hidden_layers"));
  model.set_hidden(config.Count("hidden_size"));
  model.set_heads(config.Count("num_attention_heads"));
  model.set_kv_heads(config.Count("num_key_value_heads", model.heads()));
  if (config.Find("head_dim") != nullptr) model.set_head_width(config.Count("head_dim"));
  model.set_vocabulary(config.Count("vocab_size"));
  model.set_sequence(config.Count("max_position_embeddings"));
  model.set_tie_head(config.Flag("tie_word_embeddings", false));
  model.set_rope_base(RopeBase(&config));
  model.set_norm_epsilon(config.Number("rms_norm_eps", 1e-5));
  MoeSpec& moe = *model.mutable_moe();
  moe.set_experts(config.Count("num_local_experts"));
  moe.set_active(config.Count("num_experts_per_tok"));
  moe.set_expert_width(config.Count("intermediate_size"));
  // Mixtral divides the weights of the chosen experts by their sum.
  RouterSpec& router = *spec.mutable_recipe()->mutable_router();
  router.mutable_weight()->set_renormalize(true);
  router.mutable_balance()->set_coefficient(config.Number("router_aux_loss_coef", 0.001));

  if (config.Find("sliding_window") != nullptr &&
      config.Count("sliding_window") < model.sequence()) {
    config.Complain("sliding_window is shorter than max_position_embeddings; attention here has "
                    "no window");
  }
  if (!config.status().ok()) return config.status();
  ApplyDefaults(&spec);
  // Data and training are the new run's business.
  for (const JobProblem& problem : ValidateJob(spec)) {
    if (absl::StartsWith(problem.path, "model") || absl::StartsWith(problem.path, "recipe")) {
      return absl::FailedPreconditionError(
          absl::StrCat(kConfigName, " gives ", problem.path, ": ", problem.message));
    }
  }
  return spec;
}

absl::StatusOr<CommittedStep> ImportMixtral(FileSystem* files, const MixtralImport& import) {
  absl::StatusOr<std::unique_ptr<Folder>> from = files->OpenFolder(import.from);
  if (!from.ok()) return from.status();
  absl::StatusOr<std::string> config = ReadWholeFile(**from, kConfigName, kMaxConfigBytes);
  if (!config.ok()) return config.status();
  absl::StatusOr<JobSpec> spec = JobOfMixtralConfig(*config, "mixtral-import");
  if (!spec.ok()) return spec.status();
  absl::StatusOr<TensorFolder> tensors = TensorFolder::Open(**from);
  if (!tensors.ok()) return tensors.status();
  absl::StatusOr<std::vector<ShardSource>> sources = PlanSources(*spec, *tensors);
  if (!sources.ok()) return sources.status();
  ReportProgress(import.progress, &*sources);

  absl::StatusOr<std::unique_ptr<CheckpointRoot>> root = CheckpointRoot::Open(files, import.to);
  if (!root.ok()) return root.status();
  absl::StatusOr<std::vector<uint64_t>> steps = (*root)->Steps();
  if (!steps.ok()) return steps.status();
  if (!steps->empty()) {
    return absl::AlreadyExistsError(
        absl::StrCat(import.to, " has checkpoints already; import into another folder"));
  }
  absl::StatusOr<std::string> staging = (*root)->BeginStaging(0, 0);
  if (!staging.ok()) return staging.status();
  absl::StatusOr<CommittedStep> committed =
      WriteStep(files, root->get(), *staging, *spec, *sources, import);
  if (!committed.ok()) {
    // What cannot be removed is swept by the next run in this folder; the cause matters more.
    (*root)->Abort(*staging).IgnoreError();
  }
  return committed;
}

}  // namespace moesaic
