#include "trainer/loop/trainer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "parallel/expert/token_exchange.h"
#include "parallel/layout/micro_batch_plan.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/sizing.h"
#include "trainer/data/batch_source.h"
#include "trainer/loop/micro_batches.h"
#include "trainer/loop/spawn.h"
#include "trainer/loop/step_plan.h"
#include "trainer/loop/trained_model.h"
#include "trainer/model/initialise.h"
#include "trainer/model/kernels/optimizer_kernels.h"
#include "trainer/model/router/bias.h"
#include "trainer/model/router/candidates.h"
#include "trainer/optim/lr_schedule.h"
#include "trainer/optim/optimizer.h"

namespace moesaic {
namespace {

double Seconds(std::chrono::steady_clock::time_point since) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - since).count();
}

double SquaredNorm(const at::Tensor& gradient) {
  double sum = 0;
  for (const double chunk : SumSquaresByChunk(
           {gradient.const_data_ptr<float>(), static_cast<size_t>(gradient.numel())})) {
    sum += chunk;
  }
  return sum;
}

// The factor that clips a gradient of global norm `norm` (the small term as torch's
// clip_grad_norm_ has it).
double ClipFactor(double norm, double limit) {
  return limit > 0 ? std::min(1.0, limit / (norm + 1e-6)) : 1.0;
}

class TrainerImpl : public Trainer {
 public:
  TrainerImpl(TrainerInputs inputs, ParameterCatalog catalog, TrainingData data,
              ValidationData validation)
      : inputs_(std::move(inputs)),
        data_(std::move(data)),
        validation_(std::move(validation)),
        optimizer_(MakeOptimizer(inputs_.spec.train().optimizer())),
        data_communicator_(inputs_.world->Split(inputs_.mesh.data_ranks(), "data")),
        expert_communicator_(SplitExpertGroups()),
        exchange_(*MakeTokenExchange("flat", expert_communicator_.get())),
        model_(std::make_unique<TrainedModel>(ModelInputs(), std::move(catalog))) {}

  const ParameterCatalog& catalog() const override { return model_->catalog; }
  ParameterStore& store() override { return model_->store; }
  TrainingState& state() override { return state_; }
  const std::vector<int>& checkpoint_writers() const override { return model_->writers; }
  at::Tensor Gradient(ParameterId id) const override { return model_->gradients.Reduced(id); }
  int64_t gradient_bytes() const override { return model_->gradients.bytes(); }

  void InitialiseParameters() override {
    for (const ParameterId id : model_->store.owned()) {
      at::Tensor master = model_->store.master(id);
      Initialise(model_->catalog[id], inputs_.spec.train().seed(), 0, master);
    }
    PublishWeights();
  }

  absl::Status Settle() override;

  void PublishWeights() override {
    for (const ParameterId id : model_->store.owned()) model_->store.RefreshCompute(id);
    model_->gradients.ShareWeights(model_->store);
  }

  absl::StatusOr<StepOutcome> Step(const ControlWord& wish) override;
  absl::StatusOr<ValidationResult> Validate(const ValidationRequest& request) override;

 private:
  using TimePoint = std::chrono::steady_clock::time_point;

  at::ScalarType compute() const {
    return inputs_.spec.train().precision() == BF16 ? at::kBFloat16 : at::kFloat;
  }

  std::unique_ptr<Communicator> SplitExpertGroups() {
    const int group = inputs_.mesh.place(inputs_.rank).expert_group;
    return inputs_.world->Split(inputs_.mesh.expert_ranks(group), absl::StrCat("expert.", group));
  }

  int data_coordinate() const { return inputs_.mesh.place(inputs_.rank).data; }
  MicroBatchPlan PlanFor(const StepPlan& step) const {
    return {.micro_batches = step.micro_batches(), .ranks = inputs_.mesh.size()};
  }

