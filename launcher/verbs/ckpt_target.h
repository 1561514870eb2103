// What the verbs of `moesaic ckpt` share: how a checkpoint is named, and words for its manifest.
#pragma once

#include <cstdint>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/status/statusor.h"
#include "launcher/verbs/connection_flags.h"
#include "launcher/verbs/verb.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {

using OrderedJson = nlohmann::ordered_json;

// What PATH is, of verbs that look at one step.
inline constexpr char kStepTarget[] =
    "A step folder, a folder of them (its newest), or FOLDER@STEP";

struct CkptTarget {
  std::string path;
  std::string format = "text";
  ConnectionFlags connection;  // of verbs that can ask a coordinator
  bool json() const { return format == "json"; }
};

// Adds PATH and -o.
void AddCkptTarget(CLI::App* verb, CkptTarget* target, const char* what);

// One step of a root, which is there as a folder.
struct NamedStep {
  std::string root;
  uint64_t step = 0;
};

// "ROOT@100" is the path of step 100 of ROOT; other paths stay.
std::string StepPath(const std::string& path);
// A path that names one step: ".../step-000000100" or "ROOT@100". InvalidArgument for any other,
// NotFound when the root is not there.
absl::StatusOr<NamedStep> ParseNamedStep(const std::string& path);

// Of ".../step-000000100"; nothing when the folder has another name.
std::optional<NamedStep> StepOfFolder(const std::string& path);

struct OpenedStep {
  StepFolder step;
  Manifest manifest;
};
// A step folder, "ROOT@STEP", or a root (its newest step), with its manifest.
absl::StatusOr<OpenedStep> OpenStep(const std::string& path);

std::string TimeText(int64_t unix_ns);
const char* ContentsText(bool weights_only);
uint64_t TotalBytes(const Manifest& manifest);
// Bytes in files that were taken over from an earlier step.
uint64_t ReusedBytes(const Manifest& manifest);
std::string ShortBytes(uint64_t bytes);

// One line; text that is not UTF-8 is replaced.
void PrintJson(const OrderedJson& json, VerbContext& context);

// A checkpoint that was made of something else, and `told`: a sentence on it for people.
void PrintMade(const CommittedStep& made, const std::string& told, const std::string& format,
               VerbContext& context);

// Who makes a checkpoint, for its manifest.
std::string ThisProgram();

// Calls `work` with a function that shows progress in bytes on context.err while it runs.
void WithByteProgress(const char* what, VerbContext& context,
                      const std::function<void(std::function<void(int64_t, int64_t)>)>& work);

}  // namespace moesaic
