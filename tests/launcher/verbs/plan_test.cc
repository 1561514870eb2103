// moesaic plan, run in process.
#include "launcher/verbs/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>

#include "tests/base/scratch_folder.h"
#include "tests/launcher/config/small_job.h"
#include "tests/launcher/verbs/run_moesaic.h"
#include "tests/trainer/checkpoint/tiny_job.h"

namespace moesaic {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::json;

class PlanVerb : public ::testing::Test {
 protected:
  PlanVerb() { Write(std::string(kSmallJob) + "elastic: {nodes: {min: 1, max: 8}}\n"); }

  void Write(const std::string& text) const { std::ofstream(job_) << text; }

  VerbOutcome Plan(std::vector<std::string> arguments) const {
    arguments.insert(arguments.begin(), {"plan", "-f", job_});
    return RunMoesaic(std::move(arguments));
  }
  Json PlanJson(std::vector<std::string> arguments) const {
    arguments.insert(arguments.end(), {"-o", "json"});
    const VerbOutcome outcome = Plan(std::move(arguments));
    EXPECT_EQ(outcome.exit_code, kExitOk) << outcome.err;
    return outcome.json();
  }

  const ScratchFolder folder_;
  const std::string job_ = folder_ / "job.yaml";
};

TEST_F(PlanVerb, SaysWhichLayoutAndWhyAndWhatItNeeds) {
  const VerbOutcome outcome = Plan({"--nodes", "2", "--memory", "1GiB"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr("of them used by a token"),
                    HasSubstr("layout     2 nodes, data 2, expert 2, 1 thread a rank"),
                    HasSubstr("why        2 of 1 to 8 nodes: 4 micro-batches a step in 2 rounds"),
                    HasSubstr("experts    the busiest rank takes 1.00 of the mean"),
                    HasSubstr("some experts are on one node only"), HasSubstr("between ranks"),
                    HasSubstr("checkpoint "), HasSubstr("WEIGHTS"), HasSubstr("PEER'S COPY"),
                    HasSubstr("% of 1GiB")));
  EXPECT_THAT(outcome.out, Not(HasSubstr("spare")));
}

TEST_F(PlanVerb, SaysWhyANodeIsSpare) {
  const VerbOutcome outcome = Plan({"--nodes", "3"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("layout     2 nodes"),
                                 HasSubstr("spare      node3: 3 nodes would need as many rounds "
                                           "of micro-batches a step (2) as 2")));
}

TEST_F(PlanVerb, JsonHoldsEveryNumber) {
  const Json plan = PlanJson({"--nodes", "3"});
  EXPECT_EQ(plan["nodes"], 3);
  EXPECT_EQ(plan["used"], 2);
  EXPECT_EQ(plan["ranks"], 2);
  EXPECT_EQ(plan["expert"], 2);
  EXPECT_EQ(plan["rounds"], 2);
  EXPECT_GT(plan["parameters"], plan["active_parameters"]);
  // fp32 weights and two moments.
  EXPECT_EQ(plan["checkpoint_bytes"], 12 * plan["parameters"].get<int64_t>());
  EXPECT_EQ(plan["imbalance"], 1.0);
  EXPECT_EQ(plan["survives_any_node"], false);
  ASSERT_EQ(plan["spares"].size(), 1u);
  EXPECT_EQ(plan["spares"][0]["node"], "node3");
  ASSERT_EQ(plan["rank_memory"].size(), 2u);
  int64_t snapshots = 0;
  for (const Json& rank : plan["rank_memory"]) {
    for (const char* key : {"weights", "moments", "gradients", "activations", "snapshot"}) {
      EXPECT_GT(rank[key], 0) << key;
    }
    // fp32 without copies: two moments for each weight.
    EXPECT_EQ(rank["moments"], 2 * rank["weights"].get<int64_t>());
    snapshots += rank["snapshot"].get<int64_t>();
  }
  EXPECT_GE(snapshots, plan["checkpoint_bytes"]);
  const Json& bytes = plan["step_bytes"];
  EXPECT_DOUBLE_EQ(bytes["total"], bytes["tokens"].get<double>() + bytes["counts"].get<double>() +
                                       bytes["gradients"].get<double>() +
                                       bytes["weights"].get<double>() +
                                       bytes["sums"].get<double>());
  // A rank a node.
  EXPECT_NEAR(bytes["total"].get<double>(), bytes["between_nodes"].get<double>(), 0.01);
}

TEST_F(PlanVerb, SaysWhatAJobNeedsBeforeItsSpawn) {
  EXPECT_FALSE(PlanJson({"--nodes", "2"}).contains("before_spawn"));
  Write(std::string(kSmallJob) + "recipe: {experts: {spawn: {}}}\n" +
        "elastic: {nodes: {min: 1, max: 8}}\n");
  EXPECT_THAT(Plan({"--nodes", "2"}).out, AllOf(HasSubstr("before     the spawn: at most "),
                                                HasSubstr("until it is done at most ")));
  const Json plan = PlanJson({"--nodes", "2"});
  const Json& before = plan["before_spawn"];
  EXPECT_LT(before["checkpoint_bytes"], plan["checkpoint_bytes"]);
  EXPECT_LT(before["node_most"], plan["node_memory"][0]["most"]);
  EXPECT_LT(before["step_bytes"].get<double>(), plan["step_bytes"]["total"].get<double>());
  const Json& rank = plan["rank_memory"][0];
  const Json& node = plan["node_memory"][0];
  EXPECT_GT(before["rank_at_spawn"],
            rank["weights"].get<int64_t>() + rank["moments"].get<int64_t>());
  EXPECT_GT(node["until_spawn"], before["rank_at_spawn"]);
  EXPECT_GE(node["most"], node["until_spawn"]);
}

TEST_F(PlanVerb, ARangeOfNodesIsATable) {
  Write(std::string(kSmallJob) + "elastic: {nodes: {min: 2, max: 3}}\n");
  const VerbOutcome outcome = Plan({"--nodes", "1:5"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("NODES"), HasSubstr("1 of at least 2 nodes"),
                                 HasSubstr("3 nodes would need as many rounds of micro-batches a "
                                           "step (2) as 2")));
  EXPECT_EQ(std::count(outcome.out.begin(), outcome.out.end(), '\n'), 6);
  const Json plans = PlanJson({"--nodes", "1:5"})["plans"];
  ASSERT_EQ(plans.size(), 5u);
  EXPECT_THAT(plans[0]["refused"].get<std::string>(), HasSubstr("1 of at least 2 nodes"));
  EXPECT_EQ(plans[1]["used"], 2);
  EXPECT_EQ(plans[4]["nodes"], 5);
}

TEST_F(PlanVerb, MemoryChoosesTheNumberOfNodes) {
  // Every one of 3 ranks would hold all experts of a layer where parallel.expert is 1.
  const std::string job = SmallJobWith("expert_width: 96", "expert_width: 4096") +
                          "elastic: {nodes: {min: 1, max: 11}}\n"
                          "checkpoint: {peer_copies: false}\n";
  Write(job);
  const std::string train = "train.global_batch=88";
  const Json plan = PlanJson({"--nodes", "11", "--memory", "300MiB", "--set", train, "--set",
                              "train.micro_batch=1"});
  EXPECT_EQ(plan["used"], 10) << plan;
  EXPECT_EQ(plan["expert"], 5);
  EXPECT_THAT(plan["spares"][0]["reason"].get<std::string>(),
              AllOf(HasSubstr("on 11 nodes, with expert degree 1"), HasSubstr("may use 270 MiB")));
  const VerbOutcome refused = Plan({"--nodes", "1", "--memory", "30MiB"});
  EXPECT_EQ(refused.exit_code, kExitUsage);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("too little memory"), HasSubstr("node1 would need")));
}

