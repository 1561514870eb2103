#include "trainer/checkpoint/convert/architecture.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job_spec.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

constexpr const Architecture* kAll[] = {&kMixtral, &kQwen3Moe, &kDots1, &kLlama};
constexpr size_t kMostLayers = 1024;  // as model.layers

const Architecture* ArchitectureOf(ConfigReader& config) {
  const nlohmann::json* type = config.Find("model_type");
  if (type == nullptr) {
    config.Complain("model_type is missing");
    return nullptr;
  }
  const Architecture* found =
      type->is_string() ? FindArchitecture(type->get_ref<const std::string&>()) : nullptr;
  if (found == nullptr) {
    config.Complain(absl::StrCat("model_type is ", ShortJson(*type), "; what has a counterpart here: ",
                                 absl::StrJoin(ArchitectureNames(), ", ")));
  }
  return found;
}

// rope_theta stands at the top, or in rope_parameters (as newer writers have it).
double RopeBase(ConfigReader& config, double absent) {
  config.Require("rope_scaling", nullptr);
  config.Require("partial_rotary_factor", 1);
  const nlohmann::json* parameters = config.Find("rope_parameters");
  if (parameters == nullptr) return config.Number("rope_theta", absent);
  if (!parameters->is_object()) {
    config.Complain("rope_parameters must be an object");
    return 0;
  }
  ConfigReader rope(*parameters);
  rope.Require("rope_type", "default");
  rope.Require("partial_rotary_factor", 1);
  const double base = rope.Number("rope_theta", absent);
  if (!rope.status().ok()) config.Complain(rope.status().message());
  return base;
}

void ReadCommon(const Architecture& architecture, ConfigReader& config, JobSpec& spec) {
  config.Require("hidden_act", "silu");
  config.Require("attention_bias", false);
  ModelSpec& model = *spec.mutable_model();
  model.set_layers(config.Count("num_hidden_layers"));
  if (model.layers() > kMostLayers) {
    config.Complain(absl::StrCat("num_hidden_layers is above ", kMostLayers));
  }
  model.set_hidden(config.Count("hidden_size"));
  model.set_heads(config.Count("num_attention_heads"));
  model.set_kv_heads(config.Count("num_key_value_heads", model.heads()));
  if (config.Find("head_dim") != nullptr) model.set_head_width(config.Count("head_dim"));
  model.set_vocabulary(config.Count("vocab_size"));
  model.set_sequence(config.Count("max_position_embeddings"));
  model.set_tie_head(config.Flag("tie_word_embeddings", false));
  model.set_rope_base(RopeBase(config, architecture.rope_base));
  model.set_norm_epsilon(config.Number("rms_norm_eps", architecture.norm_epsilon));
}

// What no architecture of transformers has; empty: nothing.
std::string LackedByAll(const JobSpec& spec) {
  const RecipeSpec& recipe = spec.recipe();
  const SelectSpec& select = recipe.router().select();
  if (!spec.model().has_moe()) return "";
  if (recipe.experts().reuse() > 1) return "recipe.experts.reuse: layers share experts";
  if (recipe.experts().null_experts() > 0) return "recipe.experts.null_experts";
  if (recipe.router().has_state()) return "recipe.router.state: the router is recurrent";
  if (select.has_top_p())
    return "recipe.router.select.top_p: tokens take different numbers of experts";
  return "";
}

std::string Lacks(const Architecture& architecture, const JobSpec& spec) {
  const std::string all = LackedByAll(spec);
  return all.empty() ? architecture.lacks(spec) : all;
}

bool Ends(const ParameterSpec& parameter, absl::string_view suffix) {
  return absl::EndsWith(parameter.name, suffix);
}

// Of the feed-forward: gate and up one above the other, or down.
std::vector<std::string> SwiGluTensors(const std::string& prefix, const FeedForwardNames& names,
                                       const ParameterSpec& parameter) {
  if (Ends(parameter, ".gate_up")) return {prefix + names.gate, prefix + names.up};
  return {prefix + names.down};
}

}  // namespace

std::span<const Architecture* const> Architectures() { return kAll; }

std::vector<std::string> ArchitectureNames() {
  std::vector<std::string> names;
  for (const Architecture* architecture : kAll) names.push_back(architecture->name);
  return names;
}

const Architecture* FindArchitecture(absl::string_view name) {
  const auto found = std::ranges::find_if(
      kAll, [&](const Architecture* architecture) { return name == architecture->name; });
  return found == std::end(kAll) ? nullptr : *found;
}

absl::StatusOr<DescribedModel> ReadConfig(absl::string_view config_json, const std::string& name) {
  absl::StatusOr<nlohmann::json> json = ParseJsonObject(config_json, kConfigName);
  if (!json.ok()) return json.status();
  ConfigReader config(*json);
  DescribedModel model;
  model.architecture = ArchitectureOf(config);
  if (!config.status().ok()) return config.status();
  JobSpec& spec = model.spec;
  spec.set_name(name);
  ReadCommon(*model.architecture, config, spec);
  if (config.status().ok()) model.architecture->read(config, spec);
  if (!config.status().ok()) return config.status();
  ApplyDefaults(&spec);
  // Data and training are the new run's business.
  for (const JobProblem& problem : ValidateJob(spec)) {
    if (absl::StartsWith(problem.path, "model") || absl::StartsWith(problem.path, "recipe")) {
      return absl::FailedPreconditionError(
          absl::StrCat(kConfigName, " gives ", problem.path, ": ", problem.message));
    }
  }
  return model;
}

