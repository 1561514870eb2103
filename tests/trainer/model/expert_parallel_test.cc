// The model with its experts on several ranks (threads) against the model on one.
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "parallel/comm/in_process.h"
#include "parallel/layout/micro_batch_plan.h"
#include "tests/trainer/model/model_fixture.h"

namespace moesaic {
namespace {

constexpr int64_t kSequences = 2;

// What a step gave: leaves of all ranks together, and scalars by micro-batch.
struct StepResult {
  std::map<LeafSink::Leaf, at::Tensor> leaves;
  std::map<int64_t, PassScalars> scalars;
  std::map<int, std::set<ParameterId>> reported;  // by rank

  at::Tensor Gradient(const ParameterCatalog& catalog, ParameterId id) const {
    at::Tensor sum = at::zeros(catalog[id].shape, at::kFloat);
    for (const auto& [leaf, value] : leaves) {
      if (std::get<0>(leaf) == id) sum.add_(value);
    }
    return sum;
  }
};

class Step {
 public:
  Step(const JobSpec& spec, int64_t micro_batches, bool reproducible)
      : spec_(spec),
        catalog_(CatalogOf(spec)),
        weights_(RandomWeights(catalog_, 5)),
        micro_batches_(micro_batches) {
    options_.reproducible = reproducible;
    options_.loss_scale = 1.0 / 31;
    options_.aux_scale = 1.0 / static_cast<double>(micro_batches);
  }

  const ParameterCatalog& catalog() const { return catalog_; }

  StepResult Run(int ranks, int expert_size) {
    const Mesh mesh = Mesh::Flat(ranks, expert_size);
    return Run(mesh, ExpertPlacement::Even(mesh, ExpertsByLayer(catalog_)));
  }

  StepResult Run(const Mesh& mesh, const ExpertPlacement& placement) {
    StepResult result;
    Mutex mutex;
    RunRanks(mesh.size(), [&](Communicator& world) {
      LeafSink sink(catalog_);
      std::map<int64_t, PassScalars> scalars;
      RunRank(mesh, placement, world, sink, scalars);
      MutexLock lock(&mutex);
      for (const auto& [leaf, value] : sink.leaves()) {
        result.reported[world.rank()].insert(std::get<0>(leaf));
        const auto [at, fresh] = result.leaves.emplace(leaf, value);
        if (!fresh) at->second = at->second + value;
      }
      result.scalars.merge(scalars);
    });
    return result;
  }

 private:
  void RunRank(const Mesh& mesh, const ExpertPlacement& placement, Communicator& world,
               LeafSink& sink, std::map<int64_t, PassScalars>& scalars) {
    const int rank = world.rank();
    const auto members = mesh.expert_ranks(mesh.place(rank).expert_group);
    const auto group = world.Split(members, "expert");
    auto exchange = MakeTokenExchange("flat", group.get());
    TORCH_CHECK(exchange.ok(), exchange.status().ToString());
    const ExpertParallel parallel{&mesh, &placement, rank,
                                  mesh.expert_size() > 1 ? exchange->get() : nullptr};
    const Transformer model({&spec_, &catalog_, RecipeAt(spec_, 0), parallel, 0});
    FixedWeights weights(catalog_, weights_);
    const MicroBatchPlan plan{micro_batches_, mesh.size()};
    for (int64_t round = 0; round < plan.rounds(); ++round) {
      const auto id = plan.At(round, mesh.place(rank).data);
      MicroBatch batch = id ? RandomMicroBatch(spec_, *id, kSequences) : NoMicroBatch(spec_);
      for (int member : members) {
        batch.round_ids.push_back(plan.At(round, mesh.place(member).data).value_or(-1));
      }
      TransformerPass pass(model, batch, options_, weights);
      pass.RunForward();
      pass.RunBackward(sink);
      if (id) scalars[*id] = pass.scalars();
    }
  }

