#include "scheduler/service/fault_edge.h"

#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <random>
#include <system_error>
#include <vector>

namespace moesaic {

absl::StatusOr<std::string> FaultEdge::Inject(const InjectFaultRequest& request) const {
  if (!allowed_) {
    return absl::PermissionDeniedError(
        "this coordinator was not started for chaos (moesaic coordinator --allow-chaos)");
  }
  switch (request.target_case()) {
    case InjectFaultRequest::kRank:
      return SendToRank(request);
    case InjectFaultRequest::kNode:
      return SendToNode(request);
    case InjectFaultRequest::kCoordinator:
      if (request.fault().kind() != Fault::KILL) break;
      kill(getpid(), SIGKILL);
      return std::string("killed");
    case InjectFaultRequest::kCheckpoint: {
      if (request.fault().kind() != Fault::CORRUPT) break;
      const absl::StatusOr<JobStatus> job = core_->GetJob(request.job());
      if (!job.ok()) return job.status();
      if (job->committed_path().empty()) return absl::NotFoundError("there is no checkpoint yet");
      return CorruptCheckpoint(job->committed_path(), request.seed());
    }
    case InjectFaultRequest::TARGET_NOT_SET:
      break;
  }
  return absl::InvalidArgumentError("that fault cannot hit that target");
}

absl::StatusOr<std::string> FaultEdge::SendToRank(const InjectFaultRequest& request) const {
  const absl::StatusOr<RankTable> table = core_->LiveRankTable(request.job());
  if (!table.ok()) return table.status();
  for (const RankEntry& entry : table->ranks()) {
    if (entry.rank() != request.rank()) continue;
    AgentCommand command;
    InjectedFault* inject = command.mutable_inject();
    inject->set_job(request.job());
    inject->set_generation(table->generation());
    inject->set_rank(request.rank());
    *inject->mutable_fault() = request.fault();
    if (absl::Status sent = core_->Command(entry.node(), std::move(command)); !sent.ok()) {
      return sent;
    }
    return fmt::format("rank {} on node {}", request.rank(), entry.node());
  }
  return absl::NotFoundError(
      fmt::format("generation {} has no rank {}", table->generation(), request.rank()));
}

absl::StatusOr<std::string> FaultEdge::SendToNode(const InjectFaultRequest& request) const {
  AgentCommand command;
  *command.mutable_inject()->mutable_fault() = request.fault();
  if (absl::Status sent = core_->Command(request.node(), std::move(command)); !sent.ok()) {
    return sent;
  }
  return "node " + request.node();
}

absl::StatusOr<std::string> CorruptCheckpoint(const std::string& step_folder, uint64_t seed) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(step_folder, error)) {
    if (entry.is_regular_file() && entry.file_size() > 0) files.push_back(entry.path());
  }
  if (files.empty()) return absl::NotFoundError(fmt::format("{} has no files", step_folder));
  std::sort(files.begin(), files.end());
  std::mt19937_64 random(seed);
  const std::filesystem::path& path = files[random() % files.size()];
  const uint64_t at = random() % std::filesystem::file_size(path);
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  char byte = 0;
  file.seekg(static_cast<std::streamoff>(at)).get(byte);
  byte = static_cast<char>(byte ^ (1 << (random() % 8)));
  file.seekp(static_cast<std::streamoff>(at)).put(byte).flush();
  if (!file) return absl::InternalError(fmt::format("cannot change {}", path.string()));
  return fmt::format("a bit of byte {} of {}", at, path.string());
}

}  // namespace moesaic
