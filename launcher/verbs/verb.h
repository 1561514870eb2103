// What every verb of the `moesaic` program gets. A verb is one file with one function
//
//   void RegisterExample(CLI::App& program, VerbContext& context);
//
// that adds its sub-command, its flags and a callback which does the work and sets
// context.exit_code. verb_list.cc names it. Verbs write data to context.out and everything else to
// context.err.
#pragma once

#include <CLI/CLI.hpp>

#include <cstdint>
#include <functional>
#include <map>
#include <ostream>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "base/exit_codes.h"

namespace moesaic {

struct VerbContext {
  std::ostream& out;
  std::ostream& err;
  // The process environment; verbs read no other.
  std::map<std::string, std::string> environment;
  // Path of the running program, from which moesaic-worker and the like are found.
  std::string program_path;
  // Number of tokens of a tokenizer file; empty: model.vocabulary is not resolved.
  std::function<absl::StatusOr<uint32_t>(const std::string& tokenizer)> vocabulary_of;
  int exit_code = kExitOk;
};

// Adds -o/--output, text (the default) or json. `format` must outlive the parse.
void AddOutputFormat(CLI::App* verb, std::string* format);

// Says `status` on context.err, prefixed by "moesaic: ", and sets the exit code that
// docs/exit-codes.md gives to its kind.
void Fail(const absl::Status& status, VerbContext& context);
ExitCode ExitCodeFor(const absl::Status& status);

}  // namespace moesaic
