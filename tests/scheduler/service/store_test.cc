#include "scheduler/service/store.h"

#include <gtest/gtest.h>

#include "tests/base/scratch_folder.h"

namespace moesaic {
namespace {

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override { path_ = dir_ + "/coordinator.sqlite"; }

  static JobRecord Record(const std::string& name, uint64_t generation) {
    JobRecord record;
    record.mutable_status()->set_job(name);
    record.mutable_status()->set_generation(generation);
    record.mutable_spec()->set_name(name);
    return record;
  }

  static StoredEvent Event(const std::string& job, uint64_t sequence) {
    StoredEvent stored{job, {}};
    stored.event.set_sequence(sequence);
    stored.event.set_note(job + " " + std::to_string(sequence));
    return stored;
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  std::string path_;
};

TEST_F(StoreTest, RemembersTheNewestRecordOfEachJobAndNode) {
  NodeRecord node;
  node.set_node("n1");
  {
    auto store = Store::Open(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Write({{Record("a", 1), Record("b", 1)}, {node}, {}}).ok());
    node.set_cordoned(true);
    ASSERT_TRUE((*store)->Write({{Record("a", 2)}, {node}, {}}).ok());
  }
  auto store = Store::Open(path_);
  ASSERT_TRUE(store.ok()) << store.status();
  const auto jobs = (*store)->ReadJobs();
  ASSERT_TRUE(jobs.ok()) << jobs.status();
  ASSERT_EQ(jobs->size(), 2u);
  EXPECT_EQ((*jobs)[0].status().generation(), 2u);
  EXPECT_EQ((*jobs)[1].spec().name(), "b");
  const auto nodes = (*store)->ReadNodes();
  ASSERT_TRUE(nodes.ok()) << nodes.status();
  ASSERT_EQ(nodes->size(), 1u);
  EXPECT_TRUE((*nodes)[0].cordoned());
}

TEST_F(StoreTest, EventsAreReadInOrderFromANumberOn) {
  {
    auto store = Store::Open(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    for (const uint64_t sequence : {1, 2, 3}) {
      ASSERT_TRUE((*store)->Write({{}, {}, {Event("a", sequence), Event("b", sequence)}}).ok());
    }
  }
  auto store = Store::Open(path_);
  ASSERT_TRUE(store.ok()) << store.status();
  EXPECT_EQ((*store)->LastSequences()->at("a"), 3u);
  const auto events = (*store)->ReadEvents("a", 1, 10);
  ASSERT_TRUE(events.ok()) << events.status();
  ASSERT_EQ(events->size(), 2u);
  EXPECT_EQ((*events)[0].note(), "a 2");
  EXPECT_EQ((*store)->ReadEvents("a", 0, 1)->size(), 1u);
}

TEST_F(StoreTest, OldEventsAreDropped) {
  auto store = Store::Open(path_);
  ASSERT_TRUE(store.ok()) << store.status();
  StoreChanges changes;
  const uint64_t last = kKeptEvents + 1024 - kKeptEvents % 1024;
  for (uint64_t sequence = 1; sequence <= last; ++sequence) {
    changes.events.push_back(Event("a", sequence));
  }
  ASSERT_TRUE((*store)->Write(changes).ok());
  EXPECT_EQ((*store)->ReadEvents("a", 0, 1)->front().sequence(), last - kKeptEvents + 1);
}

TEST_F(StoreTest, RefusesAFileThatIsNoStore) {
  FILE* file = fopen(path_.c_str(), "w");
  fputs("this is not a database, and long enough to be looked at as one by its header", file);
  fclose(file);
  EXPECT_FALSE(Store::Open(path_).ok());
}

TEST_F(StoreTest, RefusesAFolderThatIsNotThere) {
  EXPECT_FALSE(Store::Open(dir_ + "/missing/x.sqlite").ok());
}

}  // namespace
}  // namespace moesaic
