// EvoMoE (arXiv 2112.14397): its one expert and its gate, by themselves and inside models. The
// spawn is in tests/trainer/loop/spawn_test.cc, the schedules in
// tests/trainer/recipe/schedule_test.cc, and that layouts and resumes change nothing in
// tests/equivalence/evomoe_test.cc.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <map>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/model/router/gate.h"
#include "trainer/model/router/router.h"
#include "trainer/model/router/select.h"

namespace moesaic {
namespace {

constexpr int64_t kTokens = 48;
constexpr int64_t kExperts = 8;
constexpr uint64_t kDense = 3;  // a step of each phase
constexpr uint64_t kHard = 60;

at::Tensor RandomLogits(int64_t tokens, int64_t experts, uint64_t seed = 1) {
  return at::randn({tokens, experts}, at::make_generator<at::CPUGeneratorImpl>(seed), at::kFloat);
}

// A gate from the first step to step 50. `gate` is textproto of it.
JobSpec GateJob(const std::string& gate, const std::string& more = "") {
  return SmallJob(absl::StrCat(
      "model { moe { active: 1 } } train { steps: 100 } recipe { router { score: SOFTMAX "
      "weight { renormalize: false } balance { coefficient: 0.25 } select { dense_to_sparse { ",
      gate, " } } } } ", more));
}

Router RouterOf(const JobSpec& spec, int64_t experts = kExperts, uint64_t seed = 5) {
  return Router({.rule = spec.recipe().router(),
                 .experts = experts,
                 .active = 1,
                 .seed = seed,
                 .layer = 2,
                 .schedule = RecipeSchedule(spec.recipe())});
}

Router SwitchRouter(int64_t experts = kExperts) {
  const JobSpec spec = SmallJob(
      "model { moe { active: 1 } } recipe { router { weight { renormalize: false } "
      "balance { coefficient: 0.25 } } }");
  return Router({.rule = spec.recipe().router(), .experts = experts, .active = 1});
}

// At one temperature.
std::string Constant(double temperature, const std::string& more = "") {
  return absl::StrCat("temperature: ", temperature, " final_temperature: ", temperature, " ", more);
}

RouteInputs Inputs(const at::Tensor& logits, uint64_t step = kDense) {
  return {.logits = logits, .sequences = 4, .first_sample = 8, .step = step};
}

std::vector<int64_t> FanOuts(const at::Tensor& selected) {
  const at::Tensor counts = selected.ge(0).sum(1);
  return {counts.data_ptr<int64_t>(), counts.data_ptr<int64_t>() + counts.numel()};
}

void ExpectSameRouting(const Routing& a, const Routing& b) {
  EXPECT_TRUE(at::equal(a.expert, b.expert));
  EXPECT_TRUE(at::equal(a.weight, b.weight));
  EXPECT_EQ(a.counts, b.counts);
  EXPECT_EQ(a.aux_loss, b.aux_loss);
}

// ---- One expert
// ----------------------------------------------------------------------------------

// What a training pass computes.
struct PassResult {
  double loss = 0;
  double aux_loss = 0;
  std::map<std::string, at::Tensor> gradients;
};

PassResult RunPass(const SingleRankModel& model, const std::vector<at::Tensor>& weights,
                   const MicroBatch& batch, uint64_t step = 0, bool training = true) {
  FixedWeights source(model.catalog(), weights);
  LeafSink sink(model.catalog());
  const PassOptions options = {.training = training, .step = step, .loss_scale = 1, .aux_scale = 1};
  TransformerPass pass(model.transformer(), batch, options, source);
  pass.RunForward();
  PassResult result = {pass.scalars().loss_sum, pass.scalars().aux_loss, {}};
  if (!training) return result;
  pass.RunBackward(sink);
  for (ParameterId id = 0; id < model.catalog().size(); ++id) {
    result.gradients[model.catalog()[id].name] = sink.Sum(id);
  }
  return result;
}

TEST(EvoMoe, EVO1_OneExpertIsADenseFeedForward) {
  const JobSpec spec = SmallJob("recipe { preset: 'evomoe' } train { steps: 100 }");
  // The same model without experts: all layers are as wide as an expert.
  JobSpec plain = SmallJob();
  plain.mutable_model()->clear_moe();
  plain.mutable_model()->set_dense_width(12);
  const SingleRankModel reference(plain);
  JobSpec narrow = spec;
  narrow.mutable_model()->set_dense_width(12);
  const SingleRankModel ours(narrow, 0, Experts::kOne);
  EXPECT_EQ(ours.catalog().Find("layers.1.moe.router"), kNoParameter);
  EXPECT_EQ(ours.catalog().Find("layers.1.moe.experts.0.down"), kNoParameter);
  ASSERT_EQ(ours.catalog().size(), reference.catalog().size());
  const auto weights = RandomWeights(reference.catalog(), 5);
  const MicroBatch batch = RandomMicroBatch(narrow, 0, 2);
  const PassResult a = RunPass(ours, weights, batch), b = RunPass(reference, weights, batch);
  EXPECT_EQ(a.loss, b.loss);
  EXPECT_EQ(a.aux_loss, 0);
  for (ParameterId id = 0; id < reference.catalog().size(); ++id) {
    EXPECT_TRUE(at::equal(a.gradients.at(ours.catalog()[id].name),
                          b.gradients.at(reference.catalog()[id].name)))
        << ours.catalog()[id].name;
  }
}

// One expert out of one, with its router, is that expert in every phase.
TEST(EvoMoe, EVO1_ASingleExpertIsTheDenseModelAtEveryStep) {
  const std::string moe = "model { moe { experts: 1 } }";
  const JobSpec spec = GateJob("", moe);
  const SingleRankModel single(spec), one(spec, 0, Experts::kOne);
  auto weights = RandomWeights(single.catalog(), 5);
  std::vector<at::Tensor> base;
  for (const ParameterSpec& parameter : one.catalog().parameters()) {
    std::string name = parameter.name;
    if (const size_t at = name.find("moe.base"); at != std::string::npos) {
      name.replace(at, 8, "moe.experts.0");
    }
    base.push_back(weights[single.catalog().Find(name)]);
  }
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const PassResult dense = RunPass(one, base, batch);
  for (const uint64_t step : {kDense, kHard}) {
    for (const bool training : {true, false}) {
      const PassResult result = RunPass(single, weights, batch, step, training);
      EXPECT_NEAR(result.loss, dense.loss, 1e-6 * dense.loss) << step;
      if (!training) continue;
      EXPECT_LT(result.gradients.at("layers.1.moe.router").abs().max().item<double>(), 1e-5);
      EXPECT_LT(RelativeError(result.gradients.at("layers.1.moe.experts.0.down"),
                              dense.gradients.at("layers.1.moe.base.down")),
                1e-5);
    }
  }
}

// ---- The gate
// ------------------------------------------------------------------------------------

TEST(DenseToSparse, EVO5_TheThresholdBoundsTheFanOut) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  const auto fan_outs = [&](const std::string& gate) {
    return FanOuts(RouterOf(GateJob(gate)).Route(Inputs(logits)).expert);
  };
  for (const int64_t n : fan_outs(Constant(1, "threshold: 0"))) EXPECT_EQ(n, kExperts);
  int64_t none = 0, one = 0;
  for (const int64_t n : fan_outs(Constant(1, "threshold: 0.5"))) {
    EXPECT_LE(n, 1);
    ++(n == 0 ? none : one);
  }
  EXPECT_GT(none, 0);
  EXPECT_GT(one, 0);
  for (const double temperature : {0.01, 0.3, 2.0, 100.0}) {
    for (const int64_t n : fan_outs(Constant(temperature, "threshold: 0.124"))) EXPECT_GE(n, 1);
  }
}

TEST(DenseToSparse, EVO5_WithOneDrawAColderGateNeverTakesMore) {
  const at::Tensor logits = RandomLogits(2000, kExperts);
  std::vector<int64_t> before(2000, kExperts);
  for (double temperature = 50; temperature > 0.02; temperature *= 0.8) {
    const at::Tensor g =
        GateProbabilities(logits, {.temperature = temperature, .seed = 3, .step = 7, .layer = 1});
    const std::vector<int64_t> now = FanOuts(SelectAbove(g, 0.05f));
    for (size_t t = 0; t < now.size(); ++t) EXPECT_LE(now[t], before[t]) << t << " " << temperature;
    before = now;
  }
  const int64_t sum = std::accumulate(before.begin(), before.end(), int64_t{0});
  EXPECT_LT(static_cast<double>(sum) / 2000, 1.1);
}

TEST(DenseToSparse, EVO6_WithoutNoiseAColdGateTakesTheBestExpert) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  const Router router = RouterOf(GateJob(Constant(1e-3, "noise: false")));
  const Routing routing = router.Route(Inputs(logits));
  ASSERT_EQ(routing.expert.size(1), 1);
  EXPECT_TRUE(at::equal(routing.expert.select(1, 0), logits.argmax(1)));
}

