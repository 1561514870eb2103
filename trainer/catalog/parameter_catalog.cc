#include "trainer/catalog/parameter_catalog.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"
#include "trainer/recipe/schedule.h"

namespace moesaic {
namespace {

// A job file of a few lines must not make the coordinator allocate without bound.
constexpr int64_t kMostParameters = int64_t{1} << 20;

// Nothing on overflow.
std::optional<int64_t> Product(std::span<const int64_t> factors) {
  int64_t product = 1;
  for (int64_t factor : factors) {
    if (__builtin_mul_overflow(product, factor, &product)) return std::nullopt;
  }
  return product;
}

absl::Status CheckSizes(const ModelSpec& model) {
  const auto need = [](absl::string_view field, bool set, uint32_t value) {
    if (set && value > 0) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("model.", field, " is not set: the parameters cannot be listed"));
  };
  absl::Status status;
  status.Update(need("layers", model.has_layers(), model.layers()));
  status.Update(need("hidden", model.has_hidden(), model.hidden()));
  status.Update(need("heads", model.has_heads(), model.heads()));
  status.Update(need("kv_heads", model.has_kv_heads(), model.kv_heads()));
  status.Update(need("head_width", model.has_head_width(), model.head_width()));
  status.Update(need("vocabulary", model.has_vocabulary(), model.vocabulary()));
  if (model.has_moe()) {
    const MoeSpec& moe = model.moe();
    status.Update(need("moe.experts", moe.has_experts(), moe.experts()));
    status.Update(need("moe.active", moe.has_active(), moe.active()));
    status.Update(need("moe.expert_width", moe.has_expert_width(), moe.expert_width()));
  }
  for (int layer = 0; status.ok() && layer < static_cast<int>(model.layers()); ++layer) {
    if (IsMoeLayer(model, layer)) continue;
    status.Update(need("dense_width", model.has_dense_width(), model.dense_width()));
    break;
  }
  return status;
}

// How many parameters the job has, without making them.
int64_t CountParameters(const ModelSpec& model) {
  int64_t count = 7;
  for (int layer = 0; layer < static_cast<int>(model.layers()); ++layer) {
    count += IsMoeLayer(model, layer) ? 10 + 2 * int64_t{model.moe().experts()} : 6;
    count += model.qk_norm() ? 2 : 0;
  }
  return count;
}

// Layers with experts in groups of `reuse`, the last one perhaps smaller: the group of `layer`.
std::vector<int> GroupOf(const ModelSpec& model, int reuse, int layer) {
  if (!IsMoeLayer(model, layer)) return {};
  std::vector<int> group;
  bool found = false;
  for (int l = 0, moe_index = 0; l < static_cast<int>(model.layers()); ++l) {
    if (!IsMoeLayer(model, l)) continue;
    if (moe_index++ % reuse == 0) {
      if (found) break;
      group.clear();
    }
    group.push_back(l);
    found |= l == layer;
  }
  return group;
}

// Appends parameters in the catalogue's order.
class Lister {
 public:
  Lister(const JobSpec& spec, Experts experts)
      : model_(spec.model()),
        experts_(experts),
        router_(spec.recipe().router()),
        reuse_(static_cast<int>(spec.recipe().experts().reuse())),
        nulls_(spec.recipe().experts().null_experts()),
        normal_{InitRule::kNormal, model_.init_std()},
        residual_{InitRule::kNormal, model_.init_std() / std::sqrt(2.0 * model_.layers())} {}

  std::vector<ParameterSpec> List() {
    const int64_t hidden = model_.hidden();
    const int64_t vocabulary = model_.vocabulary();
    Add("embedding", {vocabulary, hidden}, ParameterKind::kEmbedding, normal_).uses =
        model_.tie_head() ? 2 : 1;
    if (router_.has_state() && experts_ == Experts::kAll) ListRouterCell();
    for (layer_ = 0; layer_ < static_cast<int>(model_.layers()); ++layer_) ListLayer();
    layer_ = -1;
    AddNorm("norm", hidden);
    if (!model_.tie_head()) Add("head", {vocabulary, hidden}, ParameterKind::kHead, normal_);
    return std::move(parameters_);
  }

 private:
  void ListRouterCell() {
    const int64_t p = router_.state().width();
    int uses = 0;
    for (int layer = 0; layer < static_cast<int>(model_.layers()); ++layer) {
      uses += IsMoeLayer(model_, layer);
    }
    const InitRule uniform = {InitRule::kUniform, 1 / std::sqrt(static_cast<double>(p))};
    for (const char* name : {"router_cell.input_weight", "router_cell.hidden_weight"}) {
      AddRouter(name, {3 * p, p}, uniform).uses = uses;
    }
    for (const char* name : {"router_cell.input_bias", "router_cell.hidden_bias"}) {
      ParameterSpec& bias = AddRouter(name, {3 * p}, {InitRule::kZeros, 0});
      bias.uses = uses;
      bias.decay = false;
    }
  }

