#include "launcher/agent/command_check.h"

#include <fmt/format.h>

#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "base/foreign_text.h"

namespace moesaic {
namespace {

template <typename Arenas>
absl::Status CheckArenas(const Arenas& arenas, const std::string& job, const std::string& folder) {
  for (const RankArena& arena : arenas) {
    const absl::Status status = ArenaBelow(folder, job, arena.path()).status();
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status CheckStart(const StartGeneration& start, const std::string& folder) {
  absl::Status status = CheckName("job", start.job());
  for (const HostSlots& host : start.hosts()) {
    if (status.ok() && !host.node().empty()) status = CheckName("node", host.node());
  }
  return status.ok() ? CheckArenas(start.arenas(), start.job(), folder) : status;
}

absl::Status CheckPersist(const PersistSnapshot& persist, const std::string& folder) {
  const absl::Status status = CheckName("job", persist.job());
  return status.ok() ? CheckArenas(persist.arenas(), persist.job(), folder) : status;
}

}  // namespace

absl::Status CheckCommand(const AgentCommand& command, const std::string& folder) {
  switch (command.kind_case()) {
    case AgentCommand::kStart: return CheckStart(command.start(), folder);
    case AgentCommand::kKill: return CheckName("job", command.kill().job());
    case AgentCommand::kPersist: return CheckPersist(command.persist(), folder);
    case AgentCommand::kForget: return CheckName("job", command.forget().job());
    case AgentCommand::kReplicate: return CheckName("job", command.replicate().job());
    case AgentCommand::kKeep: return CheckName("job", command.keep().job());
    case AgentCommand::kAdmit: return CheckName("job", command.admit().job());
    case AgentCommand::kInject:
      // A fault of the node itself is of no job.
      return command.inject().job().empty() ? absl::OkStatus()
                                            : CheckName("job", command.inject().job());
    case AgentCommand::kWelcome:
    case AgentCommand::kLeave: return absl::OkStatus();
    case AgentCommand::KIND_NOT_SET: break;
  }
  return absl::InvalidArgumentError("a command of no kind that this version knows");
}

absl::StatusOr<std::string> ArenaBelow(const std::string& folder, const std::string& job,
                                       const std::string& path) {
  absl::string_view file = path;
  if (IsName(job) && absl::ConsumePrefix(&file, fmt::format("{}/{}/", folder, job))) {
    const std::string copies = absl::ConsumePrefix(&file, "copies/") ? "copies/" : "";
    if (IsName(file)) return fmt::format("{}/{}{}", job, copies, std::string(file));
  }
  return absl::InvalidArgumentError(
      fmt::format("{} is no snapshot of job {} in this agent's folder {}", EscapeControls(path),
                  EscapeControls(job), folder));
}

}  // namespace moesaic
