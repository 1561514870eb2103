#include "trainer/loop/spawn.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "parallel/comm/in_process.h"
#include "tests/trainer/model/model_fixture.h"
#include "trainer/catalog/expert_state.h"

namespace moesaic {
namespace {

constexpr int kExperts = 6;

JobSpec Job(const std::string& spawn) {
  return SmallJob(absl::StrCat(
      "model { hidden: 64 heads: 4 head_width: 16 moe { experts: 6 active: 1 expert_width: 48 "
      "pattern { every: 1 first: 0 } } } train { steps: 100 seed: 9 } "
      "recipe { router { weight { renormalize: false } } experts { spawn { ",
      spawn, " } } }"));
}

// Master and moments, by name.
struct State {
  std::map<std::string, at::Tensor> master, first, second;
};

// The store of one rank with its catalogue.
struct Rank {
  Rank(const JobSpec& spec, Experts experts, int ranks, int expert, int rank)
      : catalog(CatalogOf(spec, experts)),
        mesh(Mesh::Flat(ranks, expert)),
        placement(ExpertPlacement::Even(mesh, ExpertsOfLayers(spec.model()))),
        store(catalog, mesh, placement, {.rank = rank}) {}

  void AddTo(State& state) const {
    for (const ParameterId id : store.owned()) {
      state.master[catalog[id].name] = store.master(id);
      state.first[catalog[id].name] = store.first_moment(id);
      state.second[catalog[id].name] = store.second_moment(id);
    }
  }

