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
      layer_words_(LayerRoutingWords(shape.experts)),
      control_begin_(count_begin_ + int64_t{shape.layers} * layer_words_),
      values_(control_begin_ + kControlWords) {}

void StepSums::SetMicroBatch(int64_t micro_batch, double loss_sum, double aux_loss) {
  At(0, micro_batch) = loss_sum;
  At(aux_begin_, micro_batch) = aux_loss;
}

void StepSums::AddRouting(int layer, const LayerRouting& routing) {
  const auto add = [this](int64_t at, int64_t count) { values_[at] += static_cast<double>(count); };
  int64_t at = LayerBegin(layer);
  for (size_t expert = 0; expert < routing.counts.size(); ++expert) {
    add(at + expert, routing.counts[expert]);
  }
  at += shape_.experts;
  for (size_t active = 0; active < routing.fan_out.size(); ++active) {
    add(at + active, routing.fan_out[active]);
  }
  at += shape_.experts + 1;
  for (const int64_t word :
       {routing.nulls, routing.dropped, routing.wire_rows, routing.entropy}) {
    add(at++, word);
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
  return std::span(values_).subspan(LayerBegin(layer), experts);
}

LayerRouting StepSums::Routing(int layer, int experts) const {
  const auto counts = ExpertCounts(layer, experts);
  const auto fan_out =
      std::span(values_).subspan(LayerBegin(layer) + shape_.experts, experts + 1);
  const double* words = &values_[LayerBegin(layer) + 2 * shape_.experts + 1];
  return {.counts = {counts.begin(), counts.end()},
          .fan_out = {fan_out.begin(), fan_out.end()},
          .nulls = static_cast<int64_t>(words[0]),
          .dropped = static_cast<int64_t>(words[1]),
          .wire_rows = static_cast<int64_t>(words[2]),
          .entropy = static_cast<int64_t>(words[3]),
          .best = {}};
}

ControlWord StepSums::control() const {
  return {values_[control_begin_] != 0, values_[control_begin_ + 1] != 0,
          values_[control_begin_ + 2] != 0};
}

}  // namespace moesaic
