#include "trainer/recipe/evomoe.h"

namespace moesaic {

RecipeSpec EvoMoeRecipe() {
  RecipeSpec recipe;
  recipe.mutable_experts()->mutable_spawn()->set_mask(0.3);
  RouterSpec& router = *recipe.mutable_router();
  router.set_score(SOFTMAX);
  DenseToSparseSpec& gate = *router.mutable_select()->mutable_dense_to_sparse();
  gate.set_temperature(2);
  gate.set_final_temperature(0.3);
  gate.set_schedule(DenseToSparseSpec::LINEAR);
  router.mutable_weight()->set_renormalize(false);
  router.mutable_weight()->set_scale(1);
  router.mutable_balance()->set_coefficient(0.01);
  return recipe;
}

}  // namespace moesaic
