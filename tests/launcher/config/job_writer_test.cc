#include "launcher/config/job_writer.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "tests/launcher/config/small_job.h"

namespace moesaic {
namespace {

LoadedJob Loaded(const std::string& text, bool textproto = false) {
  JobSources sources;
  sources.text = JobText{"job", text, textproto};
  absl::StatusOr<LoadedJob> job = LoadJob(sources);
  EXPECT_TRUE(job.ok()) << job.status() << "\n" << text;
  return job.ok() ? *std::move(job) : LoadedJob();
}

// With an empty message, a chosen oneof member, text that needs quotes, units and small numbers.
LoadedJob RichJob() {
  return Loaded(absl::StrCat(
      SmallJobWith("{path: corpus/train}",
                   "{path: \"no\"}, {path: \"a \\\"b\\\": #\\u00e9\\t\\\\\", weight: 0.125}"),
      "health: {lease_ttl: 1500ms}\n"
      "recipe: {router: {select: {capacity_factor: 1.25}}}\n"
      "run: {dir: auto}\n"
      "parallel: {}\n"));
}

TEST(WriteYaml, RoundTripsGivenAndResolvedJobs) {
  for (const LoadedJob& job : {RichJob(), Loaded(kSmallJob)}) {
    EXPECT_EQ(Loaded(WriteYaml(job.given)).given.SerializeAsString(),
              job.given.SerializeAsString());
    const std::string resolved = WriteYaml(job.spec, job.origins);
    EXPECT_EQ(Loaded(resolved).spec.SerializeAsString(), job.spec.SerializeAsString()) << resolved;
  }
}

TEST(WriteTextproto, RoundTrips) {
  const LoadedJob job = RichJob();
  EXPECT_EQ(Loaded(WriteTextproto(job.spec), true).spec.SerializeAsString(),
            job.spec.SerializeAsString());
}

TEST(WriteYaml, AlignsTheOriginsOfValues) {
  const LoadedJob job = Loaded(kSmallJob);
  const std::string yaml = WriteYaml(job.spec, job.origins);
  EXPECT_EQ(yaml.substr(0, yaml.find("  hidden")),
            "name: small                       # job:1:7\n"
            "model:\n"
            "  layers: 4                       # job:3:11\n");
  EXPECT_NE(yaml.find("  dense_width: auto               # default\n"), std::string::npos) << yaml;
  EXPECT_NE(yaml.find("  lease_ttl: 5s                   # default\n"), std::string::npos) << yaml;
}

TEST(WriteJson, KeepsTypes) {
  const nlohmann::json json = nlohmann::json::parse(WriteJson(RichJob().spec));
  EXPECT_EQ(json["name"], "small");
  EXPECT_EQ(json["model"]["layers"], 4);
  EXPECT_EQ(json["train"]["steps"], 100);
  EXPECT_EQ(json["train"]["precision"], "fp32");
  EXPECT_EQ(json["model"]["tie_head"], false);
  EXPECT_EQ(json["health"]["lease_ttl"], "1.5s");
  EXPECT_EQ(json["data"]["train"][1]["weight"], 0.125);
}

}  // namespace
}  // namespace moesaic