  ParameterSpec& AddRouter(std::string name, std::vector<int64_t> shape, InitRule init) {
    ParameterSpec& router = Add(std::move(name), std::move(shape), ParameterKind::kRouter, init);
    router.fp32 = true;
    return router;
  }

  void ListLayer() {
    const int64_t hidden = model_.hidden();
    const int64_t width = model_.head_width();
    const int64_t heads = model_.heads();
    const int64_t rows = (heads + 2 * int64_t{model_.kv_heads()}) * width;
    const std::string prefix = absl::StrCat("layers.", layer_, ".");
    AddNorm(prefix + "attention_norm", hidden);
    Add(prefix + "attention.qkv", {rows, hidden}, ParameterKind::kAttention, normal_);
    if (model_.qk_norm()) {
      AddNorm(prefix + "attention.q_norm", width);
      AddNorm(prefix + "attention.k_norm", width);
    }
    Add(prefix + "attention.output", {hidden, heads * width}, ParameterKind::kAttention, residual_);
    AddNorm(prefix + "feed_forward_norm", hidden);
    if (IsMoeLayer(model_, layer_) && experts_ == Experts::kOne) {
      AddSwiGlu(prefix + "moe.base.", model_.moe().expert_width(), ParameterKind::kFeedForward, -1);
      ListShared(prefix + "moe.");
    } else if (IsMoeLayer(model_, layer_)) {
      ListExperts(prefix + "moe.");
    } else {
      AddSwiGlu(prefix + "dense.", model_.dense_width(), ParameterKind::kFeedForward, -1);
    }
  }

  void ListExperts(const std::string& prefix) {
    const MoeSpec& moe = model_.moe();
    uses_ = static_cast<int>(GroupOf(model_, reuse_, layer_).size());
    int64_t seen = model_.hidden();  // width of what the logits are linear in
    if (router_.has_state()) {
      seen = router_.state().width();
      AddRouter(prefix + "router_projection", {seen, int64_t{model_.hidden()}}, normal_);
    }
    AddRouter(prefix + "router", {Pool() + nulls_, seen}, normal_);
    if (router_.balance().has_bias()) AddRouterState(prefix + "router_bias");
    if (router_.balance().scope() == GLOBAL) AddRouterState(prefix + "router_load");
    ListShared(prefix);
    for (int expert = 0; expert < static_cast<int>(moe.experts()); ++expert) {
      AddSwiGlu(absl::StrCat(prefix, "experts.", expert, "."), moe.expert_width(),
                ParameterKind::kExpert, expert);
    }
  }

  void ListShared(const std::string& prefix) {
    if (model_.moe().shared_width() == 0) return;
    AddSwiGlu(prefix + "shared.", model_.moe().shared_width(), ParameterKind::kFeedForward, -1);
  }

  void AddSwiGlu(const std::string& prefix, int64_t width, ParameterKind kind, int expert) {
    const int64_t hidden = model_.hidden();
    Add(prefix + "gate_up", {2 * width, hidden}, kind, normal_);
    Add(prefix + "down", {hidden, width}, kind, residual_);
    for (size_t i = parameters_.size() - 2; i < parameters_.size(); ++i) {
      parameters_[i].expert = expert;
      if (kind == ParameterKind::kExpert) parameters_[i].uses = uses_;
    }
  }

  // Experts that the layer chooses from.
  int64_t Pool() const { return int64_t{uses_} * model_.moe().experts(); }

  void AddRouterState(std::string name) {
    ParameterSpec& state =
        Add(std::move(name), {Pool()}, ParameterKind::kRouterState, {InitRule::kZeros, 0});
    state.learnt = false;
    state.decay = false;
    state.fp32 = true;
  }

  void AddNorm(std::string name, int64_t width) {
    ParameterSpec& norm =
        Add(std::move(name), {width}, ParameterKind::kNorm, {InitRule::kOnes, 0});
    norm.decay = false;
    norm.fp32 = true;
  }

  ParameterSpec& Add(std::string name, std::vector<int64_t> shape, ParameterKind kind,
                     InitRule init) {
    ParameterSpec& parameter = parameters_.emplace_back();
    parameter.name = std::move(name);
    parameter.shape = std::move(shape);
    parameter.kind = kind;
    parameter.layer = layer_;
    parameter.init = init;
    return parameter;
  }