  int LargestPool() const {
    int experts = 0;
    for (const int layer : model_->moe_layers) {
      experts = std::max(experts, model_->catalog.pool_experts(layer));
    }
    return experts;
  }
  StepSums MakeSums(const StepPlan& step) const {
    return StepSums({.micro_batches = step.micro_batches(),
                     .parameters = model_->catalog.size(),
                     .layers = static_cast<int>(model_->moe_layers.size()),
                     .experts = LargestPool()});
  }

  // The rank's micro-batch of a round, read by `read(first sample, count)`.
  template <typename Read>
  absl::StatusOr<MicroBatch> Load(const StepPlan& step, int64_t round, const Read& read) const {
    const MicroBatchPlan plan = PlanFor(step);
    const std::optional<int64_t> id = plan.At(round, data_coordinate());
    MicroBatchPlace place = {.id = id.value_or(-1),
                             .round_ids = RoundIds(inputs_.mesh, inputs_.rank, plan, round)};
    SampleBatch samples;
    if (id.has_value()) {
      place.first_sample = step.sample_begin(*id);
      auto batch = read(place.first_sample, step.samples(*id));
      if (!batch.ok()) return batch.status();
      samples = *std::move(batch);
    }
    return MakeMicroBatch(std::move(samples), inputs_.spec.model().sequence(), std::move(place));
  }

  void At(int64_t micro_batch, const char* phase, const std::string& block = "") const {
    if (!inputs_.progress) return;
    inputs_.progress({.step = state_.step() + 1,
                      .micro_batch = micro_batch,
                      .phase = phase,
                      .block = block});
  }

  // So that a dump names the layer that was waiting.
  TransformerPass::Watch WatchBlocks(int64_t micro_batch, const char* phase) const {
    if (!inputs_.progress) return {};
    return [this, micro_batch, phase](const Block& block) { At(micro_batch, phase, block.name()); };
  }

  void Record(const MicroBatch& batch, const PassScalars& scalars, StepSums& sums) const;
  absl::Status RunRounds(const StepPlan& step, StepSums& sums);
  void ContributeNorms(StepSums& sums) const;
  // Updates before the moments of such a parameter began.
  uint64_t UpdatesBefore(ParameterKind kind) const;
  void Update(double clip_factor);
  at::Tensor Candidates(int layer) const;
  void MoveRouterStates(const StepSums& sums);
  void RecordLoads(const StepSums& sums);
  StepMetrics Metrics(const StepSums& sums, int64_t targets, bool skipped) const;
  RoutingMetrics RoutingOf(const StepSums& sums, bool training) const;
  RecipeMetrics RecipeOf(const StepSums& sums) const;

  TrainedModelInputs ModelInputs() const {
    return {.spec = &inputs_.spec,
            .mesh = &inputs_.mesh,
            .placement = &inputs_.placement,
            .rank = inputs_.rank,
            .data = data_communicator_.get(),
            .exchange = exchange_.get(),
            .compute = compute(),
            .moments = optimizer_->HasMoments()};
  }

  const TrainerInputs inputs_;
  const TrainingData data_;
  const ValidationData validation_;
  const std::unique_ptr<Optimizer> optimizer_;
  const std::unique_ptr<Communicator> data_communicator_;
  const std::unique_ptr<Communicator> expert_communicator_;
  const std::unique_ptr<TokenExchange> exchange_;
  std::unique_ptr<TrainedModel> model_;
  std::vector<double> expert_cosines_;  // of the spawn
  TrainingState state_;
};

void TrainerImpl::Record(const MicroBatch& batch, const PassScalars& scalars,
                         StepSums& sums) const {
  if (batch.id < 0) return;
  sums.SetMicroBatch(batch.id, scalars.loss_sum, scalars.aux_loss);
  for (size_t layer = 0; layer < scalars.routing.size(); ++layer) {
    sums.AddRouting(static_cast<int>(layer), scalars.routing[layer]);
  }
}

