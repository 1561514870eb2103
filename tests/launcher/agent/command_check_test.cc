#include "launcher/agent/command_check.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

constexpr char kFolder[] = "/dev/shm/moesaic-0-abc";

const char* const kBadNames[] = {"", "..", "a/b", "/a", "../a", "A", "a\x1b", "a..b", ".a"};

AgentCommand PersistOf(const std::string& path) {
  AgentCommand command;
  command.mutable_persist()->set_job("a");
  command.mutable_persist()->add_arenas()->set_path(path);
  return command;
}

TEST(CommandCheck, TakesWhatCoordinatorsSay) {
  AgentCommand start;
  start.mutable_start()->set_job("a");
  start.mutable_start()->add_hosts()->set_node("n1");
  start.mutable_start()->add_arenas()->set_path(std::string(kFolder) + "/a/r0");
  EXPECT_TRUE(CheckCommand(start, kFolder).ok());
  EXPECT_TRUE(CheckCommand(PersistOf(std::string(kFolder) + "/a/r12.1"), kFolder).ok());
  EXPECT_EQ(*ArenaBelow(kFolder, "a", std::string(kFolder) + "/a/r0.1"), "a/r0.1");
}

TEST(CommandCheck, RefusesEveryJobThatIsNoName) {
  for (const char* name : kBadNames) {
    AgentCommand command;
    const auto refused = [&] {
      return absl::IsInvalidArgument(CheckCommand(command, kFolder));
    };
    command.mutable_start()->set_job(name);
    EXPECT_TRUE(refused()) << name;
    command.mutable_kill()->set_job(name);
    EXPECT_TRUE(refused()) << name;
    command.mutable_persist()->set_job(name);
    EXPECT_TRUE(refused()) << name;
    command.mutable_forget()->set_job(name);
    EXPECT_TRUE(refused()) << name;
    command.mutable_replicate()->set_job(name);
    EXPECT_TRUE(refused()) << name;
    command.mutable_keep()->set_job(name);
    EXPECT_TRUE(refused()) << name;
    if (*name == '\0') continue;
    command.mutable_start()->set_job("a");
    command.mutable_start()->add_hosts()->set_node(name);
    EXPECT_TRUE(refused()) << name;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(CheckCommand(AgentCommand(), kFolder)));
}

TEST(CommandCheck, RefusesArenasOutsideOfItsFolder) {
  const std::string folder = kFolder;
  for (const std::string& path :
       {std::string(""), std::string("/etc/passwd"), std::string("r0.0"), folder, folder + "/a",
        folder + "/a/", folder + "/b/r0.0", folder + "/a/../b/r0.0", folder + "/a/..",
        folder + "/a/x/r0.0", folder + "x/a/r0.0", folder + "/a//r0.0", folder + "/../" + folder}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckCommand(PersistOf(path), kFolder))) << path;
  }
}

}  // namespace
}  // namespace moesaic
