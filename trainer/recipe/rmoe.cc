#include "trainer/recipe/rmoe.h"

#include "trainer/recipe/top_k.h"

namespace moesaic {

RecipeSpec RMoeRecipe() {
  RecipeSpec recipe = TopKRecipe();
  recipe.mutable_router()->mutable_state()->set_width(128);
  recipe.mutable_router()->mutable_state()->set_mode(CARRY);
  return recipe;
}

}  // namespace moesaic
