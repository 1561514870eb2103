// Architecture: what import and export know of one kind of model of Hugging Face transformers. Each
// is a description in a file of its own; all that they share is in architecture.cc.
//
// Common to all, for a parameter (left) the tensors whose rows make it up, in order:
//   embedding, norm, head            model.embed_tokens, model.norm, lm_head
//   and below model.layers.L:
//   attention_norm                   input_layernorm
//   attention.qkv                    self_attn.q_proj, k_proj, v_proj
//   attention.q_norm, k_norm         self_attn.q_norm, k_norm
//   attention.output                 self_attn.o_proj
//   feed_forward_norm                post_attention_layernorm
#pragma once

#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/convert/config_reader.h"

namespace moesaic {

// Tensors of the feed-forward, below "model.layers.L."; null where the architecture has none.
struct FeedForwardNames {
  const char* router = nullptr;
  const char* router_bias = nullptr;
  // Before the matrices of a dense layer, of the shared expert, and of expert E ("experts.E.").
  const char* dense = nullptr;
  const char* shared = nullptr;
  const char* experts = nullptr;
  const char* gate = "gate_proj.weight";
  const char* up = "up_proj.weight";
  const char* down = "down_proj.weight";
};

struct Architecture {
  const char* name = nullptr;         // model_type in config.json
  const char* model_class = nullptr;  // of transformers
  // Where config.json does not say:
  double rope_base = 10000;
  double norm_epsilon = 1e-6;
  FeedForwardNames names;

  // Reads what is its own; sizes of attention, vocabulary and the like are in `spec` already.
  // Complains of what has no counterpart.
  void (*read)(ConfigReader& config, JobSpec& spec) = nullptr;
  // The first thing about a resolved model that it does not have; empty: none.
  std::string (*lacks)(const JobSpec& spec) = nullptr;
  // Adds what is its own to a config.json.
  void (*write)(const JobSpec& spec, nlohmann::ordered_json& config) = nullptr;
};

extern const Architecture kMixtral;
extern const Architecture kQwen3Moe;
extern const Architecture kDots1;
extern const Architecture kLlama;

// All of them. A model can be said in one of them at most.
std::span<const Architecture* const> Architectures();
std::vector<std::string> ArchitectureNames();
// Null when there is none of that name.
const Architecture* FindArchitecture(absl::string_view name);

// A model that a config.json describes.
struct DescribedModel {
  const Architecture* architecture = nullptr;
  // Its model, recipe and balance sections, with defaults applied; the other sections are empty.
  JobSpec spec;
};
// `name` is the job's. DataLoss: not JSON. FailedPrecondition: something has no counterpart here.
absl::StatusOr<DescribedModel> ReadConfig(absl::string_view config_json, const std::string& name);

// The first architecture that a resolved job's model can be said in, or the one named `as`.
// FailedPrecondition says what each lacks; InvalidArgument: there is none of that name.
absl::StatusOr<const Architecture*> ArchitectureOf(const JobSpec& spec, absl::string_view as = "");

// The config.json of a job's model, which ArchitectureOf gave.
std::string WriteConfig(const JobSpec& spec, const Architecture& architecture, ElementKind element);

// The tensors whose rows make up a parameter, in order. Empty for what is not a weight of the model
// but a count of its training (router_load).
std::vector<std::string> TensorsOf(const Architecture& architecture, const ParameterSpec& parameter);

// ---- For the descriptions ----

// Sets model.moe.pattern to the layers with experts, or complains that it cannot say them.
void SetPattern(const std::vector<bool>& has_experts, ConfigReader& config, JobSpec& spec);
// Complains of a sliding window that a sequence does not fit into.
void RequireWindow(const char* key, const JobSpec& spec, ConfigReader& config);
// Of those that choose experts by softmax or sigmoid alone: what keeps the model from being that.
std::string LacksOfPlainRouter(const JobSpec& spec);

}  // namespace moesaic
