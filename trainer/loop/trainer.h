// Trainer: one rank's share of training, without a cluster around it. It owns the model, the
// parameters, the data and the gradient path, and runs steps; the worker (worker.h) adds the
// coordinator, checkpoints and files. Tests run it with ranks as threads.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/checkpoint.pb.h"
#include "proto/coordinator.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/loop/step_sums.h"
#include "trainer/loop/watchdog.h"
#include "trainer/metrics/metrics_file.h"
#include "trainer/model/ablation.h"
#include "trainer/model/profile.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

struct TrainerInputs {
  JobSpec spec;                  // resolved and valid
  Mesh mesh;
  ExpertPlacement placement;
  int rank = 0;                  // in the mesh
  Communicator* world = nullptr; // of all ranks, by rank; must outlive the trainer
  // Told where the loop is, on its thread, a few times a micro-batch; may be empty.
  std::function<void(const LoopPlace&)> progress = {};
  Profile* profile = nullptr;    // where the time goes is noted here; may be null
  // Of the parameters that it begins with. Unset: of step 0. A restore says what it has
  // (StoredExperts), which may come from before a spawn that the job has earlier.
  std::optional<Experts> experts = {};
};

// Seconds of this rank's step, by part.
struct StepTimes {
  double forward_backward = 0;
  double reduce = 0;
  double update = 0;
};

struct StepOutcome {
  StepMetrics metrics;   // equal on every rank but `seconds`
  RecipeMetrics recipe;    // equal on every rank
  RoutingMetrics routing;  // equal on every rank
  ControlWord control;   // what rank 0 wished, on every rank
  StepTimes times;
};

struct ValidationRequest {
  uint64_t samples = 0;    // from the start; 0: all; as many as there are at most
  Ablation ablation = {};  // that CheckAblation has passed
};

struct ValidationResult {
  double loss = 0;       // mean over the targets, in nats
  uint64_t samples = 0;
  ValidationRouting routing = {};
};

// Thread-compatible. Step, Validate, Settle and PublishWeights are collective.
//
// A step may end in other parameters (recipe.experts.spawn): catalog(), store() and
// checkpoint_writers() are then others, and what they gave before is gone.
class Trainer {
 public:
  // InvalidArgument: the job does not fit the mesh. NotFound, DataLoss: token files. Parameters are
  // zero until InitialiseParameters or a restore into store().
  static absl::StatusOr<std::unique_ptr<Trainer>> Create(TrainerInputs inputs);
  virtual ~Trainer() = default;

  virtual const ParameterCatalog& catalog() const = 0;
  virtual ParameterStore& store() = 0;
  // Mutable, so that a restore can set it.
  virtual TrainingState& state() = 0;
  // Who writes which parameter (trainer/catalog/write_plan.h).
  virtual const std::vector<int>& checkpoint_writers() const = 0;

  // Random masters by the catalogue's rule, and the compute weights of everything held.
  virtual void InitialiseParameters() = 0;
  // After a restore: the parameters that the job has at state().step(). FailedPrecondition: what
  // was restored cannot become them. PublishWeights has to follow.
  virtual absl::Status Settle() = 0;
  // Compute weights of everything held, from the owners' masters (collective). After a restore.
  virtual void PublishWeights() = 0;

  // One optimizer step on the next global batch. `wish` counts at rank 0 only. A non-finite loss or
  // gradient skips the update everywhere (metrics.skipped). DataLoss: the token files.
  virtual absl::StatusOr<StepOutcome> Step(const ControlWord& wish) = 0;

  // NotFound when the job has no validation data. The parameters and the state stay as they are.
  virtual absl::StatusOr<ValidationResult> Validate(const ValidationRequest& request) = 0;

  // Owned parameters, after a Step (but one that ended in other parameters): the summed gradient
  // before clipping. For tests and diagnosis.
  virtual at::Tensor Gradient(ParameterId id) const = 0;
  // The most memory that gradients have had at once on this rank. For tests and diagnosis.
  virtual int64_t gradient_bytes() const = 0;
};

}  // namespace moesaic