  const ModelSpec& model_;
  const Experts experts_;
  const RouterSpec& router_;
  const int reuse_;
  const int64_t nulls_;
  const InitRule normal_;
  const InitRule residual_;
  int layer_ = -1;  // being listed; -1: of no layer
  int uses_ = 1;    // of its experts
  std::vector<ParameterSpec> parameters_;
};

}  // namespace

int64_t ParameterSpec::elements() const { return Product(shape).value_or(0); }

Experts ExpertsAt(const JobSpec& spec, uint64_t step) {
  const bool one = RecipeSchedule(spec.recipe()).PhaseAt(step) == ONE_EXPERT;
  return one && spec.model().has_moe() ? Experts::kOne : Experts::kAll;
}

absl::StatusOr<ParameterCatalog> ParameterCatalog::Build(const JobSpec& spec, Experts experts) {
  const ModelSpec& model = spec.model();
  if (absl::Status status = CheckSizes(model); !status.ok()) return status;
  if (const int64_t count = CountParameters(model); count > kMostParameters) {
    return absl::InvalidArgumentError(
        absl::StrCat("the model has ", count, " parameter tensors, more than the ", kMostParameters,
                     " that are supported: lower model.layers or model.moe.experts"));
  }

  ParameterCatalog catalog;
  catalog.which_ = experts;
  catalog.layers_ = static_cast<int>(model.layers());
  catalog.experts_ = static_cast<int>(model.moe().experts());
  catalog.nulls_ = static_cast<int>(spec.recipe().experts().null_experts());
  catalog.active_ = static_cast<int>(model.moe().active());
  for (int layer = 0; layer < catalog.layers_; ++layer) {
    const bool is_moe = experts == Experts::kAll && IsMoeLayer(model, layer);
    catalog.moe_layers_.push_back(is_moe);
    catalog.pools_.push_back(
        is_moe ? GroupOf(model, static_cast<int>(spec.recipe().experts().reuse()), layer)
               : std::vector<int>());
  }
  catalog.parameters_ = Lister(spec, experts).List();

  int64_t total = 0;
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    const ParameterSpec& parameter = catalog.parameters_[id];
    const std::optional<int64_t> elements = Product(parameter.shape);
    if (!elements || __builtin_add_overflow(total, *elements, &total)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the elements of the model overflow 64 bits at ", parameter.name, ": lower its sizes"));
    }
    catalog.by_name_.emplace(parameter.name, id);
  }
  return catalog;
}

ParameterId ParameterCatalog::Find(absl::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? kNoParameter : found->second;
}

int ParameterCatalog::PlaceInPool(int layer) const {
  const std::vector<int>& layers = pools_[layer];
  return static_cast<int>(std::find(layers.begin(), layers.end(), layer) - layers.begin());
}

int64_t ParameterCatalog::total_elements() const {
  int64_t total = 0;
  for (const ParameterSpec& parameter : parameters_) total += parameter.elements();
  return total;
}

int64_t ParameterCatalog::active_elements() const {
  int64_t total = 0;
  for (const ParameterSpec& parameter : parameters_) {
    // All experts of a layer have one size, so the first `active` of them count for any.
    if (parameter.expert < active_) total += parameter.elements();
  }
  return total;
}

std::array<uint8_t, 16> ParameterCatalog::Hash() const {
  XXH3_state_t state;
  XXH3_128bits_reset(&state);
  const auto add = [&state](const std::string& text) {
    XXH3_128bits_update(&state, text.data(), text.size());
  };
  for (const ParameterSpec& parameter : parameters_) {
    add(absl::StrCat(parameter.name, "|", static_cast<int>(parameter.kind)));
    for (int64_t size : parameter.shape) add(absl::StrCat("|", size));
    add("\n");
  }
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits_digest(&state));
  std::array<uint8_t, 16> hash;
  std::copy(std::begin(canonical.digest), std::end(canonical.digest), hash.begin());
  return hash;
}

absl::StatusOr<CatalogsAhead> BuildCatalogsAhead(const JobSpec& spec, uint64_t step) {
  absl::StatusOr<ParameterCatalog> all = ParameterCatalog::Build(spec);
  if (!all.ok()) return all.status();
  CatalogsAhead ahead = {.all = *std::move(all), .before_spawn = {}};
  if (ExpertsAt(spec, step) == Experts::kAll) return ahead;
  absl::StatusOr<ParameterCatalog> one = ParameterCatalog::Build(spec, Experts::kOne);
  if (!one.ok()) return one.status();
  ahead.before_spawn = *std::move(one);
  return ahead;
}

}  // namespace moesaic
