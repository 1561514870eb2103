// ParameterCatalog: every parameter of a job, as a pure function of the job. Buckets, placement,
// optimizer groups, checkpoints and the coverage proof all derive from it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/job.pb.h"

namespace moesaic {

// Index into ParameterCatalog::parameters(); equal on every rank of a job. Not stored on disk:
// names are.
using ParameterId = int32_t;
inline constexpr ParameterId kNoParameter = -1;

enum class ParameterKind {
  kEmbedding,
  kHead,
  kNorm,
  kAttention,
  kFeedForward,
  kRouter,
  kExpert,
  kRouterState,  // moved by a rule of the recipe once a step, not learnt
};

// Initial values, drawn from the random stream (seed, parameter name, element index), so that they
// depend on no layout.
struct InitRule {
  enum Kind { kOnes, kNormal, kZeros, kUniform } kind = kNormal;
  double stddev = 0;  // of kUniform: the bound, on both sides
};

struct ParameterSpec {
  std::string name;
  std::vector<int64_t> shape;  // weights of projections are [out, in]
  ParameterKind kind = ParameterKind::kFeedForward;
  int layer = -1;
  int expert = -1;        // global id within the layer; -1: every data rank holds the parameter
  int uses = 1;           // times a pass uses it (a tied embedding: 2)
  bool decay = true;      // weight decay applies
  bool learnt = true;  // has gradients, counts in their norm and has moments; else no decay either
  bool fp32 = false;      // computed with in fp32 whatever train.precision is (norms, router)
  InitRule init;

  int64_t elements() const;
};

// Whether layers with experts have all of them, or the one that they are made of later
// (recipe.experts.spawn).
enum class Experts { kAll, kOne };

// Those of the parameters that the step after `step` steps works on. `spec` must be resolved.
Experts ExpertsAt(const JobSpec& spec, uint64_t step);

// The parameters, in this order (`L` a layer, `E` an expert of it, `pool` the experts that it
// chooses from: `experts`, times the layers of its group with recipe.experts.reuse):
//   embedding                       [vocabulary, hidden]
//   layers.L.attention_norm         [hidden]
//   layers.L.attention.qkv          [(heads + 2 * kv_heads) * head_width, hidden]   rows: q, k, v
//   layers.L.attention.q_norm       [head_width]                                    (model.qk_norm)
//   layers.L.attention.k_norm       [head_width]
//   layers.L.attention.output       [hidden, heads * head_width]
//   layers.L.feed_forward_norm      [hidden]
//   layers.L.dense.gate_up          [2 * dense_width, hidden]   rows: gate, up      (dense layer)
//   layers.L.dense.down             [hidden, dense_width]
//   router_cell.input_weight        [3 p, p]                            (recipe.router.state: one
//   router_cell.hidden_weight       [3 p, p]                             GRU cell for all layers,
//   router_cell.input_bias          [3 p]                                used by each MoE layer;
//   router_cell.hidden_bias         [3 p]                                they follow the embedding)
//   layers.L.moe.base.gate_up       [2 * expert_width, hidden]  (MoE layer of Experts::kOne:
//   layers.L.moe.base.down          [hidden, expert_width]      no router, expert or router_cell)
//   layers.L.moe.router_projection  [p, hidden]                               (recipe.router.state)
//   layers.L.moe.router             [pool + null, hidden], or [pool + null, p]      (MoE layer)
//                                                       null: recipe.experts.null_experts
//   layers.L.moe.router_bias        [pool]              not learnt    (recipe.router.balance.bias)
//   layers.L.moe.router_load        [pool]              not learnt    (balance.scope global): pairs
//                                                       of each expert in the step before
//   layers.L.moe.shared.gate_up     [2 * shared_width, hidden]                      (if any)
//   layers.L.moe.shared.down        [hidden, shared_width]
//   layers.L.moe.experts.E.gate_up  [2 * expert_width, hidden]
//   layers.L.moe.experts.E.down     [hidden, expert_width]
//   norm                            [hidden]
//   head                            [vocabulary, hidden]                            (not tied)
// Immutable; thread-safe.
class ParameterCatalog {
 public:
  // `spec` must be resolved and valid, with model.vocabulary set. InvalidArgument otherwise, or
  // when an element count overflows int64.
  static absl::StatusOr<ParameterCatalog> Build(const JobSpec& spec,
                                                Experts experts = Experts::kAll);

  std::span<const ParameterSpec> parameters() const { return parameters_; }
  const ParameterSpec& operator[](ParameterId id) const { return parameters_[id]; }
  int size() const { return static_cast<int>(parameters_.size()); }

  // kNoParameter when there is none of that name.
  ParameterId Find(absl::string_view name) const;

  Experts which() const { return which_; }
  int layers() const { return layers_; }
  // Experts of a layer; 0 for a dense one. A layer of Experts::kOne is dense for now.
  int experts(int layer) const { return IsMoe(layer) ? experts_ : 0; }
  bool IsMoe(int layer) const { return moe_layers_[layer]; }
  // The layers whose experts `layer` chooses from, ascending: itself, and with recipe.experts.reuse
  // the other layers of its group (ReXMoE). Empty for a dense one.
  const std::vector<int>& PoolLayers(int layer) const { return pools_[layer]; }
  // Which of them `layer` is.
  int PlaceInPool(int layer) const;
  // Null experts, from which a layer chooses, too; they have no parameters.
  int null_experts() const { return nulls_; }
  // Experts that a token is expected to take of a layer with experts, where loads are balanced:
  // null experts get their share of what is chosen. Where recipes take fewer at will: the most.
  double expected_active(int layer) const {
    return static_cast<double>(active_) * pool_experts(layer) / (pool_experts(layer) + nulls_);
  }
  int pool_experts(int layer) const { return experts_ * static_cast<int>(pools_[layer].size()); }

  int64_t total_elements() const;
  // Elements that one token uses: all but the experts, and `active` experts a MoE layer.
  int64_t active_elements() const;

  // XXH3-128 over names, shapes and kinds.
  std::array<uint8_t, 16> Hash() const;

 private:
  std::vector<ParameterSpec> parameters_;
  absl::flat_hash_map<std::string, ParameterId> by_name_;
  std::vector<bool> moe_layers_;
  std::vector<std::vector<int>> pools_;  // by layer
  Experts which_ = Experts::kAll;
  int layers_ = 0;
  int experts_ = 0;
  int active_ = 0;
  int nulls_ = 0;
};

// What a job works on from a step on.
struct CatalogsAhead {
  ParameterCatalog all;
  std::optional<ParameterCatalog> before_spawn;  // of Experts::kOne, where the spawn is ahead
};
// Of the steps after `step` steps. InvalidArgument: as ParameterCatalog::Build.
absl::StatusOr<CatalogsAhead> BuildCatalogsAhead(const JobSpec& spec, uint64_t step);

}  // namespace moesaic