absl::StatusOr<const Architecture*> ArchitectureOf(const JobSpec& spec, absl::string_view as) {
  if (!as.empty()) {
    const Architecture* architecture = FindArchitecture(as);
    if (architecture == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat("there is no architecture ", as, "; there are: ",
                                                     absl::StrJoin(ArchitectureNames(), ", ")));
    }
    const std::string lacked = Lacks(*architecture, spec);
    if (lacked.empty()) return architecture;
    return absl::FailedPreconditionError(
        absl::StrCat("the model has no counterpart in ", as, ": ", lacked));
  }
  std::vector<std::string> reasons;
  for (const Architecture* architecture : kAll) {
    const std::string lacked = Lacks(*architecture, spec);
    if (lacked.empty()) return architecture;
    reasons.push_back(absl::StrCat(architecture->name, " (", lacked, ")"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("the model has no counterpart in ", absl::StrJoin(reasons, ", nor in ")));
}

std::string WriteConfig(const JobSpec& spec, const Architecture& architecture,
                        ElementKind element) {
  const ModelSpec& model = spec.model();
  Json config = {
      {"architectures", {architecture.model_class}},
      {"model_type", architecture.name},
      {"torch_dtype", element == ELEMENT_F32 ? "float32" : "bfloat16"},
      {"hidden_act", "silu"},
      {"hidden_size", model.hidden()},
      {"num_hidden_layers", model.layers()},
      {"num_attention_heads", model.heads()},
      {"num_key_value_heads", model.kv_heads()},
      {"head_dim", model.head_width()},
      {"vocab_size", model.vocabulary()},
      {"max_position_embeddings", model.sequence()},
      {"rope_theta", model.rope_base()},
      {"rms_norm_eps", model.norm_epsilon()},
      {"initializer_range", model.init_std()},
      {"attention_bias", false},
      {"attention_dropout", 0.0},
      {"tie_word_embeddings", model.tie_head()},
  };
  architecture.write(spec, config);
  return config.dump(2) + "\n";
}

std::vector<std::string> TensorsOf(const Architecture& architecture,
                                   const ParameterSpec& parameter) {
  if (parameter.name == "embedding") return {"model.embed_tokens.weight"};
  if (parameter.name == "norm") return {"model.norm.weight"};
  if (parameter.name == "head") return {"lm_head.weight"};
  const FeedForwardNames& names = architecture.names;
  const std::string layer = absl::StrCat("model.layers.", parameter.layer, ".");
  const std::string attention = layer + "self_attn.";
  const auto ends = [&](absl::string_view suffix) { return Ends(parameter, suffix); };
  if (ends(".attention_norm")) return {layer + "input_layernorm.weight"};
  if (ends(".feed_forward_norm")) return {layer + "post_attention_layernorm.weight"};
  if (ends(".attention.q_norm")) return {attention + "q_norm.weight"};
  if (ends(".attention.k_norm")) return {attention + "k_norm.weight"};
  if (ends(".attention.output")) return {attention + "o_proj.weight"};
  if (ends(".attention.qkv")) {
    return {attention + "q_proj.weight", attention + "k_proj.weight", attention + "v_proj.weight"};
  }
  if (ends(".moe.router")) return {layer + names.router};
  if (ends(".moe.router_bias")) return {layer + names.router_bias};
  if (ends(".moe.router_load")) return {};
  if (parameter.expert >= 0) {
    return SwiGluTensors(absl::StrCat(layer, names.experts, parameter.expert, "."), names, parameter);
  }
  const bool shared = absl::StrContains(parameter.name, ".moe.shared.");
  return SwiGluTensors(layer + (shared ? names.shared : names.dense), names, parameter);
}

void SetPattern(const std::vector<bool>& has_experts, ConfigReader& config, JobSpec& spec) {
  const auto layers = static_cast<uint32_t>(has_experts.size());
  std::vector<uint32_t> with;
  for (uint32_t layer = 0; layer < layers; ++layer) {
    if (has_experts[layer]) with.push_back(layer);
  }
  if (with.empty()) return config.Complain("no layer has experts");
  LayerPattern& pattern = *spec.mutable_model()->mutable_moe()->mutable_pattern();
  pattern.set_first(with[0]);
  pattern.set_every(with.size() > 1 ? with[1] - with[0] : layers - with[0]);
  for (uint32_t layer = 0; layer < layers; ++layer) {
    if (IsMoeLayer(spec.model(), static_cast<int>(layer)) != has_experts[layer]) {
      return config.Complain(absl::StrCat(
          "the layers with experts are not every n-th from one on: layer ", layer,
          has_experts[layer] ? " has experts" : " has none",
          ", other than model.moe.pattern of the layers before it"));
    }
  }
}

void RequireWindow(const char* key, const JobSpec& spec, ConfigReader& config) {
  if (config.Find(key) != nullptr && config.Count(key) < spec.model().sequence()) {
    config.Complain(absl::StrCat(
        key, " is shorter than max_position_embeddings; attention here has no window"));
  }
}

std::string LacksOfPlainRouter(const JobSpec& spec) {
  const RouterSpec& router = spec.recipe().router();
  if (!spec.model().has_moe()) return "model.moe is absent: the model has no experts";
  if (spec.model().moe().shared_width() != 0) {
    return "model.moe.shared_width: there is a shared expert";
  }
  if (router.score() != SOFTMAX) return "recipe.router.score is not softmax";
  if (router.balance().has_bias()) return "recipe.router.balance.bias counts in the selection";
  if (router.select().has_group_limit() &&
      router.select().group_limit() < router.select().groups()) {
    return "recipe.router.select.group_limit is below groups";
  }
  if (router.weight().scale() != 1) return "recipe.router.weight.scale is not 1";
  return "";
}

}  // namespace moesaic
