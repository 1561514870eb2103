// What a recipe is at a step: a function of the job's recipe and the step number alone, so that every
// rank, and every resume, has the same.
#pragma once

#include <cstdint>
#include <optional>

#include "proto/job.pb.h"

namespace moesaic {

// alpha of the balance loss (trainer/model/router/balance.h).
double BalanceCoefficientAt(const BalanceSpec& balance, uint64_t step);

// Steps are 0-based: what is asked for is the step that comes after `step` steps.
class RecipeSchedule {
 public:
  RecipeSchedule() = default;  // always steady
  explicit RecipeSchedule(const RecipeSpec& recipe);  // resolved

  RecipePhase PhaseAt(uint64_t step) const;

  // tau of the dense-to-sparse gate (EvoMoE's public code has these two schedules), with t counted
  // from the step at which the experts are there and D decay steps:
  //   linear:       max(first - t / D * (first - last), last)
  //   exponential:  max(first * (last / first)^(t / D), last)
  // 1 where there is no such gate.
  double TemperatureAt(uint64_t step) const;

 private:
  uint64_t spawn_step_ = 0;  // 0: the experts are there from the first step on
  std::optional<DenseToSparseSpec> gate_;
};

}  // namespace moesaic
