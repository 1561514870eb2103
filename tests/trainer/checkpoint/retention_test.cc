#include "trainer/checkpoint/format/retention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <set>

#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

KeepSpec Keep(uint32_t last, uint64_t every, uint32_t best) {
  KeepSpec keep;
  keep.set_last(last);
  keep.set_every_steps(every);
  keep.set_best(best);
  return keep;
}

absl::Time At(int64_t hours) { return absl::FromUnixSeconds(1'800'000'000) + absl::Hours(hours); }

std::vector<uint64_t> KeptSteps(const KeepSpec& keep, const std::vector<StepFacts>& steps,
                                absl::Time now = At(0)) {
  std::vector<uint64_t> kept;
  for (const KeepDecision& decision : ChooseKept(keep, steps, now)) {
    if (decision.kept()) kept.push_back(decision.step);
  }
  return kept;
}

TEST(RetentionTest, TheRulesAreUnited) {
  std::vector<StepFacts> steps;
  for (uint64_t step = 100; step <= 1000; step += 100) {
    steps.push_back({step, step == 200, false, static_cast<double>(step % 700)});
  }
  EXPECT_THAT(KeptSteps(Keep(2, 0, 0), steps), ElementsAre(200, 900, 1000));
  EXPECT_THAT(KeptSteps(Keep(1, 400, 0), steps), ElementsAre(200, 400, 800, 1000));
  EXPECT_THAT(KeptSteps(Keep(1, 0, 2), steps), ElementsAre(200, 700, 800, 1000));
  const std::vector<KeepDecision> decisions = ChooseKept(Keep(1, 500, 1), steps, At(0));
  EXPECT_THAT(decisions[9].reasons, ElementsAre(KeepReason::kNewest, KeepReason::kEvery));
  EXPECT_THAT(decisions[6].reasons, ElementsAre(KeepReason::kBest));
  EXPECT_THAT(decisions[7].reasons, IsEmpty());
}

TEST(RetentionTest, EveryTakesTheFirstAtOrAfterAMultiple) {
  std::vector<StepFacts> steps;
  for (uint64_t step : {90, 240, 260, 280, 510, 760, 770, 990}) {
    steps.push_back({step, false, false, {}});
  }
  EXPECT_THAT(KeptSteps(Keep(1, 250, 0), steps), ElementsAre(260, 510, 760, 990));
}

TEST(RetentionTest, TheLaterOfEqualMetricsIsBetterAndNotANumberIsNone) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const std::vector<StepFacts> steps = {
      {1, false, false, nan}, {2, false, false, 3.0}, {3, false, false, 3.0},
      {4, false, false, {}},  {5, false, false, 4.0}};
  EXPECT_THAT(KeptSteps(Keep(1, 0, 1), steps), ElementsAre(3, 5));
  EXPECT_THAT(KeptSteps(Keep(1, 0, 9), steps), ElementsAre(2, 3, 5));
}

TEST(RetentionTest, WithinKeepsWhatIsYoungBesideTheOtherRules) {
  std::vector<StepFacts> steps;
  for (int hour = 0; hour < 6; ++hour) {
    steps.push_back({100u * (hour + 1), hour == 0, hour == 4, {}, At(hour)});
  }
  KeepSpec keep = Keep(1, 0, 0);
  EXPECT_THAT(KeptSteps(keep, steps, At(6)), ElementsAre(100, 500, 600));
  keep.set_within(3 * 3600);
  EXPECT_THAT(KeptSteps(keep, steps, At(6)), ElementsAre(100, 400, 500, 600));
  EXPECT_THAT(KeptSteps(keep, steps, At(6) + absl::Nanoseconds(1)), ElementsAre(100, 500, 600));
  EXPECT_THAT(ChooseKept(keep, steps, At(6))[3].reasons, ElementsAre(KeepReason::kWithin));
  // A clock that was set back: what seems to come from the future is young.
  EXPECT_THAT(KeptSteps(keep, steps, At(-9)), ElementsAre(100, 200, 300, 400, 500, 600));
}

TEST(RetentionTest, ADamagedStepNeitherCountsNorGoes) {
  const std::vector<StepFacts> steps = {
      {1, false, false, {}}, {2, false, false, {}}, {3, false, true, 0.1}};
  EXPECT_THAT(KeptSteps(Keep(1, 0, 1), steps), ElementsAre(2, 3));
}

// What the rules say, one step at a time and without looking at how ChooseKept does it.
bool Wanted(const KeepSpec& keep, const std::vector<StepFacts>& steps, const StepFacts& one,
            absl::Time now) {
  if (one.pinned || one.damaged) return true;
  uint32_t newer = 0, better = 0;
  bool first_of_window = keep.every_steps() > 0 && one.step >= keep.every_steps();
  for (const StepFacts& other : steps) {
    if (other.damaged || other.step == one.step) continue;
    newer += other.step > one.step;
    if (one.metric && other.metric) {
      better += *other.metric < *one.metric ||
                (*other.metric == *one.metric && other.step > one.step);
    }
    if (keep.every_steps() > 0 && other.step < one.step &&
        other.step / keep.every_steps() == one.step / keep.every_steps()) {
      first_of_window = false;
    }
  }
  const bool young = keep.within() > 0 && one.created + absl::Seconds(keep.within()) >= now;
  return newer < keep.last() || first_of_window || (one.metric && better < keep.best()) || young;
}

TEST(RetentionTest, C9_HoldsInRandomHistories) {
  for (int seed = 0; seed < 5000; ++seed) {
    std::mt19937 random(seed);
    KeepSpec keep = Keep(1 + random() % 4, random() % 3 * (random() % 40), random() % 4);
    keep.set_within(random() % 2 * (random() % 20) * 3600.0);
    std::vector<StepFacts> all, kept;
    uint64_t step = 0;
    int64_t hour = 0;
    for (int save = 0; save < 30; ++save) {
      StepFacts fresh;
      fresh.step = step += 1 + random() % 15;
      fresh.pinned = random() % 10 == 0;
      fresh.damaged = random() % 12 == 0;
      hour += random() % 5;
      fresh.created = At(hour);
      if (random() % 4 != 0) fresh.metric = static_cast<double>(random() % 9);
      all.push_back(fresh);
      kept.push_back(fresh);
      const std::vector<StepFacts> before = kept;
      kept.clear();
      const std::vector<KeepDecision> decisions = ChooseKept(keep, before, At(hour));
      ASSERT_EQ(decisions.size(), before.size());
      for (size_t i = 0; i < before.size(); ++i) {
        ASSERT_EQ(decisions[i].kept(), Wanted(keep, before, before[i], At(hour)))
            << "seed " << seed << ", step " << before[i].step;
        if (decisions[i].kept()) kept.push_back(before[i]);
      }
      const auto sound = std::ranges::find_if(all.rbegin(), all.rend(),
                                              [](const StepFacts& s) { return !s.damaged; });
      if (sound != all.rend()) {
        ASSERT_TRUE(std::ranges::count(kept, sound->step, &StepFacts::step)) << "seed " << seed;
      }
      // Removing as one goes is the same as removing once at the end: no rule wants back what it
      // let go.
      std::vector<uint64_t> as_one_goes;
      for (const StepFacts& s : kept) as_one_goes.push_back(s.step);
      ASSERT_EQ(as_one_goes, KeptSteps(keep, all, At(hour))) << "seed " << seed;
    }
  }
}

class HandClock : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = At(0);
};

