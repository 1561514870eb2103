// Recipes: named presets of the orthogonal parts of `recipe` in the job file, and what a recipe is
// at a given step. Pure: functions of the job and the step number alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "proto/job.pb.h"
#include "proto/job_spec.h"
#include "trainer/recipe/schedule.h"

namespace moesaic {

// The presets that recipe.preset may name, in the order of the table.
std::vector<std::string> RecipePresets();

// Fills every unset field of `recipe` with the value of the preset that recipe.preset names (unset:
// "top_k"); a field that is given stays. Then applies recipe.experts to model.moe. Call it before
// ApplyDefaults, which would fill the same fields with general defaults. Idempotent. What is wrong
// with these parts; empty: nothing.
std::vector<JobProblem> ApplyPreset(JobSpec* spec);

// What a recipe is at one step.
struct RecipePoint {
  RecipePhase phase = STEADY;
  double temperature = 1;   // of a dense-to-sparse gate
  RouterSpec router;        // resolved
  RecipeSchedule schedule;  // and what it is at others
};

// `spec` must have passed ApplyPreset and ApplyDefaults.
RecipePoint RecipeAt(const JobSpec& spec, uint64_t step);

}  // namespace moesaic
