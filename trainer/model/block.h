// Block: the unit a model is built from, a pipeline splits at, and recomputation and prefetch work
// on. A block owns no tensors: it leases weights in each pass and reports gradients to a sink.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "trainer/catalog/parameter_catalog.h"
#include "trainer/metrics/layer_routing.h"
#include "trainer/model/ablation.h"
#include "trainer/model/profile.h"

namespace moesaic {

// What flows between blocks and is what pipeline stages send.
struct Bundle {
  at::Tensor hidden;        // [tokens, hidden], compute dtype; tokens = sequences * sequence length
  at::Tensor router_state;  // [tokens, p] fp32, or undefined where no recipe carries one
};

// Where blocks find compute weights. Implemented by the parameter store; later by storage tiers.
class WeightSource {
 public:
  virtual ~WeightSource() = default;
  // The compute weight, of the parameter's shape, contiguous, in the compute dtype (fp32 where the
  // catalog says so). Valid while the returned tensor lives; a block drops it before it returns.
  virtual at::Tensor Lease(ParameterId id) = 0;
};

// Where blocks report gradients. A bucket is ready when all blocks that use its parameters have
// reported, whether or not they had tokens.
class GradientSink {
 public:
  virtual ~GradientSink() = default;
  struct Slot {
    at::Tensor gradient;      // fp32, the parameter's shape, contiguous: write here
    bool accumulate = false;  // add to what is there, instead of overwriting it
  };
  // One gradient leaf: of parameter `id`, its `use` (0-based, ParameterSpec::uses of them) and
  // logical micro-batch `micro_batch`. In fast mode slots of all micro-batches are one view, and an
  // expert's leaf may stand for several micro-batches (`micro_batch` is then the lowest).
  virtual Slot Open(ParameterId id, int use, int64_t micro_batch) = 0;
  // The slot has been written.
  virtual void Close(ParameterId id, int use, int64_t micro_batch) = 0;
  // Instead of both: the leaf is zero. (One of which nothing is ever said counts as zero, too.)
  virtual void Skip(ParameterId id, int use, int64_t micro_batch) = 0;
};

// One logical micro-batch (or, with zero sequences, this rank's part in a round where it has none).
struct MicroBatch {
  int64_t id = -1;                        // -1: none in this round
  // Of its first sequence, in the order of the training data: what is drawn at random for a
  // sequence depends on it, whatever the layout.
  int64_t first_sample = 0;
  // Micro-batch ids of all ranks of the expert communicator in this round; -1: none.
  std::vector<int64_t> round_ids;
  int64_t sequences = 0;
  int64_t length = 0;                     // tokens a sequence
  at::Tensor tokens;                      // int64 [sequences * length]
  at::Tensor targets;                     // int64 [sequences * length]; -1: not a target
  // int32 [sequences * length]: for each token, the position in its sequence where its document
  // starts; attention looks no further back. Undefined: no boundaries.
  at::Tensor document_starts;
};

// Scalars that a pass produces beside the bundle.
struct PassScalars {
  double loss_sum = 0;      // LM loss summed over the micro-batch's targets
  double aux_loss = 0;      // auxiliary losses of the micro-batch, layers summed
  int64_t targets = 0;
  std::vector<LayerRouting> routing;  // by MoE layer
  // By MoE layer, by expert: the sum of the tokens' probabilities; empty where no loss is over the
  // layers of a pool.
  std::vector<std::vector<double>> probability_sums;
};

struct PassOptions {
  bool training = true;       // keep what backward needs; capacity limits hold in training only
  bool reproducible = false;  // expert products by (expert, micro-batch) segment
  at::ScalarType compute = at::kFloat;
  bool note_best = false;     // fill LayerRouting::best
  uint64_t step = 0;          // 0-based: schedules of the recipe depend on it
  Ablation ablation = {};     // not in training
  // Factors that make a SUM over everything the step's gradient (design: "nothing divides later"):
  double loss_scale = 1;      // of each target's loss: 1 / global target tokens of the step
  double aux_scale = 1;       // of each micro-batch's aux loss: 1 / micro-batches of the step
  Profile* profile = nullptr; // where the time goes is noted here; may be null
};

// What a block keeps from forward to backward. Blocks derive their own.
struct SavedForBackward {
  virtual ~SavedForBackward() = default;
};

// One pass of one micro-batch through one block. Holds what backward needs, until it is destroyed.
struct PassContext {
  const MicroBatch* micro_batch = nullptr;
  const PassOptions* options = nullptr;
  WeightSource* weights = nullptr;
  PassScalars* scalars = nullptr;
  std::unique_ptr<SavedForBackward> saved;
};

// Immutable after construction (state of a pass is in PassContext), so one block may have several
// passes in flight. All ranks of an expert group call the blocks with experts in the same order.
class Block {
 public:
  virtual ~Block() = default;
  virtual const std::string& name() const = 0;
  virtual std::vector<ParameterId> parameters() const = 0;

  virtual Bundle Forward(const Bundle& in, PassContext& context) = 0;
  // d(scaled total loss)/d(out) -> d/d(in). Also leaves in `context.saved` what BackwardWeight
  // needs.
  virtual Bundle BackwardInput(const Bundle& grad_out, PassContext& context) = 0;
  // Reports a leaf for every parameter and use of the block that this rank computes; called once,
  // after BackwardInput.
  virtual void BackwardWeight(PassContext& context, GradientSink& sink) = 0;
};

}  // namespace moesaic
