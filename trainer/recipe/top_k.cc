#include "trainer/recipe/top_k.h"

namespace moesaic {

RecipeSpec TopKRecipe() {
  RecipeSpec recipe;
  RouterSpec& router = *recipe.mutable_router();
  router.set_score(SOFTMAX);
  router.mutable_weight()->set_renormalize(true);
  router.mutable_weight()->set_scale(1);
  router.mutable_balance()->set_coefficient(0.01);
  router.mutable_balance()->set_z_loss(0);
  return recipe;
}

}  // namespace moesaic