class RootTest : public ::testing::Test {
 protected:
  void Commit(uint64_t step, double loss) { CommitAt(step, loss, absl::Now()); }

  void CommitAt(uint64_t step, double loss, absl::Time when) {
    const auto staging = root_->BeginStaging(step, 1);
    auto reports = PersistTiny(&files_, *staging, 1, step, 1);
    reports->front().mutable_state()->set_validation_loss(loss);
    CommitRequest request = TinyRequest(*staging, *reports, 1);
    request.created = when;
    const auto committed = root_->Commit(request);
    ASSERT_TRUE(committed.ok()) << committed.status();
  }

  void Damage(uint64_t step) { files_.Remove(root_->StepPath(step) + "/x-L001-E0002.safetensors"); }

  std::vector<uint64_t> Steps() { return *root_->Steps(); }

  MemoryFileSystem files_;
  std::unique_ptr<CheckpointRoot> root_ = *CheckpointRoot::Open(&files_, "/c");
};

TEST_F(RootTest, C9_RetainAppliesEveryRule) {
  for (uint64_t step = 1; step <= 8; ++step) Commit(step, step == 3 ? 0.5 : 2.0 + step);
  ASSERT_TRUE(root_->Pin(2, "a good one").ok());
  EXPECT_THAT(*root_->Retain(Keep(2, 4, 1)), ElementsAre(1, 5, 6));
  EXPECT_THAT(Steps(), ElementsAre(2, 3, 4, 7, 8));
  ASSERT_TRUE(root_->Unpin(2).ok());
  EXPECT_THAT(*root_->Retain(Keep(2, 4, 1)), ElementsAre(2));
  EXPECT_THAT(files_.List("/c/.trash"), IsEmpty());
}

TEST_F(RootTest, C9_RetainLooksAtTheTimeInTheManifest) {
  HandClock clock;
  root_ = *CheckpointRoot::Open(&files_, "/c", &clock);
  for (uint64_t step = 1; step <= 4; ++step) {
    CommitAt(step, 1, clock.now);
    clock.now += absl::Hours(24);
  }
  KeepSpec keep = Keep(1, 0, 0);
  keep.set_within(48 * 3600);
  EXPECT_THAT(*root_->Retain(keep), ElementsAre(1, 2));
  clock.now += absl::Hours(24);
  EXPECT_THAT(*root_->Retain(keep), ElementsAre(3));
  EXPECT_THAT(Steps(), ElementsAre(4));
}

