#include "trainer/recipe/deepseek_moe.h"

namespace moesaic {
namespace {

RecipeSpec SoftmaxGate() {
  RecipeSpec recipe;
  RouterSpec& router = *recipe.mutable_router();
  router.set_score(SOFTMAX);
  router.mutable_weight()->set_renormalize(false);
  router.mutable_weight()->set_scale(1);
  return recipe;
}

}  // namespace

RecipeSpec DeepSeekMoeRecipe() {
  RecipeSpec recipe = SoftmaxGate();
  recipe.mutable_experts()->set_segments(4);
  recipe.mutable_experts()->set_shared(1);
  recipe.mutable_router()->mutable_balance()->set_coefficient(0.01);
  return recipe;
}

RecipeSpec DeepSeekV2Recipe() {
  RecipeSpec recipe = SoftmaxGate();
  BalanceSpec& balance = *recipe.mutable_router()->mutable_balance();
  balance.set_scope(SEQUENCE);
  balance.set_coefficient(0.003);
  return recipe;
}

RecipeSpec DeepSeekV3Recipe() {
  RecipeSpec recipe;
  RouterSpec& router = *recipe.mutable_router();
  router.set_score(SIGMOID);
  router.mutable_select()->set_group_score(TOP_SUM);
  router.mutable_weight()->set_renormalize(true);
  router.mutable_weight()->set_scale(2.5);
  BalanceSpec& balance = *router.mutable_balance();
  balance.set_scope(SEQUENCE);
  balance.set_coefficient(1e-4);
  balance.mutable_bias()->set_rule(SIGN);
  balance.mutable_bias()->set_speed(0.001);
  return recipe;
}

}  // namespace moesaic
