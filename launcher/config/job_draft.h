// A job while it is being put together: the values so far, where each came from, and what is wrong.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "launcher/config/yaml_tree.h"
#include "proto/job.pb.h"

namespace moesaic {

// Where a value came from, in the order of precedence from kDefault up.
struct Origin {
  enum Kind { kDefault, kPreset, kDerived, kFile, kEnvironment, kSet, kFlag };
  Kind kind = kDefault;
  // For people: "default", "preset deepseek_v3", "derived", "job.yaml:3:5", "MOESAIC_TRAIN__STEPS",
  // "--set", "--nodes".
  std::string text;
};

// By field path ("data.train[0].path"), messages included (at their keys).
using JobOrigins = std::map<std::string, Origin>;

// One problem of a job: "job.yaml:3:5: model.hidden: expected ...".
struct ConfigProblem {
  std::string where;
  std::string path;  // empty: the whole text
  std::string message;

  std::string Line() const;
};

// A layer of values: the job file, a variable, a --set or a flag.
struct ValueSource {
  Origin::Kind kind = Origin::kFile;
  std::string name;

  // "job.yaml:3:5" for a file; the name alone for the others, which are one line.
  std::string Where(TextPlace place) const;
};

struct JobDraft {
  JobSpec spec;
  JobOrigins origins;
  std::vector<ConfigProblem> problems;
  // Paths that must not be complained about again: those of `problems`, and keys whose misspelling
  // is among them.
  std::vector<std::string> known;

  void Report(std::string where, std::string path, std::string message);
  void SetOrigin(const std::string& path, const ValueSource& source, TextPlace place);
  // Forgets the origins of `path` and of what is below it.
  void ForgetOrigins(absl::string_view path);
  // The place of `path`, or of the closest thing above it that was written; `otherwise` when none
  // was.
  std::string WhereOf(absl::string_view path, const std::string& otherwise) const;
};

// "a.b" and "c" to "a.b.c".
std::string JoinPath(absl::string_view path, absl::string_view name);
std::string ElementPath(absl::string_view path, int index);

}  // namespace moesaic
