// Ablation: what a validation pass leaves out of a trained model, to see how much it was worth
// (DeepSeekMoE, arXiv 2401.06066, section 4.5). Nothing is left out by default.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "proto/job.pb.h"

namespace moesaic {

struct Ablation {
  int64_t skip_best = 0;  // so many of what a token likes best in each layer cannot be chosen
  int64_t active = 0;     // what a token chooses at most; 0: as the job says
  bool shared = true;     // shared experts compute
};

// InvalidArgument: a resolved job's layers have nothing of that kind, or too few experts to choose
// from are left.
absl::Status CheckAblation(const JobSpec& spec, const Ablation& ablation);

}  // namespace moesaic
