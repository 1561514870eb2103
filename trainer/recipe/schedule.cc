#include "trainer/recipe/schedule.h"

#include <algorithm>
#include <cmath>

namespace moesaic {

double BalanceCoefficientAt(const BalanceSpec& balance, uint64_t step) {
  const bool later = balance.has_later() && step >= balance.later().step();
  return later ? balance.later().coefficient() : balance.coefficient();
}

RecipeSchedule::RecipeSchedule(const RecipeSpec& recipe) {
  if (recipe.experts().has_spawn()) spawn_step_ = recipe.experts().spawn().step();
  const SelectSpec& select = recipe.router().select();
  if (select.has_dense_to_sparse()) gate_ = select.dense_to_sparse();
}

RecipePhase RecipeSchedule::PhaseAt(uint64_t step) const {
  if (step < spawn_step_) return ONE_EXPERT;
  if (!gate_) return STEADY;
  return step < gate_->hard_step() ? DENSE_TO_SPARSE : TOP_1;
}

double RecipeSchedule::TemperatureAt(uint64_t step) const {
  if (!gate_) return 1;
  const double first = gate_->temperature(), last = gate_->final_temperature();
  if (step <= spawn_step_) return first;
  const double share =
      static_cast<double>(step - spawn_step_) / static_cast<double>(gate_->decay_steps());
  if (share >= 1) return last;
  const double now = gate_->schedule() == DenseToSparseSpec::LINEAR
                         ? first - share * (first - last)
                         : first * std::pow(last / first, share);
  return std::max(now, last);
}

}  // namespace moesaic