absl::Status TrainerImpl::RunRounds(const StepPlan& step, StepSums& sums) {
  const int64_t targets = data_.CountTargets(step.first, step.count);
  const PassOptions options = {
      .training = true,
      .reproducible = inputs_.spec.train().reproducible(),
      .compute = compute(),
      .step = state_.step(),
      .loss_scale = targets > 0 ? 1.0 / static_cast<double>(targets) : 0.0,
      .aux_scale = 1.0 / static_cast<double>(step.micro_batches()),
      .profile = inputs_.profile};
  model_->gradients.BeginStep(
      {.micro_batches = step.micro_batches(), .rounds = PlanFor(step).rounds()});
  for (int64_t round = 0; round < PlanFor(step).rounds(); ++round) {
    auto batch = Load(step, round, [this](int64_t first, int64_t count) {
      return data_.Read(first, count);
    });
    if (!batch.ok()) return batch.status();
    TransformerPass pass(model_->transformer, *batch, options, model_->store);
    pass.RunForward(WatchBlocks(batch->id, "forward"));
    pass.RunBackward(model_->gradients, WatchBlocks(batch->id, "backward"));
    Record(*batch, pass.scalars(), sums);
  }
  return absl::OkStatus();
}

// Each parameter counts once: an expert at its primary, a dense one at a rank that its id chooses.
void TrainerImpl::ContributeNorms(StepSums& sums) const {
  for (const ParameterId id : model_->store.owned()) {
    if (!model_->catalog[id].learnt) continue;
    const bool dense = model_->catalog[id].expert < 0;
    if (dense && id % inputs_.mesh.size() != data_coordinate()) continue;
    sums.SetSquaredNorm(id, SquaredNorm(model_->gradients.Reduced(id)));
  }
}

uint64_t TrainerImpl::UpdatesBefore(ParameterKind kind) const {
  if (kind == ParameterKind::kRouter) return state_.router_updates_from();
  return kind == ParameterKind::kExpert ? state_.expert_updates_from() : 0;
}

void TrainerImpl::Update(double clip_factor) {
  const UpdateScalars scalars = {
      .learning_rate_factor = LearningRateFactor(inputs_.spec.train().schedule(),
                                                 inputs_.spec.train().steps(), state_.step()),
      .gradient_scale = clip_factor,
      .update = state_.optimizer_updates() + 1};
  for (const ParameterId id : model_->store.owned()) {
    const ParameterSpec& parameter = model_->catalog[id];
    if (!parameter.learnt) continue;
    UpdateScalars own = scalars;
    own.update -= UpdatesBefore(parameter.kind);
    optimizer_->Update(parameter, id, model_->gradients.Reduced(id), own, model_->store);
  }
  model_->gradients.ShareWeights(model_->store);
}

// Which experts of its pool a layer may choose in this step; undefined: all.
at::Tensor TrainerImpl::Candidates(int layer) const {
  const SelectSpec& select = inputs_.spec.recipe().router().select();
  if (!select.has_candidates()) return {};
  const int64_t own = model_->catalog.experts(layer);
  return CandidateMask({.rule = &select.candidates(),
                        .seed = inputs_.spec.train().seed(),
                        .step = state_.step(),
                        .layer = layer,
                        .own_begin = own * model_->catalog.PlaceInPool(layer),
                        .own = own,
                        .experts = model_->catalog.pool_experts(layer)});
}

