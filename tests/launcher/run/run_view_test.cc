#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "launcher/run/progress_view.h"
#include "launcher/run/run_summary.h"

namespace moesaic {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class HandClock : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1000);
};

JobEvent Running() {
  JobEvent event;
  event.mutable_status()->set_state(RUNNING);
  event.mutable_status()->set_total_steps(100);
  event.mutable_status()->set_generation(1);
  return event;
}

JobEvent Step(uint64_t step) {
  JobEvent event;
  event.mutable_step()->set_step(step);
  event.mutable_step()->set_loss(2.5);
  event.mutable_step()->set_seconds(0.5);
  event.mutable_step()->set_generation(1);
  event.mutable_step()->add_expert_load_max_over_mean(1.25);
  return event;
}

TEST(ProgressView, PlainLinesAreRareButFirstLastAndValidationShow) {
  HandClock clock;
  std::ostringstream out;
  {
    ProgressView view(false, out, clock);
    view.Take(Running());
    for (uint64_t step = 1; step <= 100; ++step) {
      JobEvent event = Step(step);
      if (step == 40) event.mutable_step()->set_validation_loss(3);
      view.Take(event);
      clock.now += absl::Milliseconds(10);
    }
  }
  EXPECT_THAT(out.str(), HasSubstr("step 1/100  loss 2.5000"));
  EXPECT_THAT(out.str(), HasSubstr("validation 3.0000"));
  EXPECT_THAT(out.str(), HasSubstr("step 100/100"));
  EXPECT_THAT(out.str(), HasSubstr("max/mean 1.25"));
  EXPECT_THAT(out.str(), HasSubstr("eta 50s"));
  EXPECT_THAT(out.str(), Not(HasSubstr("step 41/100")));
}

TEST(ProgressView, NewestStepIsNotLostAtTheEnd) {
  HandClock clock;
  std::ostringstream out;
  ProgressView view(false, out, clock);
  view.Take(Running());
  view.Take(Step(1));
  view.Take(Step(2));
  EXPECT_THAT(out.str(), Not(HasSubstr("step 2/")));
  view.Finish();
  EXPECT_THAT(out.str(), HasSubstr("step 2/"));
}

TEST(ProgressView, TerminalLineIsRedrawnBelowNotes) {
  HandClock clock;
  std::ostringstream out;
  ProgressView view(true, out, clock);
  view.Take(Running());
  view.Take(Step(1));
  JobEvent note;
  note.set_note("step 1 is saved");
  view.Take(note);
  const std::string text = out.str();
  EXPECT_LT(text.find("step 1 is saved\n"), text.rfind("step 1/100"));
}

TEST(ProgressView, StepsOfARecipeWithPhasesSayWhichItIs) {
  HandClock clock;
  std::ostringstream out;
  ProgressView view(false, out, clock);
  view.Take(Running());
  JobEvent event = Step(1);
  event.mutable_step()->set_phase(ONE_EXPERT);
  view.Take(event);
  EXPECT_THAT(out.str(), HasSubstr("  phase one_expert  generation 1"));
  event.mutable_step()->set_phase(DENSE_TO_SPARSE);
  event.mutable_step()->set_temperature(1.416);
  event.mutable_step()->set_validation_loss(3);
  view.Take(event);
  EXPECT_THAT(out.str(), HasSubstr("  phase dense_to_sparse, temperature 1.42  generation 1"));
  out.str("");
  event.mutable_step()->set_phase(STEADY);
  event.mutable_step()->clear_temperature();
  view.Take(event);
  EXPECT_THAT(out.str(), HasSubstr("step 1/100"));
  EXPECT_THAT(out.str(), Not(HasSubstr("phase")));
}

TEST(ProgressView, DurationsHaveTwoParts) {
  EXPECT_EQ(DurationForPeople(5), "5s");
  EXPECT_EQ(DurationForPeople(65), "1m05s");
  EXPECT_EQ(DurationForPeople(7380), "2h03m");
  EXPECT_EQ(DurationForPeople(90000), "1d01h");
}

TEST(RunSummary, JsonHasTheContractsFields) {
  JobStatus status;
  status.set_job("a");
  status.set_state(SUCCEEDED);
  status.mutable_last_step()->set_step(30);
  status.set_validation_loss(0);
  const auto json = nlohmann::json::parse(SummaryJson(status));
  for (const char* field :
       {"job", "state", "generation", "step", "loss", "validation_loss", "perplexity", "tokens",
        "seconds", "tokens_per_second", "checkpoint", "restarts"}) {
    EXPECT_TRUE(json.contains(field)) << field;
  }
  EXPECT_EQ(json["perplexity"], 1.0);
  EXPECT_TRUE(json["checkpoint"].is_null());
  EXPECT_EQ(SummaryJson(status).find('\n'), std::string::npos);
}

TEST(RunSummary, InterruptedIs130OnlyWhenAllIsSaved) {
  JobStatus status;
  status.set_state(CANCELLED);
  status.set_exit_code(7);
  status.mutable_last_step()->set_step(30);
  status.set_committed_step(30);
  EXPECT_EQ(RunExitCode(status, 2, false), 130);
  EXPECT_EQ(RunExitCode(status, 15, false), 143);
  EXPECT_EQ(RunExitCode(status, 0, false), 7);
  status.set_committed_step(20);
  EXPECT_EQ(RunExitCode(status, 2, false), 1);
  EXPECT_EQ(RunExitCode(status, 2, true), 130);
}

}  // namespace
}  // namespace moesaic