  ParameterCatalog catalog;
  Mesh mesh;
  ExpertPlacement placement;
  ParameterStore store;
};

std::unique_ptr<Rank> Base(const JobSpec& spec) {
  auto base = std::make_unique<Rank>(spec, Experts::kOne, 1, 1, 0);
  const auto values = RandomWeights(base->catalog, 3);
  const auto moments = RandomWeights(base->catalog, 4);
  for (ParameterId id = 0; id < base->catalog.size(); ++id) {
    base->store.master(id).copy_(values[id]);
    base->store.first_moment(id).copy_(moments[id]);
    base->store.second_moment(id).copy_(moments[id].square());
  }
  return base;
}

// What all ranks of a layout own after the spawn.
State Spawn(const JobSpec& spec, const Rank& base, int ranks = 1, int expert = 1) {
  State state;
  for (int rank = 0; rank < ranks; ++rank) {
    Rank into(spec, Experts::kAll, ranks, expert, rank);
    SpawnExperts(spec, {&base.catalog, &base.store}, {&into.catalog, &into.store});
    into.AddTo(state);
  }
  return state;
}

std::string Expert(int layer, int expert, const std::string& matrix) {
  return absl::StrCat("layers.", layer, ".moe.experts.", expert, ".", matrix);
}

TEST(Spawn, EVO2_WithoutAMaskAllExpertsAreTheBase) {
  const JobSpec spec = Job("mask: 0");
  const auto base = Base(spec);
  const State spawned = Spawn(spec, *base);
  for (int layer = 0; layer < 2; ++layer) {
    for (const std::string matrix : {"gate_up", "down"}) {
      const ParameterId id =
          base->catalog.Find(absl::StrCat("layers.", layer, ".moe.base.", matrix));
      for (int e = 0; e < kExperts; ++e) {
        const std::string name = Expert(layer, e, matrix);
        EXPECT_TRUE(at::equal(spawned.master.at(name), base->store.master(id)));
        EXPECT_TRUE(at::equal(spawned.first.at(name), base->store.first_moment(id)));
        EXPECT_TRUE(at::equal(spawned.second.at(name), base->store.second_moment(id)));
      }
    }
  }
}

// A gate whose weights sum to 1 gives back what the one expert gave.
TEST(Spawn, EVO2_WithoutAMaskTheLayersOutputStays) {
  JobSpec spec = Job("mask: 0");
  DenseToSparseSpec& gate =
      *spec.mutable_recipe()->mutable_router()->mutable_select()->mutable_dense_to_sparse();
  gate.set_threshold(0);
  gate.set_hard_step(50);
  ApplyDefaults(&spec);
  const auto base = Base(spec);
  Rank into(spec, Experts::kAll, 1, 1, 0);
  SpawnExperts(spec, {&base->catalog, &base->store}, {&into.catalog, &into.store});
  const SingleRankModel one(spec, 0, Experts::kOne), all(spec);
  const MicroBatch batch = RandomMicroBatch(spec, 0, 2);
  const at::Tensor x = at::randn({24, 64}, at::make_generator<at::CPUGeneratorImpl>(7), at::kFloat);
  const auto output = [&](const SingleRankModel& model, ParameterStore& store) {
    PassScalars scalars;
    const PassOptions options = {.step = spec.recipe().experts().spawn().step()};
    PassContext context = {&batch, &options, &store, &scalars, nullptr};
    return model.transformer().feed_forward(1).Forward({x, {}}, context).hidden;
  };
  EXPECT_LT(RelativeError(output(all, into.store), output(one, base->store)), 1e-6);
}

TEST(Spawn, EVO3_TheShareOfZerosIsTheMasksAndTheRestIsTheBase) {
  for (const bool rescale : {false, true}) {
    const JobSpec spec = Job(absl::StrCat("mask: 0.3 rescale: ", rescale));
    const auto base = Base(spec);
    const State spawned = Spawn(spec, *base);
    for (const std::string matrix : {"gate_up", "down"}) {
      const ParameterId id = base->catalog.Find("layers.1.moe.base." + matrix);
      for (int e = 0; e < kExperts; ++e) {
        const at::Tensor expert = spawned.master.at(Expert(1, e, matrix));
        const auto elements = static_cast<double>(expert.numel());
        const double zeros = elements - expert.ne(0).sum().item<double>();
        EXPECT_NEAR(zeros / elements, 0.3, 4 * std::sqrt(0.3 * 0.7 / elements)) << e;
        const float factor = rescale ? static_cast<float>(1 / (1 - 0.3)) : 1.0f;
        const at::Tensor kept = expert.ne(0);
        EXPECT_TRUE(at::equal(expert, base->store.master(id) * factor * kept));
        EXPECT_TRUE(
            at::equal(spawned.first.at(Expert(1, e, matrix)), base->store.first_moment(id) * kept));
        EXPECT_TRUE(at::equal(spawned.second.at(Expert(1, e, matrix)),
                              base->store.second_moment(id) * kept));
      }
    }
  }
}

TEST(Spawn, EVO3_MasksDifferBetweenExpertsLayersAndMatrices) {
  const JobSpec spec = Job("mask: 0.5");
  const State spawned = Spawn(spec, *Base(spec));
  const auto mask = [&](int layer, int expert, const std::string& matrix) {
    return spawned.master.at(Expert(layer, expert, matrix)).ne(0).view(-1).narrow(0, 0, 2048);
  };
  const at::Tensor one = mask(0, 0, "down");
  for (const at::Tensor& other : {mask(0, 1, "down"), mask(1, 0, "down"), mask(0, 0, "gate_up")}) {
    EXPECT_NEAR(one.eq(other).to(at::kDouble).mean().item<double>(), 0.5, 0.05);
  }
}

TEST(Spawn, EVO3_AnyNumberOfRanksMakesTheSameExperts) {
  const JobSpec spec = Job("mask: 0.3");
  const auto base = Base(spec);
  const State one = Spawn(spec, *base);
  for (const auto& [ranks, expert] : {std::pair(2, 2), {4, 4}, {4, 2}, {3, 3}}) {
    const State other = Spawn(spec, *base, ranks, expert);
    ASSERT_EQ(other.master.size(), one.master.size());
    for (const auto& [name, value] : one.master) {
      EXPECT_TRUE(at::equal(other.master.at(name), value)) << name;
      EXPECT_TRUE(at::equal(other.first.at(name), one.first.at(name))) << name;
    }
  }
}

TEST(Spawn, WhatIsNotMadeOfTheOneExpertStaysOrBeginsAnew) {
  const JobSpec spec = Job("moments: ZERO");
  const auto base = Base(spec);
  const State spawned = Spawn(spec, *base);
  const ParameterId qkv = base->catalog.Find("layers.0.attention.qkv");
  EXPECT_TRUE(at::equal(spawned.master.at("layers.0.attention.qkv"), base->store.master(qkv)));
  EXPECT_TRUE(
      at::equal(spawned.second.at("layers.0.attention.qkv"), base->store.second_moment(qkv)));
  EXPECT_NEAR(spawned.master.at("layers.0.moe.router").std().item<double>(), 0.02, 0.005);
  EXPECT_EQ(spawned.first.at("layers.0.moe.router").abs().max().item<double>(), 0);
  EXPECT_EQ(spawned.first.at(Expert(0, 2, "down")).abs().max().item<double>(), 0);
}

TEST(Spawn, CosinesOfExpertsAreThoseOfTheirWeightsWhateverTheRanks) {
  for (const double mask : {0.0, 0.3, 0.8}) {
    const JobSpec spec = Job(absl::StrCat("mask: ", mask));
    const auto base = Base(spec);
    const State spawned = Spawn(spec, *base);
    const auto vector = [&](int layer, int e) {
      const at::Tensor all = at::cat({spawned.master.at(Expert(layer, e, "gate_up")).view(-1),
                                      spawned.master.at(Expert(layer, e, "down")).view(-1)});
      return (all / all.norm()).to(at::kDouble);
    };
    double sum = 0;
    for (int a = 0; a < kExperts; ++a) {
      for (int b = 0; b < a; ++b) sum += vector(1, a).dot(vector(1, b)).item<double>();
    }
    const ParameterCatalog into = CatalogOf(spec);
    std::vector<double> one;
    for (const int ranks : {1, 2, 4}) {
      RunRanks(ranks, [&](Communicator& data) {
        const auto cosines = ExpertCosines(spec, {&base->catalog, &base->store}, into, data);
        if (data.rank() != 0) return;
        if (ranks == 1) one = cosines;
        EXPECT_EQ(cosines, one);
      });
    }
    ASSERT_EQ(one.size(), 2u);
    EXPECT_NEAR(one[1], sum / (kExperts * (kExperts - 1) / 2), 1e-5);
    EXPECT_NEAR(one[1], 1 - mask, 0.02);
  }
}

}  // namespace
}  // namespace moesaic