TEST(DenseToSparse, EVO6_FromTheHardStepOnItIsSwitch) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  const Router router = RouterOf(GateJob("weights: NOISY"));
  const RouteInputs inputs = Inputs(logits, kHard);
  const Routing ours = router.Route(inputs), theirs = SwitchRouter().Route(inputs);
  ExpectSameRouting(ours, theirs);
  const at::Tensor dweight = RandomLogits(kTokens, 1, 9);
  EXPECT_TRUE(at::equal(router.Backward(inputs, ours, dweight, 0.5),
                        SwitchRouter().Backward(inputs, theirs, dweight, 0.5)));
}

TEST(DenseToSparse, EVO7_WhileAllExpertsAreOnTheLossIsTheirNumberAndHasNoGradient) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  for (const char* weights : {"PLAIN", "NOISY"}) {
    const Router router =
        RouterOf(GateJob(Constant(1, absl::StrCat("threshold: 0 weights: ", weights))));
    const Routing routing = router.Route(Inputs(logits));
    EXPECT_NEAR(routing.aux_loss, 0.25 * kExperts, 1e-6) << weights;
    const at::Tensor gradient =
        router.Backward(Inputs(logits), routing, at::zeros_like(routing.weight), 1);
    EXPECT_LT(gradient.abs().max().item<double>(), 1e-8) << weights;
  }
}