TEST_F(PlanVerb, RecordedLoadOfACheckpointPlacesExperts) {
  const std::string path = folder_ / "checkpoints";
  const auto root = *CheckpointRoot::Open(&FileSystem::System(), path);
  Write("name: tiny\n"
        "model: {layers: 2, hidden: 8, heads: 2, kv_heads: 1, sequence: 8, dense_width: 12,\n"
        "        vocabulary: 16, moe: {experts: 3, active: 2, expert_width: 4,\n"
        "                              pattern: {every: 2, first: 1}}}\n"
        "data: {train: [{path: x}]}\n"
        "train: {steps: 100, global_batch: 2, micro_batch: 1}\n"
        "elastic: {nodes: {max: 2}}\n");
  ASSERT_TRUE(CommitTiny(&FileSystem::System(), root.get(), 2, 100, 1).ok());
  const VerbOutcome unknown = Plan({"--nodes", "2", "--load", path});
  EXPECT_EQ(unknown.exit_code, kExitUsage);
  EXPECT_THAT(unknown.err, HasSubstr("records no load of this model's experts"));
  ASSERT_TRUE(CommitTinyWithLoad(&FileSystem::System(), root.get(), 2, 200, 1, {10, 1, 1}).ok());
  const VerbOutcome outcome = Plan({"--nodes", "2", "--load", path});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("experts placed by recorded load: the busiest rank takes 1.67 "
                                     "of the mean, 1.83 if placed by number"));
}

TEST_F(PlanVerb, RefusesWhatItCannotAnswer) {
  for (const char* nodes : {"0", "3:2", "x", "1:2:3", "5000", "-1", ""}) {
    const VerbOutcome outcome = Plan({"--nodes", nodes});
    EXPECT_EQ(outcome.exit_code, kExitUsage) << nodes;
  }
  EXPECT_THAT(Plan({"--nodes", "3:2"}).err, HasSubstr("a number from 1 to 4096 or a range"));
  EXPECT_THAT(Plan({"--nodes", "2", "--memory", "lots"}).err, HasSubstr("--memory"));
  EXPECT_EQ(Plan({"--nodes", "2", "--load", folder_ / "nowhere"}).exit_code, kExitNotFound);
  EXPECT_THAT(Plan({"--nodes", "2", "--set", "parallel.expert=9"}).err,
              HasSubstr("parallel.expert: must be at most model.moe.experts (8)"));
  EXPECT_THAT(Plan({"--nodes", "3", "--set", "parallel.expert=4", "--set", "elastic.nodes.max=3"})
                  .err,
              HasSubstr("parallel.expert 4 divides the ranks of no number of nodes"));
  EXPECT_THAT(Plan({"--nodes", "2", "--slots", "1", "--set", "elastic.slots_per_node=2"}).err,
              HasSubstr("has 1 slots, the job wants 2 a node"));
  EXPECT_THAT(Plan({}).err, HasSubstr("--nodes"));
}

}  // namespace
}  // namespace moesaic
