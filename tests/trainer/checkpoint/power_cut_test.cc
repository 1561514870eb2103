// C1, C2, C8: a save is stopped before each of its calls of the operating system, by a power cut,
// by the death of one process, or by an error of the disk.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "tests/trainer/checkpoint/tiny_root.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

constexpr int kFrozen = 1;

// What a process was told to be done.
struct Acknowledged {
  bool commit = false;
  bool pin = false;
  bool retained = false;
};

// Steps 1 and 2 are there, and 2 shares a file with 1. Step 3 is saved, 1 is pinned, 2 goes.
Acknowledged SavePinRetain(FileSystem* files) {
  Acknowledged done;
  auto root = CheckpointRoot::Open(files, kRoot);
  if (!root.ok()) return done;
  done.commit = CommitTiny(files, root->get(), 2, 3, 2, kFrozen).ok();
  done.pin = done.commit && (*root)->Pin(1, "keep").ok();
  done.retained = done.pin && (*root)->Retain(KeepLast(1)).ok();
  return done;
}

class PowerCutTest : public ::testing::Test {
 protected:
  PowerCutTest() {
    const auto root = OpenRoot(&base_);
    for (uint64_t step : {1, 2}) {
      EXPECT_TRUE(CommitTiny(&base_, root.get(), 2, step, 1, kFrozen).ok());
    }
  }

  // What the next process must find, and that it can go on from there.
  void ExpectSound(MemoryFileSystem* files, const Acknowledged& done, const std::string& where,
                   bool go_on) {
    ExpectAllVerify(files, where);
    const auto root = OpenRoot(files);
    const std::vector<uint64_t> steps = *root->Steps();
    ASSERT_FALSE(steps.empty()) << where;
    EXPECT_GE(steps.back(), done.commit ? 3u : 2u) << where;
    EXPECT_THAT(steps, Contains(1)) << where;
    if (done.pin) {
      EXPECT_TRUE(root->Pins()->contains(1)) << where;
    }
    if (done.retained) {
      EXPECT_THAT(steps, ElementsAre(1, 3)) << where;
    }
    ASSERT_TRUE(root->Sweep(0).ok()) << where;
    EXPECT_THAT(*root->Steps(), steps) << where;
    ExpectAllVerify(files, where + ", swept");
    EXPECT_EQ(*root->NewestVerified(VerifyDepth::kContent), steps.back()) << where;
    if (!go_on) return;
    ASSERT_TRUE(CommitTiny(files, root.get(), 3, 4, 3, kFrozen).ok()) << where;
    ASSERT_TRUE(root->Retain(KeepLast(1)).ok()) << where;
    EXPECT_THAT(*root->Steps(), Contains(4)) << where;
    EXPECT_THAT(*root->Steps(), Not(Contains(2))) << where;
    EXPECT_THAT(files->List(std::string(kRoot) + "/.staging"), IsEmpty()) << where;
    ExpectAllVerify(files, where + ", gone on");
  }

  MemoryFileSystem base_;
};

TEST_F(PowerCutTest, C1C2_BeforeAnyCallOfASaveLosesNoAckedStepAndShowsNoPartOfOne) {
  int64_t calls = 0;
  {
    MemoryFileSystem files = base_.Copy();
    ASSERT_TRUE(SavePinRetain(&files).retained);
    calls = files.calls();
  }
  ASSERT_GT(calls, 50);
  const struct {
    PowerCut cut;
    int seeds;
  } cuts[] = {{PowerCut::kLoseAll, 1},
              {PowerCut::kLoseContent, 1},
              {PowerCut::kLoseNothing, 1},
              {PowerCut::kLoseSome, 4}};
  for (const auto& [cut, seeds] : cuts) {
    for (int64_t call = 0; call <= calls; ++call) {
      for (int seed = 0; seed < seeds; ++seed) {
        const std::string where = "cut " + std::to_string(static_cast<int>(cut)) + " at call " +
                                  std::to_string(call) + ", seed " + std::to_string(seed);
        MemoryFileSystem files = base_.Copy();
        files.StopAt(call);
        const Acknowledged done = SavePinRetain(&files);
        files.Restart(cut, static_cast<uint32_t>(1000 * call + seed));
        ExpectSound(&files, done, where, call % 4 == 0);
        if (HasFatalFailure()) return;
      }
    }
  }
}

