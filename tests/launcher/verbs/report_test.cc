// moesaic report, run in process on files as the trainer writes them and as others might.
#include "launcher/verbs/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "launcher/report/svg_plot.h"
#include "tests/base/scratch_folder.h"
#include "tests/launcher/verbs/run_moesaic.h"
#include "trainer/metrics/metrics_file.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

StepRecord Record(uint64_t step, double loss) {
  StepRecord record;
  record.step.set_step(step);
  record.step.set_generation(1);
  record.step.set_loss(loss);
  record.step.set_tokens(1000);
  record.step.set_seconds(0.5);
  Add({.layer = 1, .candidates = 3},
      {.counts = {30, 20, 10}, .fan_out = {10, 0, 30}, .nulls = 20, .dropped = 6, .wire_rows = 7},
      record.routing);
  record.routing.wire_bytes = 4096;
  record.loads = true;
  return record;
}

StepRecord Validated(StepRecord record, double loss) {
  record.step.set_validation_loss(loss);
  record.validation = {record.routing,
                       {{.first = 1, .second = 3, .information = 0.75, .shuffled = 0.25}}};
  return record;
}

class ReportVerb : public ::testing::Test {
 protected:
  // Returns the run's folder.
  std::string Write(const std::string& name, const std::vector<StepRecord>& records) {
    auto file = MetricsFile::Open(folder_ / name);
    EXPECT_TRUE(file.ok()) << file.status();
    for (const StepRecord& record : records) EXPECT_TRUE((*file)->Append(record).ok());
    return folder_ / name;
  }
  std::string ReadFile(const std::string& name) {
    std::ifstream in(folder_ / name);
    std::stringstream text;
    text << in.rdbuf();
    return text.str();
  }

  const ScratchFolder folder_;
};

TEST_F(ReportVerb, SaysARunInNumbers) {
  // Step 2 is done twice: its last line counts.
  const std::string run = Write("a", {Record(1, 4), Record(2, 9), Validated(Record(2, 3), 3.5)});
  const VerbOutcome json = RunMoesaic({"report", run, "-o", "json"});
  ASSERT_EQ(json.exit_code, kExitOk) << json.err;
  const auto list = json.json();
  ASSERT_EQ(list.size(), 1u);
  const auto& summary = list[0];
  EXPECT_EQ(summary["run"], "a");
  EXPECT_EQ(summary["steps"], 2);
  EXPECT_EQ(summary["generations"], 1);
  EXPECT_EQ(summary["loss"], 3);
  EXPECT_EQ(summary["validation_loss"], 3.5);
  EXPECT_EQ(summary["tokens_per_second"], 2000);
  EXPECT_EQ(summary["max_vio"], 0.5);
  EXPECT_EQ(summary["validation_max_vio"], 0.5);
  EXPECT_EQ(summary["active"], 1.5);
  EXPECT_EQ(summary["null"], 0.25);
  EXPECT_EQ(summary["dropped"], 0.1);
  EXPECT_EQ(summary["wire_bytes"], 4096);
  EXPECT_EQ(summary["mutual_information"], 0.5);

  const VerbOutcome text = RunMoesaic({"report", run + "/metrics.jsonl"});
  ASSERT_EQ(text.exit_code, kExitOk) << text.err;
  EXPECT_THAT(text.out, HasSubstr("VALIDATION"));
  EXPECT_THAT(text.out, HasSubstr("a    2"));
  EXPECT_THAT(text.out, HasSubstr("4096"));
}