  const JobSpec spec_;
  const ParameterCatalog catalog_;
  const std::vector<at::Tensor> weights_;
  const int64_t micro_batches_;
  PassOptions options_;
};

void ExpectClose(const ParameterCatalog& catalog, const StepResult& actual,
                 const StepResult& expected, const std::string& what) {
  ASSERT_EQ(actual.scalars.size(), expected.scalars.size()) << what;
  for (const auto& [id, scalars] : expected.scalars) {
    const PassScalars& other = actual.scalars.at(id);
    EXPECT_NEAR(other.loss_sum, scalars.loss_sum, 1e-5 * scalars.loss_sum) << what;
    EXPECT_NEAR(other.aux_loss, scalars.aux_loss, 1e-6) << what;
    EXPECT_EQ(CountsOf(other), CountsOf(scalars)) << what;
    EXPECT_EQ(DroppedOf(other), DroppedOf(scalars)) << what;
  }
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    EXPECT_LT(RelativeError(actual.Gradient(catalog, id), expected.Gradient(catalog, id)), 1e-5)
        << what << " " << catalog[id].name;
  }
}

void ExpectSameBits(const ParameterCatalog& catalog, const StepResult& actual,
                    const StepResult& expected, const std::string& what) {
  for (const auto& [id, scalars] : expected.scalars) {
    EXPECT_EQ(actual.scalars.at(id).loss_sum, scalars.loss_sum) << what;
    EXPECT_EQ(actual.scalars.at(id).aux_loss, scalars.aux_loss) << what;
  }
  ASSERT_EQ(actual.leaves.size(), expected.leaves.size()) << what;
  for (const auto& [leaf, value] : expected.leaves) {
    EXPECT_TRUE(at::equal(actual.leaves.at(leaf), value))
        << what << " " << catalog[std::get<0>(leaf)].name << " of " << std::get<2>(leaf);
  }
}

struct Layout {
  int ranks;
  int expert_size;
};
// Five experts divide among none of 2, 3 and 4 ranks; five micro-batches leave ranks without one.
constexpr Layout kLayouts[] = {{2, 2}, {3, 3}, {4, 4}, {4, 2}, {2, 1}};

std::string NameOf(const Layout& layout) {
  return absl::StrCat(layout.ranks, " ranks in groups of ", layout.expert_size);
}

// L9: the layout of the experts changes no result.
TEST(ExpertParallel, L9FastModeEqualsOneRank) {
  for (const char* more :
       {"", "model { moe { shared_width: 6 pattern { every: 1 first: 0 } } }",
        "recipe { router { select { capacity_factor: 0.8 } score: SIGMOID } }"}) {
    Step step(SmallJob(more), 5, false);
    const StepResult expected = step.Run(1, 1);
    for (const Layout& layout : kLayouts) {
      ExpectClose(step.catalog(), step.Run(layout.ranks, layout.expert_size), expected,
                  NameOf(layout) + " " + more);
    }
  }
}

// L9: and in reproducible mode no bit.
TEST(ExpertParallel, L9ReproducibleModeHasTheBitsOfOneRank) {
  for (const char* more : {"", "model { moe { shared_width: 6 pattern { every: 1 first: 0 } } }"}) {
    Step step(SmallJob(more), 5, true);
    const StepResult expected = step.Run(1, 1);
    for (const Layout& layout : kLayouts) {
      ExpectSameBits(step.catalog(), step.Run(layout.ranks, layout.expert_size), expected,
                     NameOf(layout) + " " + more);
    }
  }
}

TEST(ExpertParallel, FewerMicroBatchesThanRanks) {
  Step step(SmallJob(), 1, false);
  const StepResult expected = step.Run(1, 1);
  for (const Layout& layout : {Layout{3, 3}, Layout{4, 2}, Layout{4, 1}}) {
    ExpectClose(step.catalog(), step.Run(layout.ranks, layout.expert_size), expected,
                NameOf(layout));
  }
}

// Every held expert reports in fast mode, whether or not a token came; nobody else does.
TEST(ExpertParallel, RanksReportWhatTheyHold) {
  Step step(SmallJob(), 3, false);
  const Mesh mesh = Mesh::Flat(3, 3);
  const auto placement = ExpertPlacement::Even(mesh, ExpertsByLayer(step.catalog()));
  const StepResult result = step.Run(mesh, placement);
  for (ParameterId id = 0; id < step.catalog().size(); ++id) {
    const ParameterSpec& parameter = step.catalog()[id];
    for (int rank = 0; rank < 3; ++rank) {
      EXPECT_EQ(result.reported.at(rank).contains(id),
                parameter.expert < 0 || placement.Holds(rank, parameter.layer, parameter.expert))
          << parameter.name << " on rank " << rank;
    }
  }
}

// A placement that is neither even nor in order, with one expert on two ranks of a group.
TEST(ExpertParallel, L9AnyPlacementGivesTheSame) {
  const Mesh mesh = Mesh::Flat(3, 3);
  const auto placement = ExpertPlacement::Create(mesh, 4, {{}, {{2}, {0, 2}, {2}, {1}, {2}}});
  ASSERT_TRUE(placement.ok()) << placement.status();
  for (const bool reproducible : {false, true}) {
    Step step(SmallJob(), 5, reproducible);
    const StepResult expected = step.Run(1, 1);
    const StepResult actual = step.Run(mesh, *placement);
    ExpectClose(step.catalog(), actual, expected, "placed by hand");
    if (reproducible) ExpectSameBits(step.catalog(), actual, expected, "placed by hand");
  }
}

// A capacity of E / K or more is the dropless layer, bit for bit.
TEST(ExpertParallel, AmpleCapacityIsDropless) {
  Step dropless(SmallJob(), 3, false);
  Step ample(SmallJob("recipe { router { select { capacity_factor: 2.5 } } }"), 3, false);
  const StepResult expected = dropless.Run(2, 2);
  const StepResult actual = ample.Run(2, 2);
  for (const auto& [id, scalars] : actual.scalars) EXPECT_EQ(DroppedOf(scalars), 0);
  ExpectSameBits(dropless.catalog(), actual, expected, "ample capacity");
}

}  // namespace
}  // namespace moesaic
