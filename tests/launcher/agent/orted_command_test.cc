#include "launcher/agent/orted_command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

// As mpirun 4.1.4 gives them to its remote shell, a word an argument, with the quotes.
const std::vector<std::string>& FromMpirun() {
  static const std::vector<std::string> words = {" orted",
                                                 "-mca",
                                                 "orte_leave_session_attached",
                                                 "\"1\"",
                                                 "-mca",
                                                 "ess",
                                                 "\"env\"",
                                                 "-mca",
                                                 "ess_base_jobid",
                                                 "\"3437559808\"",
                                                 "-mca",
                                                 "ess_base_vpid",
                                                 "1",
                                                 "-mca",
                                                 "ess_base_num_procs",
                                                 "\"2\"",
                                                 "-mca",
                                                 "orte_node_regex",
                                                 "\"h[1:1],[2:10].213.7.2@0(2)\"",
                                                 "-mca",
                                                 "orte_hnp_uri",
                                                 "\"3437559808.0;tcp://10.213.7.1:51449\"",
                                                 "--mca",
                                                 "plm_rsh_agent",
                                                 "\"/opt/shim\"",
                                                 "--mca",
                                                 "btl",
                                                 "\"self,vader,tcp\"",
                                                 "--mca",
                                                 "oob_tcp_if_include",
                                                 "\"10.213.7.0/24\"",
                                                 "-mca",
                                                 "plm",
                                                 "\"rsh\"",
                                                 "-mca",
                                                 "pmix",
                                                 "\"^s1,s2,cray,isolated\""};
  return words;
}

std::vector<std::string> With(std::vector<std::string> words, const std::string& name,
                              const std::string& value) {
  words.insert(words.end(), {"-mca", name, value});
  return words;
}

TEST(OrtedCommand, TakesWhatMpirunGives) {
  const auto command = ReadRemoteCommand(FromMpirun());
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_EQ(command->at(0), "orted");
  EXPECT_THAT(*command, ::testing::Contains("3437559808.0;tcp://10.213.7.1:51449"));
  const auto checked = CheckOrtedCommand(*command);
  ASSERT_TRUE(checked.ok()) << checked.status();
  EXPECT_THAT(*checked, ::testing::Contains("h[1:1],[2:10].213.7.2@0(2)"));
}

TEST(OrtedCommand, TakesOneWordForAll) {
  const auto command = ReadRemoteCommand({"orted -mca ess \"env\" -mca ess_base_vpid 1"});
  ASSERT_TRUE(command.ok()) << command.status();
  EXPECT_THAT(*command, ElementsAre("orted", "-mca", "ess", "env", "-mca", "ess_base_vpid", "1"));
}

TEST(OrtedCommand, DropsTheReadingOfAProfile) {
  std::vector<std::string> words = {"(", "test", "!", "-r", "./.profile", "||", ".", "./.profile;"};
  words.insert(words.end(), FromMpirun().begin(), FromMpirun().end());
  words.push_back(")");
  EXPECT_EQ(ReadRemoteCommand(words).value(), ReadRemoteCommand(FromMpirun()).value());
}

TEST(OrtedCommand, StartsNoFurtherDaemons) {
  const auto checked = CheckOrtedCommand(ReadRemoteCommand(FromMpirun()).value());
  ASSERT_TRUE(checked.ok());
  EXPECT_THAT(*checked, Not(::testing::Contains("/opt/shim")));
  EXPECT_THAT(*checked, ::testing::Contains("plm_rsh_no_tree_spawn"));
}

TEST(OrtedCommand, RefusesWhatAShellWouldActOn) {
  for (const char* command :
       {"orted; id", "orted -mca ess $(id)", "orted `id`", "orted | sh", "orted && id",
        "orted -mca ess \"env\nid\"", "orted > /etc/passwd", "orted -mca ess \"$HOME\"",
        "PATH=/tmp ; export PATH ; orted", "orted -mca orte_hnp_uri 1.0;id", "( orted )",
        "orted -mca ess 'env'", "orted \\", ""}) {
    EXPECT_FALSE(ReadRemoteCommand({command}).ok()) << command;
  }
  EXPECT_FALSE(ReadRemoteCommand(std::vector<std::string>(1000, "orted")).ok());
  EXPECT_FALSE(ReadRemoteCommand({}).ok());
}

TEST(OrtedCommand, RefusesWhatIsNotOrted) {
  for (const std::vector<std::string>& words :
       std::vector<std::vector<std::string>>{{},
                                             {"sh"},
                                             {"/tmp/orted"},
                                             {"orted", "--hnp", "x"},
                                             {"orted", "-mca", "ess"},
                                             {"orted", "-x", "ess", "env"}}) {
    EXPECT_FALSE(CheckOrtedCommand(words).ok());
  }
}

TEST(OrtedCommand, RefusesParametersThatLoadCodeOrFiles) {
  const std::vector<std::string> good = ReadRemoteCommand(FromMpirun()).value();
  for (const char* name : {"mca_base_component_path", "mca_base_param_files", "orte_launch_agent",
                           "orte_tmpdir_base", "orte_output_filename", ""}) {
    const auto checked = CheckOrtedCommand(With(good, name, "/tmp/x"));
    EXPECT_TRUE(absl::IsInvalidArgument(checked.status())) << name;
    EXPECT_THAT(std::string(checked.status().message()), HasSubstr(name));
  }
}

TEST(OrtedCommand, RefusesValuesOfAnotherForm) {
  const std::vector<std::string> good = ReadRemoteCommand(FromMpirun()).value();
  EXPECT_FALSE(CheckOrtedCommand(With(good, "ess_base_vpid", "-1")).ok());
  EXPECT_FALSE(CheckOrtedCommand(With(good, "ess_base_vpid", "")).ok());
  EXPECT_FALSE(CheckOrtedCommand(With(good, "btl", "/tmp/evil.so")).ok());
  EXPECT_FALSE(CheckOrtedCommand(With(good, "orte_hnp_uri", "file:/etc/passwd")).ok());
  EXPECT_FALSE(CheckOrtedCommand(With(good, "oob_tcp_if_include", "$(id)")).ok());
  EXPECT_FALSE(CheckOrtedCommand(With(good, "orte_node_regex", std::string(1 << 20, 'a'))).ok());
}

}  // namespace
}  // namespace moesaic
