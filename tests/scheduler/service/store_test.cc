#include "scheduler/service/store.h"

#include <gtest/gtest.h>

#include <filesystem>

namespace moesaic {
namespace {

class StoreTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/moesaic-store-XXXXXX";
    dir_ = mkdtemp(pattern.data());
    path_ = dir_ + "/coordinator.sqlite";
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  static JobRecord Record(const std::string& name, uint64_t generation) {
    JobRecord record;
    record.mutable_status()->set_job(name);
    record.mutable_status()->set_generation(generation);
    record.mutable_spec()->set_name(name);
    return record;
  }

  std::string dir_;
  std::string path_;
};

TEST_F(StoreTest, RemembersTheNewestRecordOfEachJob) {
  {
    auto store = Store::Open(path_);
    ASSERT_TRUE(store.ok()) << store.status();
    ASSERT_TRUE((*store)->Write({Record("a", 1), Record("b", 1)}).ok());
    ASSERT_TRUE((*store)->Write({Record("a", 2)}).ok());
  }
  auto store = Store::Open(path_);
  ASSERT_TRUE(store.ok()) << store.status();
  const auto records = (*store)->ReadAll();
  ASSERT_TRUE(records.ok()) << records.status();
  ASSERT_EQ(records->size(), 2u);
  EXPECT_EQ((*records)[0].status().generation(), 2u);
  EXPECT_EQ((*records)[1].spec().name(), "b");
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
