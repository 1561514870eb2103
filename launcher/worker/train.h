// moesaic-worker train: one rank of one generation.
#pragma once

#include <CLI/CLI.hpp>

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "base/log.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

// What the program reads from its environment.
struct WorkerEnvironment {
  std::string token;  // of the generation
  LogLevel log_level = LogLevel::kInfo;
  absl::StatusOr<std::optional<TlsFiles>> tls = std::optional<TlsFiles>();
  // For temporary files of this host's ranks, in tmpfs; the agent removes it.
  std::string run_folder;
};

// Does not return to main after a failure: it leaves with the code of docs/exit-codes.md, since
// MPI_Finalize would wait for ranks that go on.
void RegisterTrain(CLI::App& program, const WorkerEnvironment& environment, int& exit_code);

}  // namespace moesaic
