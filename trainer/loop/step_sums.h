// StepSums: the one small collective at the end of a step. Every entry has exactly one contributor
// (or is an integer count), so the sum is exact in any order, and all ranks then compute the same
// loss, norm, skip decision and control word from the same numbers in a fixed order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/comm/communicator.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/metrics/layer_routing.h"

namespace moesaic {

// What rank 0 wants of this step, spread to all ranks so that they obey at the same step.
struct ControlWord {
  bool stop = false;        // snapshot after this step, then leave
  bool snapshot = false;    // snapshot after this step
  bool hold_snapshots = false;  // both buffers are in use: take none
};

struct StepSumsShape {
  int64_t micro_batches = 0;
  int parameters = 0;
  int layers = 0;
  int experts = 0;  // the largest number of experts of a layer
};

// Thread-compatible.
class StepSums {
 public:
  explicit StepSums(const StepSumsShape& shape);

  // Contributions of this rank. `micro_batch` is one that this rank ran.
  void SetMicroBatch(int64_t micro_batch, double loss_sum, double aux_loss);
  // One micro-batch of a MoE layer; `best` is not looked at.
  void AddRouting(int layer, const LayerRouting& routing);
  // Sum of squares of a reduced gradient; from exactly one of its holders.
  void SetSquaredNorm(ParameterId id, double sum);
  void SetControl(const ControlWord& word);  // rank 0 only

  // Collective over the data communicator.
  void Reduce(Communicator& data);

  // After Reduce; equal on every rank.
  double loss_sum() const;  // over the step's targets, micro-batches added in order of id
  double aux_loss() const;  // mean over the micro-batches
  // Global gradient norm: square root of the parameters' sums, added in order of id.
  double gradient_norm() const;
  // Tokens that chose each of the first `experts` experts of a MoE layer, in the step.
  std::span<const double> ExpertCounts(int layer, int experts) const;
  // The counts of a MoE layer in the step; its pool has `experts`.
  LayerRouting Routing(int layer, int experts) const;
  ControlWord control() const;

 private:
  double& At(int64_t offset, int64_t index) { return values_[offset + index]; }
  int64_t LayerBegin(int layer) const { return count_begin_ + int64_t{layer} * layer_words_; }

  StepSumsShape shape_;
  int64_t aux_begin_, norm_begin_, count_begin_, layer_words_, control_begin_;
  std::vector<double> values_;
};

}  // namespace moesaic