// Counts are equal on all ranks, and so are the states.
void TrainerImpl::MoveRouterStates(const StepSums& sums) {
  const BalanceSpec& balance = inputs_.spec.recipe().router().balance();
  for (size_t i = 0; i < model_->moe_layers.size(); ++i) {
    const int layer = model_->moe_layers[i];
    const auto counts = sums.ExpertCounts(static_cast<int>(i), model_->catalog.pool_experts(layer));
    const auto state_of = [&](const char* name) -> std::span<float> {
      const ParameterId id = model_->catalog.Find(absl::StrCat("layers.", layer, ".moe.", name));
      if (id == kNoParameter) return {};
      const at::Tensor master = model_->store.master(id);
      return {master.mutable_data_ptr<float>(), static_cast<size_t>(master.numel())};
    };
    if (balance.has_bias()) {
      const at::Tensor mask = Candidates(layer);
      const std::span<const bool> candidates =
          mask.defined() ? std::span<const bool>(mask.const_data_ptr<bool>(),
                                                 static_cast<size_t>(mask.numel()))
                         : std::span<const bool>();
      MoveBias(balance.bias(), state_.step(), counts, candidates, state_of("router_bias"));
    }
    const std::span<float> load = state_of("router_load");
    std::copy_n(counts.begin(), load.size(), load.begin());
  }
}

// An expert's load is what all layers of its pool sent to it.
void TrainerImpl::RecordLoads(const StepSums& sums) {
  std::vector<std::vector<double>> loads(model_->catalog.layers());
  for (size_t i = 0; i < model_->moe_layers.size(); ++i) {
    const int layer = model_->moe_layers[i];
    auto counts = sums.ExpertCounts(static_cast<int>(i), model_->catalog.pool_experts(layer));
    for (const int owner : model_->catalog.PoolLayers(layer)) {
      const int own = model_->catalog.experts(owner);
      loads[owner].resize(own);
      for (int e = 0; e < own; ++e) loads[owner][e] += counts[e];
      counts = counts.subspan(own);
    }
  }
  for (const int layer : model_->moe_layers) RecordExpertCounts(layer, loads[layer], &state_);
}

StepMetrics TrainerImpl::Metrics(const StepSums& sums, int64_t targets, bool skipped) const {
  StepMetrics metrics;
  metrics.set_step(state_.step() + 1);
  metrics.set_loss(targets > 0 ? sums.loss_sum() / static_cast<double>(targets) : 0);
  metrics.set_aux_loss(sums.aux_loss());
  metrics.set_grad_norm(sums.gradient_norm());
  metrics.set_lr(optimizer_->base_learning_rate() *
                 LearningRateFactor(inputs_.spec.train().schedule(),
                                    inputs_.spec.train().steps(), state_.step()));
  metrics.set_tokens(targets);
  metrics.set_skipped(skipped);
  const RecipePoint recipe = RecipeAt(inputs_.spec, state_.step());
  metrics.set_phase(recipe.phase);
  if (recipe.phase == DENSE_TO_SPARSE) metrics.set_temperature(recipe.temperature);
  for (size_t i = 0; i < model_->moe_layers.size(); ++i) {
    const auto loads =
        sums.ExpertCounts(static_cast<int>(i), model_->catalog.pool_experts(model_->moe_layers[i]));
    const bool idle = std::ranges::all_of(loads, [](double load) { return load == 0; });
    metrics.add_expert_load_max_over_mean(idle ? 0 : 1 + MaxVio(loads));
  }
  return metrics;
}

RoutingMetrics TrainerImpl::RoutingOf(const StepSums& sums, bool training) const {
  RoutingMetrics metrics;
  for (size_t i = 0; i < model_->moe_layers.size(); ++i) {
    const int layer = model_->moe_layers[i];
    const int pool = model_->catalog.pool_experts(layer);
    const at::Tensor mask = training ? Candidates(layer) : at::Tensor();
    Add({.layer = layer, .candidates = mask.defined() ? mask.sum().item<int64_t>() : pool},
        sums.Routing(static_cast<int>(i), pool), metrics);
  }
  const int64_t row_bytes = inputs_.spec.model().hidden() * at::elementSize(compute());
  metrics.wire_bytes = metrics.wire_rows * row_bytes * (training ? 4 : 2);
  return metrics;
}

