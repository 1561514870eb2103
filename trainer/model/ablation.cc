#include "trainer/model/ablation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace moesaic {

absl::Status CheckAblation(const JobSpec& spec, const Ablation& ablation) {
  const MoeSpec& moe = spec.model().moe();
  const bool nothing = ablation.skip_best == 0 && ablation.active == 0 && ablation.shared;
  if (nothing) return absl::OkStatus();
  if (!spec.model().has_moe()) {
    return absl::InvalidArgumentError("[eval] the model has no experts to leave out");
  }
  if (!ablation.shared && moe.shared_width() == 0) {
    return absl::InvalidArgumentError("[eval] the model has no shared expert to leave out");
  }
  if (ablation.skip_best < 0 || ablation.active < 0) {
    return absl::InvalidArgumentError("[eval] a number of experts is below 0");
  }
  const SelectSpec& select = spec.recipe().router().select();
  const int64_t experts = moe.experts();
  const int64_t groups = std::max<int64_t>(1, select.groups());
  const int64_t in_reach =
      select.has_group_limit() ? experts / groups * select.group_limit() : experts;
  const int64_t choices = in_reach + spec.recipe().experts().null_experts();
  const int64_t active = ablation.active > 0 ? ablation.active : int64_t{moe.active()};
  if (ablation.skip_best + active > choices) {
    return absl::InvalidArgumentError(
        absl::StrCat("[eval] ", active, " experts a token without the best ", ablation.skip_best,
                     " want more than the ", choices, " that it may choose from"));
  }
  return absl::OkStatus();
}

}  // namespace moesaic