TEST_F(ReportVerb, DrawsAPageOfSeveralRunsThatLoadsNothing) {
  const std::string a = Write("a", {Record(1, 4), Validated(Record(2, 3), 3.5)});
  const std::string b = Write("b", {Record(1, 5), Record(2, 4)});
  const VerbOutcome outcome = RunMoesaic({"report", a + "/", b, "--html", folder_ / "page.html"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  const std::string page = ReadFile("page.html");
  EXPECT_THAT(page, HasSubstr("<!doctype html>"));
  EXPECT_THAT(page, HasSubstr("Training loss (nats)"));
  EXPECT_THAT(page, HasSubstr("MaxVio of a batch"));
  EXPECT_THAT(page, HasSubstr("layer 1, 0: 30 (1.50 of the mean)"));  // a cell of the heat map
  EXPECT_THAT(page, HasSubstr("<td>0.5000</td>"));                    // mutual information
  EXPECT_THAT(page, HasSubstr("<title>a: step 1, 4</title>"));
  EXPECT_THAT(page, HasSubstr("<title>b: step 1, 5</title>"));
  EXPECT_THAT(page, HasSubstr("</html>"));
  EXPECT_THAT(page, Not(HasSubstr("<script")));
  EXPECT_THAT(page, Not(HasSubstr("http:")));
  EXPECT_THAT(page, Not(HasSubstr("https:")));
  // Nothing was ever kept from being chosen here, but something is in the series.
  EXPECT_THAT(page, Not(HasSubstr("Learning rate")));  // 0 in all steps: not drawn
}

TEST_F(ReportVerb, EscapesWhatItIsGiven) {
  const std::string run = Write("<b>&\"x'\x1b[31m", {Record(1, 4), Record(2, 3)});
  const VerbOutcome outcome = RunMoesaic({"report", run, "--html", folder_ / "page.html"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_THAT(outcome.out, Not(HasSubstr("\x1b")));
  const std::string page = ReadFile("page.html");
  EXPECT_THAT(page, HasSubstr("&lt;b&gt;&amp;&quot;x&#39;\\x1b[31m"));
  EXPECT_THAT(page, Not(HasSubstr("<b>")));
  EXPECT_THAT(page, Not(HasSubstr("\x1b")));
}

TEST_F(ReportVerb, LivesWithWhatOthersWrite) {
  std::filesystem::create_directories(folder_ / "odd");
  std::ofstream(folder_ / "odd/metrics.jsonl")
      << "not json\n[1]\n{\"step\":-1}\n{\"step\":\"1\"}\n"
      << R"({"step":1,"loss":"x","tokens":null,"routing":[],"validation_routing":{"loads":[1]}})"
      << "\n"
      << R"({"step":18446744073709551615,"loss":1e308,)"
      << R"("routing":{"layers":[1e300],"loads":[[-5,"x"]],)"
      << R"("max_vio":[null],"entropy":{}},"validation_routing":{"mutual_information":)"
      << R"([{"layers":[1e99,-4],"nats":1,"shuffled":0},{"layers":[1]},7]}})"
      << "\n"
      << R"({"step":2,"loss":-1e308})"
      << "\n"
      << R"({"step":3,"lo)";
  const VerbOutcome outcome =
      RunMoesaic({"report", folder_ / "odd", "--html", folder_ / "page.html", "-o", "json"});
  ASSERT_EQ(outcome.exit_code, kExitOk) << outcome.err;
  EXPECT_EQ(outcome.json()[0]["loss"], 1e308);
  EXPECT_THAT(ReadFile("page.html"), HasSubstr("</html>"));
}

TEST_F(ReportVerb, NamesAFileThatIsNotThereOrNotOne) {
  const VerbOutcome none = RunMoesaic({"report", folder_ / "none"});
  EXPECT_EQ(none.exit_code, ExitCodeFor(absl::NotFoundError("")));
  EXPECT_THAT(none.err, HasSubstr(folder_ / "none"));
  std::ofstream(folder_ / "other") << "hello\n";
  const VerbOutcome other = RunMoesaic({"report", folder_ / "other"});
  EXPECT_NE(other.exit_code, kExitOk);
  EXPECT_THAT(other.err, HasSubstr("metrics.jsonl"));
}

TEST(LinePlot, ThinsLongSeries) {
  std::vector<SeriesPoint> points;
  for (uint64_t step = 0; step < 100'000; ++step) points.push_back({step, 1.0});
  const std::string svg = LinePlot("title", {{"run", "#000000", points}});
  EXPECT_LT(svg.size(), 20'000u);
  EXPECT_THAT(svg, HasSubstr("<polyline"));
  EXPECT_EQ(LinePlot("title", {{"run", "#000000", {}}}), "");
}

TEST(NumberText, HasFourDigitsAndAUnit) {
  EXPECT_EQ(NumberText(0), "0");
  EXPECT_EQ(NumberText(3.14159), "3.142");
  EXPECT_EQ(NumberText(9999), "9999");
  EXPECT_EQ(NumberText(12345), "12.35k");  // the half goes up in binary
  EXPECT_EQ(NumberText(-2.5e9), "-2.5G");
}

}  // namespace
}  // namespace moesaic