RecipeMetrics TrainerImpl::RecipeOf(const StepSums& sums) const {
  double pairs = 0;
  for (size_t i = 0; i < model_->moe_layers.size(); ++i) {
    const int experts = model_->catalog.pool_experts(model_->moe_layers[i]);
    for (const double count : sums.ExpertCounts(static_cast<int>(i), experts)) pairs += count;
  }
  const double tokens =
      static_cast<double>(inputs_.spec.train().global_batch()) * inputs_.spec.model().sequence();
  return {.flops = StepOperations(inputs_.spec, model_->catalog, tokens, pairs)};
}

absl::Status TrainerImpl::Settle() {
  const Experts wanted = ExpertsAt(inputs_.spec, state_.step());
  if (wanted == model_->catalog.which()) return absl::OkStatus();
  if (wanted == Experts::kOne) {
    return absl::FailedPreconditionError(
        absl::StrCat("[spawn] at step ", state_.step(),
                     " the checkpoint has all experts, and the job has one a "
                     "layer until step ",
                     inputs_.spec.recipe().experts().spawn().step(),
                     ": give recipe.experts.spawn.step as it was"));
  }
  if (!inputs_.spec.recipe().experts().has_spawn()) {
    return absl::FailedPreconditionError(
        "[spawn] the checkpoint has one expert a layer, and the job does not say how to make more "
        "of it: give recipe.experts.spawn");
  }
  auto catalog = ParameterCatalog::Build(inputs_.spec, wanted);
  if (!catalog.ok()) return catalog.status();
  const SpawnedFrom from = {&model_->catalog, &model_->store};
  expert_cosines_ = ExpertCosines(inputs_.spec, from, *catalog, *data_communicator_);
  auto spawned = std::make_unique<TrainedModel>(ModelInputs(), *std::move(catalog));
  SpawnExperts(inputs_.spec, from, {&spawned->catalog, &spawned->store});
  model_ = std::move(spawned);
  state_.set_router_updates_from(state_.optimizer_updates());
  if (inputs_.spec.recipe().experts().spawn().moments() == SpawnSpec::ZERO) {
    state_.set_expert_updates_from(state_.optimizer_updates());
  }
  return absl::OkStatus();
}

absl::StatusOr<StepOutcome> TrainerImpl::Step(const ControlWord& wish) {
  const auto begin = std::chrono::steady_clock::now();
  const StepPlan step = {.first = static_cast<int64_t>(state_.samples()),
                         .count = inputs_.spec.train().global_batch(),
                         .micro_batch = inputs_.spec.train().micro_batch()};
  const int64_t targets = data_.CountTargets(step.first, step.count);
  StepSums sums = MakeSums(step);
  StepOutcome outcome;

  if (absl::Status status = RunRounds(step, sums); !status.ok()) return status;
  outcome.times.forward_backward = Seconds(begin);

  const auto reduce_begin = std::chrono::steady_clock::now();
  ProfiledScope scope(inputs_.profile, Part::kReduction);
  At(-1, "reduce");
  model_->gradients.Reduce();
  ContributeNorms(sums);
  if (inputs_.rank == 0) sums.SetControl(wish);
  sums.Reduce(*data_communicator_);
  outcome.times.reduce = Seconds(reduce_begin);

  const auto update_begin = std::chrono::steady_clock::now();
  scope.Switch(Part::kOptimizer);
  At(-1, "update");
  const double norm = sums.gradient_norm();
  const bool skipped = !std::isfinite(norm) || !std::isfinite(sums.loss_sum());
  outcome.metrics = Metrics(sums, targets, skipped);
  outcome.recipe = RecipeOf(sums);
  outcome.routing = RoutingOf(sums, /*training=*/true);
  if (!skipped) {
    Update(ClipFactor(norm, inputs_.spec.train().clip_norm()));
    MoveRouterStates(sums);
  }
  outcome.times.update = Seconds(update_begin);

  state_.set_step(state_.step() + 1);
  state_.set_samples(state_.samples() + step.count);
  state_.set_tokens(state_.tokens() + targets);
  state_.set_loss(outcome.metrics.loss());
  RecordLoads(sums);
  if (skipped) {
    state_.add_skipped_steps(state_.step());
  } else {
    state_.set_optimizer_updates(state_.optimizer_updates() + 1);
  }
  if (ExpertsAt(inputs_.spec, state_.step()) != model_->catalog.which()) {
    At(-1, "spawn");
    if (absl::Status status = Settle(); !status.ok()) return status;
    PublishWeights();
    outcome.recipe.expert_cosine = expert_cosines_;
  }
  outcome.control = sums.control();
  outcome.metrics.set_seconds(Seconds(begin));
  outcome.metrics.set_tokens_per_second(static_cast<double>(targets) / Seconds(begin));
  return outcome;
}

