#include "trainer/recipe/rexmoe.h"

namespace moesaic {

RecipeSpec ReXMoeRecipe() {
  RecipeSpec recipe;
  recipe.mutable_experts()->set_reuse(4);
  RouterSpec& router = *recipe.mutable_router();
  router.set_score(SOFTMAX);
  CandidatesSpec& candidates = *router.mutable_select()->mutable_candidates();
  candidates.set_mode(LOCAL_FIRST);
  candidates.set_schedule(LINEAR);
  router.mutable_weight()->set_renormalize(false);
  router.mutable_weight()->set_scale(1);
  router.mutable_balance()->set_coefficient(0.01);
  return recipe;
}

}  // namespace moesaic
