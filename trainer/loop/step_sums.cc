#include "trainer/loop/step_sums.h"

#include <algorithm>
#include <cmath>

namespace moesaic {
namespace {

constexpr int kControlWords = 3;

}  // namespace

StepSums::StepSums(const StepSumsShape& shape)
    : shape_(shape),
      aux_begin_(shape.micro_batches),
      norm_begin_(aux_begin_ + shape.micro_batches),
      count_begin_(norm_begin_ + shape.parameters),
      control_begin_(count_begin_ + int64_t{shape.layers} * shape.experts),
      values_(control_begin_ + kControlWords) {}

void StepSums::SetMicroBatch(int64_t micro_batch, double loss_sum, double aux_loss) {
  At(0, micro_batch) = loss_sum;
  At(aux_begin_, micro_batch) = aux_loss;
}

void StepSums::AddExpertCounts(int layer, std::span<const int64_t> counts) {
  for (size_t expert = 0; expert < counts.size(); ++expert) {
    At(count_begin_ + int64_t{layer} * shape_.experts, expert) +=
        static_cast<double>(counts[expert]);
  }
}

void StepSums::SetSquaredNorm(ParameterId id, double sum) { At(norm_begin_, id) = sum; }

void StepSums::SetControl(const ControlWord& word) {
  At(control_begin_, 0) = word.stop;
  At(control_begin_, 1) = word.snapshot;
  At(control_begin_, 2) = word.hold_snapshots;
}

void StepSums::Reduce(Communicator& data) {
  data.AllReduceSum(values_.data(), static_cast<int64_t>(values_.size()), ElementType::kFloat64);
}

double StepSums::loss_sum() const {
  double sum = 0;
  for (int64_t i = 0; i < shape_.micro_batches; ++i) sum += values_[i];
  return sum;
}

double StepSums::aux_loss() const {
  double sum = 0;
  for (int64_t i = 0; i < shape_.micro_batches; ++i) sum += values_[aux_begin_ + i];
  return sum / static_cast<double>(shape_.micro_batches);
}

double StepSums::gradient_norm() const {
  double sum = 0;
  for (int id = 0; id < shape_.parameters; ++id) sum += values_[norm_begin_ + id];
  return std::sqrt(sum);
}

std::span<const double> StepSums::ExpertCounts(int layer, int experts) const {
  return std::span(values_).subspan(count_begin_ + int64_t{layer} * shape_.experts, experts);
}

double StepSums::LoadMaxOverMean(int layer, int experts) const {
  double sum = 0, highest = 0;
  for (const double count : ExpertCounts(layer, experts)) {
    sum += count;
    highest = std::max(highest, count);
  }
  return sum > 0 ? highest * experts / sum : 0;
}

ControlWord StepSums::control() const {
  return {values_[control_begin_] != 0, values_[control_begin_ + 1] != 0,
          values_[control_begin_ + 2] != 0};
}

}  // namespace moesaic