// One of the agents dies at each of its calls; the coordinator and the other agent go on.
TEST_F(PowerCutTest, C1_AnAgentThatDiesLosesItsSaveOnly) {
  for (int64_t call = 0;; ++call) {
    const std::string where = "call " + std::to_string(call);
    MemoryFileSystem files = base_.Copy();
    MemoryFileSystem agent = files.OtherProcess();
    agent.StopAt(call);
    const auto root = OpenRoot(&files);
    const auto staging = root->BeginStaging(3, 2);
    ASSERT_TRUE(staging.ok());
    const auto reports = PersistTiny(&agent, *staging, 2, 3, 2, kFrozen);
    EXPECT_EQ(reports.ok(), !agent.Reached()) << where;
    if (reports.ok()) {
      EXPECT_TRUE(root->Commit(TinyRequest(*staging, *reports, 2)).ok());
      break;
    }
    ASSERT_TRUE(root->Abort(*staging).ok()) << where;
    EXPECT_THAT(*root->Steps(), ElementsAre(1, 2)) << where;
    ExpectAllVerify(&files, where);
    ASSERT_TRUE(CommitTiny(&files, root.get(), 2, 3, 2, kFrozen).ok()) << where;
  }
}

// The coordinator dies at each of its calls; the agent, which does not know, writes to the end.
TEST_F(PowerCutTest, C1C7_ACoordinatorThatDiesIsFollowedByOneThatGoesOn) {
  for (int64_t call = 0;; ++call) {
    const std::string where = "call " + std::to_string(call);
    MemoryFileSystem agent = base_.Copy();
    MemoryFileSystem coordinator = agent.OtherProcess();
    coordinator.StopAt(call);
    Acknowledged done;
    auto root = CheckpointRoot::Open(&coordinator, kRoot);
    std::string staging;
    if (root.ok()) staging = (*root)->BeginStaging(3, 2).value_or("");
    if (!staging.empty()) {
      const auto reports = PersistTiny(&agent, staging, 2, 3, 2, kFrozen);
      ASSERT_TRUE(reports.ok()) << where;
      done.commit = (*root)->Commit(TinyRequest(staging, *reports, 2)).ok();
      done.pin = done.commit && (*root)->Pin(1, "keep").ok();
      done.retained = done.pin && (*root)->Retain(KeepLast(1)).ok();
    }
    MemoryFileSystem next = agent.OtherProcess();
    ExpectSound(&next, done, where, true);
    if (HasFatalFailure() || done.retained) return;
    // The agent of the older generation wakes up: what it wrote to is gone, and nothing changes.
    const std::vector<uint64_t> steps = *OpenRoot(&next)->Steps();
    EXPECT_FALSE(staging.empty() ? false : PersistTiny(&agent, staging, 2, 3, 2, kFrozen).ok());
    EXPECT_THAT(*OpenRoot(&next)->Steps(), steps) << where;
    ExpectAllVerify(&next, where);
  }
}

TEST_F(PowerCutTest, C8_AnyFailedCallLeavesTheRootWholeAndTheNextSaveWorks) {
  const absl::Status errors[] = {absl::ResourceExhaustedError("no space left on device"),
                                 absl::InternalError("input/output error")};
  for (const absl::Status& error : errors) {
    for (int64_t call = 0;; ++call) {
      const std::string where = std::string(error.message()) + " at call " + std::to_string(call);
      MemoryFileSystem files = base_.Copy();
      const auto root = OpenRoot(&files);
      files.FailAt(files.calls() + call, error);
      const auto staging = root->BeginStaging(3, 2);
      absl::Status status = staging.status();
      if (status.ok()) {
        const auto reports = PersistTiny(&files, *staging, 2, 3, 2, kFrozen);
        status = reports.ok() ? root->Commit(TinyRequest(*staging, *reports, 2)).status()
                              : reports.status();
      }
      // A link that fails is made up for by a write.
      if (!status.ok()) {
        EXPECT_THAT(status.message(), HasSubstr(error.message())) << where;
      }
      const bool reached = files.Reached();
      if (staging.ok()) {
        EXPECT_TRUE(root->Abort(*staging).ok()) << where;
      }
      if (status.ok()) status = root->Retain(KeepLast(2)).status();
      files.FailAt(-1, absl::OkStatus());
      ExpectAllVerify(&files, where);
      ASSERT_TRUE(CommitTiny(&files, root.get(), 2, 4, 2, kFrozen).ok()) << where;
      EXPECT_THAT(files.List(std::string(kRoot) + "/.staging"), IsEmpty()) << where;
      ExpectAllVerify(&files, where + ", saved again");
      if (!reached) break;
    }
  }
}

}  // namespace
}  // namespace moesaic
