// Llama, for its dense models (arXiv 2302.13971).
#include "trainer/checkpoint/convert/architecture.h"

namespace moesaic {
namespace {

void Read(ConfigReader& config, JobSpec& spec) {
  config.Require("mlp_bias", false);
  spec.mutable_model()->set_dense_width(config.Count("intermediate_size"));
}

std::string Lacks(const JobSpec& spec) {
  if (spec.model().has_moe()) return "model.moe: the model has experts";
  return spec.model().qk_norm() ? "model.qk_norm is true" : "";
}

void Write(const JobSpec& spec, nlohmann::ordered_json& config) {
  config["intermediate_size"] = spec.model().dense_width();
  config["mlp_bias"] = false;
}

}  // namespace

constexpr Architecture kLlama = {
    .name = "llama",
    .model_class = "LlamaForCausalLM",
    .names = {.dense = "mlp."},
    .read = Read,
    .lacks = Lacks,
    .write = Write,
};

}  // namespace moesaic