TEST(DenseToSparse, EVO7_WithOneExpertATokenTheLossIsTheCanonicalOne) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  const Router router = RouterOf(GateJob(Constant(1e-3, "noise: false")));
  const Routing ours = router.Route(Inputs(logits)), theirs = SwitchRouter().Route(Inputs(logits));
  ASSERT_TRUE(at::equal(ours.expert, theirs.expert));
  EXPECT_EQ(ours.aux_loss, theirs.aux_loss);
  // Of the noisy probabilities, which are all but one-hot here: the mean square of the loads.
  const Routing noisy = RouterOf(GateJob(Constant(1e-3, "weights: NOISY"))).Route(Inputs(logits));
  double squares = 0;
  for (const int64_t count : noisy.counts) squares += static_cast<double>(count * count);
  EXPECT_NEAR(noisy.aux_loss, 0.25 * kExperts * squares / (kTokens * kTokens), 1e-3);
}

TEST(DenseToSparse, EVO8_EvaluationDrawsNothing) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  RouteInputs inputs = Inputs(logits);
  inputs.training = false;
  const Router router = RouterOf(GateJob("weights: NOISY"));
  const Routing first = router.Route(inputs);
  ExpectSameRouting(first, router.Route(inputs));
  ExpectSameRouting(first, RouterOf(GateJob(""), kExperts, /*seed=*/77).Route(inputs));
  ExpectSameRouting(first, SwitchRouter().Route(inputs));
  inputs.step = kHard;
  ExpectSameRouting(first, router.Route(inputs));
}

TEST(DenseToSparse, EVO9_TheGradientReachesTheExpertsThatAreTaken) {
  for (const auto& [gate, all] : {std::pair(Constant(1, "threshold: 0"), true),
                                  std::pair(Constant(1e-3, "noise: false"), false)}) {
    const JobSpec spec = GateJob(gate);
    const SingleRankModel model(spec);
    const MicroBatch batch = RandomMicroBatch(spec, 0, 1);
    FixedWeights source(model.catalog(), RandomWeights(model.catalog(), 8));
    LeafSink sink(model.catalog());
    const PassOptions options = {.step = kDense};
    TransformerPass pass(model.transformer(), batch, options, source);
    pass.RunForward();
    const std::vector<int64_t> counts = pass.scalars().routing.at(0).counts;
    pass.RunBackward(sink);
    int64_t reached = 0;
    for (int e = 0; e < 5; ++e) {
      const bool has =
          sink.Sum(model.catalog().Find(absl::StrCat("layers.1.moe.experts.", e, ".down")))
              .abs()
              .max()
              .item<double>() > 0;
      EXPECT_EQ(has, counts[static_cast<size_t>(e)] > 0) << e;
      reached += has;
    }
    EXPECT_EQ(reached == 5, all) << gate;
  }
}