absl::StatusOr<ValidationResult> TrainerImpl::Validate(const ValidationRequest& request) {
  const auto available = static_cast<uint64_t>(validation_.samples());
  const StepPlan step = {
      .first = 0,
      .count = static_cast<int64_t>(request.samples == 0 ? available
                                                         : std::min(request.samples, available)),
      .micro_batch = inputs_.spec.train().micro_batch()};
  if (step.count == 0) {
    return absl::NotFoundError("[validate] the job has no validation data: give data.validation");
  }
  const PassOptions options = {.training = false,
                               .reproducible = inputs_.spec.train().reproducible(),
                               .compute = compute(),
                               .note_best = true,
                               .ablation = request.ablation};
  StepSums sums = MakeSums(step);
  BestExpertPairs pairs(model_->moe_layers, LargestPool());
  for (int64_t round = 0; round < PlanFor(step).rounds(); ++round) {
    auto batch = Load(step, round, [this](int64_t first, int64_t count) {
      return validation_.Read(first, count);
    });
    if (!batch.ok()) return batch.status();
    TransformerPass pass(model_->transformer, *batch, options, model_->store);
    pass.RunForward(WatchBlocks(batch->id, "validate"));
    Record(*batch, pass.scalars(), sums);
    if (batch->id >= 0) pairs.Add(pass.scalars().routing);
  }
  sums.Reduce(*data_communicator_);
  data_communicator_->AllReduceSum(pairs.counts().data(),
                                   static_cast<int64_t>(pairs.counts().size()),
                                   ElementType::kFloat64);
  const int64_t targets = validation_.CountTargets(0, step.count);
  return ValidationResult{
      .loss = targets > 0 ? sums.loss_sum() / static_cast<double>(targets) : 0.0,
      .samples = static_cast<uint64_t>(step.count),
      .routing = {.routing = RoutingOf(sums, /*training=*/false),
                  .information = pairs.Information()}};
}

absl::Status CheckMesh(const TrainerInputs& inputs) {
  if (inputs.mesh.size() == inputs.world->size()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("[trainer] the rank table names ", inputs.mesh.size(), " ranks but ",
                   inputs.world->size(), " were started"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Trainer>> Trainer::Create(TrainerInputs inputs) {
  if (absl::Status status = CheckMesh(inputs); !status.ok()) return status;
  auto catalog = ParameterCatalog::Build(
      inputs.spec, inputs.experts.value_or(ExpertsAt(inputs.spec, /*step=*/0)));
  if (!catalog.ok()) return catalog.status();
  const SampleShape shape = {.sequence = inputs.spec.model().sequence(),
                             .vocabulary = inputs.spec.model().vocabulary(),
                             .document_boundaries = inputs.spec.data().document_boundaries()};
  auto data = TrainingData::Open(inputs.spec.data(), shape, inputs.spec.train().seed());
  if (!data.ok()) return data.status();
  auto validation = ValidationData::Open(inputs.spec.data(), shape, /*limit=*/0);
  if (!validation.ok()) return validation.status();
  return std::make_unique<TrainerImpl>(std::move(inputs), *std::move(catalog), *std::move(data),
                                       *std::move(validation));
}

}  // namespace moesaic