TEST_F(RootTest, C9_TheLastStepThatVerifiesStaysWhateverTheRule) {
  for (uint64_t step = 1; step <= 4; ++step) Commit(step, 1);
  Damage(3);
  Damage(4);
  EXPECT_THAT(*root_->Retain(Keep(1, 0, 0)), ElementsAre(1));
  EXPECT_THAT(Steps(), ElementsAre(2, 3, 4));
  EXPECT_EQ(*root_->NewestVerified(VerifyDepth::kContent), 2u);
}

TEST_F(RootTest, TheNewestThatVerifiesIsFoundOnSeveralThreads) {
  for (uint64_t step = 1; step <= 3; ++step) Commit(step, 1);
  Damage(3);
  std::string flipped = files_.Read(root_->StepPath(2) + "/x-L001-E0002.safetensors");
  flipped.back() = static_cast<char>(flipped.back() ^ 1);
  files_.Write(root_->StepPath(2) + "/x-L001-E0002.safetensors", flipped);
  uint64_t last = 0, whole = 0;
  VerifyOptions options;
  options.threads = 4;
  options.progress = [&](uint64_t done, uint64_t total) {
    last = done;
    whole = total;
  };
  EXPECT_EQ(*root_->NewestVerified(options), 1u);
  EXPECT_EQ(last, whole);  // of the step that was taken
  EXPECT_GT(whole, 0u);
  EXPECT_EQ(root_->Quarantined()->size(), 2u);
}

TEST_F(RootTest, APinIsDurableAndOfAStepThatIsThere) {
  Commit(1, 1);
  EXPECT_TRUE(absl::IsNotFound(root_->Pin(7, "")));
  EXPECT_TRUE(absl::IsInvalidArgument(root_->Pin(1, std::string(5000, 'x'))));
  ASSERT_TRUE(root_->Pin(1, "first").ok());
  ASSERT_TRUE(root_->Pin(1, "second").ok());
  files_.Restart(PowerCut::kLoseAll);
  root_ = *CheckpointRoot::Open(&files_, "/c");
  EXPECT_THAT(*root_->Pins(), ElementsAre(std::pair(1u, "first")));
  ASSERT_TRUE(root_->Unpin(1).ok());
  ASSERT_TRUE(root_->Unpin(1).ok());
  files_.Restart(PowerCut::kLoseAll);
  root_ = *CheckpointRoot::Open(&files_, "/c");
  EXPECT_THAT(*root_->Pins(), IsEmpty());
}

TEST_F(RootTest, RemoveRefusesAPinnedAndTheOnlyStep) {
  Commit(1, 1);
  Commit(2, 1);
  ASSERT_TRUE(root_->Pin(2, "").ok());
  EXPECT_THAT(root_->Remove(2, false).message(), HasSubstr("is pinned"));
  EXPECT_TRUE(absl::IsNotFound(root_->Remove(3, false)));
  ASSERT_TRUE(root_->Remove(2, true).ok());
  EXPECT_THAT(root_->Remove(1, false).message(), HasSubstr("the only checkpoint"));
  EXPECT_THAT(Steps(), ElementsAre(1));
  ASSERT_TRUE(root_->Remove(1, true).ok());
  EXPECT_THAT(Steps(), IsEmpty());
  EXPECT_THAT(*root_->Pins(), IsEmpty());
}

TEST_F(RootTest, QuarantineRecordsWhyWhenAndThePin) {
  Commit(1, 1);
  Commit(2, 1);
  ASSERT_TRUE(root_->Pin(2, "").ok());
  Damage(2);
  EXPECT_EQ(*root_->NewestVerified(VerifyDepth::kStructure), 1u);
  const auto list = root_->Quarantined();
  ASSERT_TRUE(list.ok());
  ASSERT_EQ(list->size(), 1u);
  EXPECT_EQ(list->front().step, 2u);
  EXPECT_THAT(list->front().reason, HasSubstr("x-L001-E0002.safetensors: it is missing"));
  EXPECT_LT(absl::Now() - list->front().when, absl::Minutes(5));
  EXPECT_TRUE(list->front().was_pinned);
  EXPECT_TRUE(files_.OpenFolder(list->front().path).ok());
  // The number is free again, and not pinned.
  Commit(2, 1);
  EXPECT_THAT(*root_->Pins(), IsEmpty());
  files_.Write(list->front().path + ".json", "[]");
  EXPECT_EQ(root_->Quarantined()->front().reason, "");
  EXPECT_EQ(root_->Quarantined()->front().step, 2u);
}

TEST_F(RootTest, ASweepDropsPinsOfStepsThatAreGone) {
  Commit(1, 1);
  ASSERT_TRUE(root_->Pin(1, "").ok());
  files_.Write("/c/.pins/step-000000009", "");
  EXPECT_EQ(root_->Pins()->size(), 1u);
  ASSERT_TRUE(root_->Sweep(0).ok());
  EXPECT_THAT(files_.List("/c/.pins"), ElementsAre("step-000000001"));
}

}  // namespace
}  // namespace moesaic
