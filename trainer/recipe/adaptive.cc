#include "trainer/recipe/adaptive.h"

#include "trainer/recipe/top_k.h"

namespace moesaic {

RecipeSpec AdaMoeRecipe() {
  RecipeSpec recipe = TopKRecipe();
  recipe.mutable_experts()->set_null_experts(8);
  return recipe;
}

RecipeSpec TopPRecipe() {
  RecipeSpec recipe = TopKRecipe();
  RouterSpec& router = *recipe.mutable_router();
  router.mutable_select()->set_top_p(0.4);
  router.mutable_weight()->set_renormalize(false);
  router.mutable_balance()->set_entropy(1e-4);
  return recipe;
}

}  // namespace moesaic