TEST(DenseToSparse, EVO11_TheNoiseOfATokenDependsOnItsPlaceInTheDataAlone) {
  const at::Tensor logits = RandomLogits(kTokens, kExperts);
  const Router router = RouterOf(GateJob(Constant(1, "threshold: 0 weights: NOISY")));
  const at::Tensor whole = router.Route(Inputs(logits)).scores;
  // The same four sequences, one and three at a time.
  const int64_t length = kTokens / 4;
  const auto part = [&](int64_t first, int64_t sequences) {
    return router
        .Route({.logits = logits.narrow(0, first * length, sequences * length),
                .sequences = sequences,
                .first_sample = 8 + first,
                .step = kDense})
        .scores;
  };
  EXPECT_TRUE(at::equal(at::cat({part(0, 1), part(1, 3)}), whole));
  EXPECT_FALSE(at::equal(router.Route(Inputs(logits, kDense + 1)).scores, whole));
  GateInputs other = {.seed = 5, .step = kDense, .layer = 2, .first_token = 8 * length};
  EXPECT_TRUE(at::equal(GateProbabilities(logits, other), whole));
  other.layer = 3;
  EXPECT_FALSE(at::equal(GateProbabilities(logits, other), whole));
  other = {.seed = 6, .step = kDense, .layer = 2, .first_token = 8 * length};
  EXPECT_FALSE(at::equal(GateProbabilities(logits, other), whole));
}

// Mean 0.5772 and variance pi^2 / 6.
TEST(DenseToSparse, TheNoiseIsGumbels) {
  const int64_t tokens = 20000;
  // log g = z + zeta - logsumexp: differences of two columns are those of two draws.
  const at::Tensor g =
      GateProbabilities(at::zeros({tokens, 2}), {.seed = 1, .step = 2, .layer = 3}).log();
  const at::Tensor difference = (g.select(1, 0) - g.select(1, 1)).to(at::kDouble);
  EXPECT_NEAR(difference.mean().item<double>(), 0, 0.06);
  EXPECT_NEAR(difference.var().item<double>(), 2 * 1.6449, 0.15);  // logistic
}

// ---- Gradients
// -------------------------------------------------------------------------------------

// The derivative of `value` at element i of `at`, held against `gradient`.
void ExpectSlope(const std::function<double()>& value, at::Tensor at, int64_t i, double gradient,
                 double step, double tolerance, const std::string& what) {
  at::Tensor element = at.view(-1)[i];
  const float before = element.item<float>();
  element.fill_(before + step);
  const double up = value();
  element.fill_(before - step);
  const double down = value();
  element.fill_(before);
  EXPECT_NEAR(gradient, (up - down) / (2 * step), tolerance) << what << " " << i;
}

TEST(DenseToSparse, TheRoutersGradientIsThatOfItsDefinition) {
  for (const char* weights : {"PLAIN", "NOISY"}) {
    const Router router =
        RouterOf(GateJob(Constant(0.7, absl::StrCat("threshold: 0.05 weights: ", weights))), 5);
    at::Tensor logits = RandomLogits(12, 5);
    const Routing routing = router.Route(Inputs(logits));
    const at::Tensor towards = RandomLogits(12, routing.weight.size(1), 4);
    const auto value = [&] {
      const Routing now = router.Route(Inputs(logits));
      TORCH_CHECK(at::equal(now.selected, routing.selected), "the selection moved");
      return (now.weight * towards * now.expert.ge(0)).to(at::kDouble).sum().item<double>() +
             3 * now.aux_loss;
    };
    const at::Tensor dweight = towards * routing.expert.ge(0);
    const at::Tensor gradient = router.Backward(Inputs(logits), routing, dweight, 3);
    for (int64_t i = 0; i < logits.numel(); ++i) {
      ExpectSlope(value, logits, i, gradient.view(-1)[i].item<double>(), 1e-3, 2e-3, weights);
    }
  }
}

// Of whole models: with one expert beside a shared one, and with the gate open.
TEST(EvoMoe, GradientsOfModelsAreSlopesOfTheirLosses) {
  const std::string shared = "model { moe { shared_width: 8 } }";
  const JobSpec spec = GateJob(Constant(1, "threshold: 0.001 weights: NOISY"), shared);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 1);
  for (const Experts experts : {Experts::kOne, Experts::kAll}) {
    const SingleRankModel model(spec, 0, experts);
    const auto weights = RandomWeights(model.catalog(), 5);
    const PassResult result = RunPass(model, weights, batch, kDense);
    const auto value = [&] {
      const PassResult now = RunPass(model, weights, batch, kDense);
      return now.loss + now.aux_loss;
    };
    for (ParameterId id = 0; id < model.catalog().size(); ++id) {
      const ParameterSpec& parameter = model.catalog()[id];
      if (parameter.layer != 1) continue;
      const at::Tensor gradient = result.gradients.at(parameter.name).view(-1);
      const int64_t most = gradient.abs().argmax().item<int64_t>();
      const auto slope = gradient[most].item<double>();
      ExpectSlope(value, weights[id], most, slope, 2e-3, 0.03 * std::abs(slope) + 0.01,
                  parameter.name);
    }
  }
}

}  // namespace
}  // namespace moesaic
