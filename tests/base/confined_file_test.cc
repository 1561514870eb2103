#include "base/confined_file.h"

#include <gtest/gtest.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "tests/base/scratch_folder.h"

namespace moesaic {
namespace {

namespace fs = std::filesystem;
using Open = absl::StatusOr<int> (*)(const std::string&, const std::string&);

class ConfinedFileTest : public ::testing::TestWithParam<Open> {
 protected:
  void SetUp() override {
    root_ = dir_ + "/root";
    fs::create_directories(root_ + "/job");
    std::ofstream(root_ + "/job/r0.0") << "snapshot";
    std::ofstream(dir_ + "/secret") << "secret";
  }

  absl::StatusCode CodeOf(const std::string& path) const {
    const absl::StatusOr<int> fd = GetParam()(root_, path);
    if (fd.ok()) close(*fd);
    return fd.status().code();
  }

  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  std::string root_;
};

TEST_P(ConfinedFileTest, OpensWhatIsBelow) {
  const absl::StatusOr<int> fd = GetParam()(root_, "job/r0.0");
  ASSERT_TRUE(fd.ok()) << fd.status();
  char bytes[8];
  EXPECT_EQ(read(*fd, bytes, sizeof(bytes)), 8);
  EXPECT_EQ(std::string(bytes, 8), "snapshot");
  close(*fd);
  EXPECT_EQ(CodeOf("job/r0.1"), absl::StatusCode::kNotFound);
}

TEST_P(ConfinedFileTest, RefusesPathsThatLeadOut) {
  for (const std::string& path :
       {std::string("../secret"), std::string("job/../../secret"), dir_ + "/secret",
        std::string("/etc/passwd"), std::string(""), std::string("."), std::string("job/./r0.0"),
        std::string("job//r0.0"), std::string("job/"), std::string("job/r0.0\0x", 10)}) {
    EXPECT_EQ(CodeOf(path), absl::StatusCode::kInvalidArgument) << path;
  }
}

TEST_P(ConfinedFileTest, RefusesLinksInEveryPart) {
  fs::create_symlink(dir_ + "/secret", root_ + "/job/link");
  fs::create_symlink("r0.0", root_ + "/job/near");
  fs::create_symlink(dir_, root_ + "/out");
  fs::create_symlink("job", root_ + "/other");
  for (const char* path : {"job/link", "job/near", "out/secret", "other/r0.0"}) {
    EXPECT_EQ(CodeOf(path), absl::StatusCode::kFailedPrecondition) << path;
  }
}

// The test would not end if an open waited for a writer.
TEST_P(ConfinedFileTest, RefusesWhatIsNoFileAndNeverBlocks) {
  ASSERT_EQ(mkfifo((root_ + "/job/fifo").c_str(), 0600), 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, (root_ + "/s").c_str(), sizeof(address.sun_path) - 1);
  const int socket_fd = socket(AF_UNIX, SOCK_STREAM, 0);
  ASSERT_EQ(bind(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  for (const char* path : {"job/fifo", "s", "job"}) {
    EXPECT_EQ(CodeOf(path), absl::StatusCode::kFailedPrecondition) << path;
  }
  close(socket_fd);
}

INSTANTIATE_TEST_SUITE_P(Ways, ConfinedFileTest,
                         ::testing::Values(&OpenConfined, &OpenConfinedByParts));

}  // namespace
}  // namespace moesaic
