// Gradients of one step: where blocks write them, and their SUM over the ranks that computed parts.
// Two kinds, for the two modes of training: gradient_buckets.h (fast) and gradient_tree.h
// (reproducible). Nothing here divides: the loss was scaled before the first backward.
//
// Parameters are known by their position in the list given at creation, which is equal on all ranks
// (the whole catalog, also what this rank does not hold).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moesaic {

struct HeldParameter {
  int64_t elements = 0;
  int uses = 1;  // times a pass uses it: leaves a micro-batch
  // Ranks of the `data` communicator that hold the parameter, the primary first (Mesh::DataOf of
  // ExpertPlacement::holders). Empty: the dense part, held and stepped by every rank.
  std::vector<int> holders = {};
};

bool IsDense(const HeldParameter& parameter);
bool IsHeldBy(const HeldParameter& parameter, int rank);
// Elements rounded up to whole 64-byte lines of fp32.
int64_t PaddedElements(int64_t elements);

struct GradientStep {
  int64_t micro_batches = 0;  // of the step, over all ranks
  // Rounds of the step, equal on all ranks. In fast mode, a bucket may be reduced as soon as each
  // of its (parameter, use) has been closed this often.
  int64_t rounds = 0;
};

struct GradientSlot {
  at::Tensor gradient;      // fp32 [elements], contiguous, 64-byte aligned: write here
  bool accumulate = false;  // add to what is there, instead of overwriting it
};

// Thread-compatible. BeginStep and Reduce are collective over the `data` communicator. All methods
// but Gradient take only parameters that this rank holds. TORCH_CHECKs its callers.
class GradientReducer {
 public:
  virtual ~GradientReducer() = default;

  // Forgets the last step.
  virtual void BeginStep(const GradientStep& step) = 0;

  // One leaf. Between Open and Close no other leaf of the same (parameter, use, micro-batch) is
  // open.
  virtual GradientSlot Open(int parameter, int use, int64_t micro_batch) = 0;
  virtual void Close(int parameter, int use, int64_t micro_batch) = 0;
  // Instead of Open and Close: the leaf is zero. To say so is not needed, but lets sums that wait
  // for it go on.
  virtual void Skip(int parameter, int use, int64_t micro_batch) = 0;

  // Sums over ranks; what was never opened counts as zero. Called once a step, by every rank.
  virtual void Reduce() = 0;

  // After Reduce: the step's gradient, fp32 [elements], of a dense parameter (any rank) or of one
  // whose primary this rank is. Valid, and may be scaled in place, until the next BeginStep.
  virtual at::Tensor Gradient(int parameter) const = 0;

  // The most memory that it has had at once, in bytes.
  virtual int64_t bytes() const = 0;
};

}  // namespace moesaic
