// Every job file that the project ships is valid.
#include <gtest/gtest.h>

#include <filesystem>

#include "launcher/config/job_file.h"

namespace moesaic {
namespace {

TEST(Configs, AreValid) {
  int files = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator("configs")) {
    if (!entry.is_regular_file()) continue;
    const std::string suffix = entry.path().extension().string();
    if (suffix != ".yaml" && suffix != ".textproto") continue;
    ++files;
    absl::StatusOr<JobText> text = ReadJobText(entry.path().string());
    ASSERT_TRUE(text.ok()) << text.status();
    JobSources sources;
    sources.text = *std::move(text);
    EXPECT_EQ(LoadJob(sources).status(), absl::OkStatus());
  }
  EXPECT_GE(files, 3);
}

}  // namespace
}  // namespace moesaic
