#include "trainer/metrics/metrics_file.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "tests/base/scratch_folder.h"

namespace moesaic {
namespace {

StepRecord Step(uint64_t step) {
  StepRecord record;
  StepMetrics& metrics = record.step;
  metrics.set_step(step);
  metrics.set_generation(2);
  metrics.set_loss(3.5);
  metrics.set_grad_norm(0.25);
  metrics.set_tokens(4096);
  metrics.add_expert_load_max_over_mean(1.5);
  metrics.add_expert_load_max_over_mean(1.25);
  return record;
}

std::string ReadAll(const std::string& path) {
  std::ifstream in(path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

class MetricsFileTest : public ::testing::Test {
 protected:
  const ScratchFolder scratch_;
  const std::string dir_ = scratch_ / "run";
};

TEST(MetricsLine, HasTheDocumentedKeysInOrder) {
  const auto line = nlohmann::ordered_json::parse(MetricsLine(Step(5)));
  std::vector<std::string> keys;
  for (const auto& [key, value] : line.items()) keys.push_back(key);
  EXPECT_EQ(keys, (std::vector<std::string>{"step", "generation", "loss", "aux_loss", "grad_norm",
                                            "lr", "tokens", "seconds", "tokens_per_second",
                                            "expert_load_max_over_mean", "flops"}));
  EXPECT_EQ(line["step"], 5);
  EXPECT_EQ(line["expert_load_max_over_mean"].size(), 2u);
}

TEST(MetricsLine, ARecipeWithPhasesSaysWhereItStands) {
  StepRecord record = Step(1);
  EXPECT_FALSE(nlohmann::json::parse(MetricsLine(record)).contains("phase"));
  record.step.set_phase(DENSE_TO_SPARSE);
  record.step.set_temperature(1.5);
  record.recipe = {.flops = 1e9, .expert_cosine = {0.75}};
  const auto line = nlohmann::json::parse(MetricsLine(record));
  EXPECT_EQ(line["phase"], "dense_to_sparse");
  EXPECT_EQ(line["temperature"], 1.5);
  EXPECT_EQ(line["flops"], 1e9);
  EXPECT_EQ(line["expert_cosine"], nlohmann::json({0.75}));
}

TEST(MetricsLine, WritesNullForWhatIsNotFinite) {
  StepRecord record = Step(1);
  record.step.set_loss(std::nan(""));
  record.step.set_skipped(true);
  const auto line = nlohmann::json::parse(MetricsLine(record));
  EXPECT_TRUE(line["loss"].is_null());
  EXPECT_EQ(line["skipped"], true);
}

TEST(MetricsLine, HasTheRoutingAndItsLoadsWhereTheyAreDue) {
  StepRecord record = Step(1);
  Add({.layer = 3, .candidates = 4}, {.counts = {3, 1, 0, 4}, .fan_out = {0, 0, 4}},
      record.routing);
  auto line = nlohmann::json::parse(MetricsLine(record));
  EXPECT_EQ(line["routing"]["layers"], nlohmann::json({3}));
  EXPECT_EQ(line["routing"]["max_vio"], nlohmann::json({1.0}));
  EXPECT_EQ(line["routing"]["rows"], 8);
  EXPECT_FALSE(line["routing"].contains("loads"));
  EXPECT_FALSE(line.contains("validation_routing"));

  record.loads = true;
  record.validation = {record.routing, {{.first = 1, .second = 3, .information = 0.5}}};
  line = nlohmann::json::parse(MetricsLine(record));
  EXPECT_EQ(line["routing"]["loads"], nlohmann::json({{3, 1, 0, 4}}));
  EXPECT_EQ(line["validation_routing"]["loads"], nlohmann::json({{3, 1, 0, 4}}));
  EXPECT_EQ(line["validation_routing"]["mutual_information"][0]["layers"], nlohmann::json({1, 3}));
  EXPECT_EQ(line["validation_routing"]["mutual_information"][0]["nats"], 0.5);
}

TEST(LoadsAreDue, AboutAHundredTimesAndAtTheEnd) {
  for (const uint64_t steps : {1u, 20u, 100u, 1234u, 100000u}) {
    uint64_t due = 0;
    for (uint64_t step = 1; step <= steps; ++step) due += LoadsAreDue(step, steps);
    EXPECT_GE(due, std::min<uint64_t>(steps, 100)) << steps;
    EXPECT_LE(due, 200u) << steps;
    EXPECT_TRUE(LoadsAreDue(steps, steps));
  }
}

TEST_F(MetricsFileTest, AppendsAcrossOpensAndEndsATornLine) {
  ASSERT_TRUE((*MetricsFile::Open(dir_))->Append(Step(1)).ok());
  std::ofstream(dir_ + "/metrics.jsonl", std::ios::app) << "{\"step\": 2, \"lo";
  ASSERT_TRUE((*MetricsFile::Open(dir_))->Append(Step(2)).ok());
  const std::string text = ReadAll(dir_ + "/metrics.jsonl");
  EXPECT_EQ(text, MetricsLine(Step(1)) + "\n{\"step\": 2, \"lo\n" + MetricsLine(Step(2)) + "\n");
}

TEST_F(MetricsFileTest, NamesAFolderItCannotMake) {
  std::filesystem::create_directories(dir_);
  std::ofstream(dir_ + "/file") << "x";
  const auto file = MetricsFile::Open(dir_ + "/file/run");
  ASSERT_FALSE(file.ok());
  EXPECT_NE(std::string(file.status().message()).find(dir_ + "/file/run"), std::string::npos);
}

}  // namespace
}  // namespace moesaic
