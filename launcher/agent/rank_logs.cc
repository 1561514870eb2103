#include "launcher/agent/rank_logs.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <iterator>
#include <regex>
#include <system_error>
#include <utility>

namespace moesaic {
namespace {

constexpr size_t kRememberedLines = 5;
constexpr size_t kMaxLine = 64 << 10;
constexpr int kMpirun = -1;

}  // namespace

absl::Status RankLogs::Open() {
  std::error_code error;
  std::filesystem::create_directories(folder_, error);
  if (error)
    return absl::InternalError(fmt::format("cannot make {}: {}", folder_, error.message()));
  return absl::OkStatus();
}

void RankLogs::Take(absl::string_view bytes) {
  partial_.append(bytes.data(), bytes.size());
  size_t begin = 0;
  for (size_t end; (end = partial_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    TakeLine(partial_.substr(begin, end - begin));
  }
  partial_.erase(0, begin);
  if (partial_.size() > kMaxLine) Finish();
}

void RankLogs::Finish() {
  if (!partial_.empty()) TakeLine(partial_);
  partial_.clear();
  for (const auto& [rank, text] : std::map(std::move(pending_))) WriteLine(rank, text);
  pending_.clear();
}

// mpirun tags what it reads, not what is a line: one may have several tags, even of several ranks.
void RankLogs::TakeLine(const std::string& line) {
  static const std::regex tag(R"(\[\d+,(\d+)\]<(?:stdout|stderr)>:)");
  const auto first = std::sregex_iterator(line.begin(), line.end(), tag);
  const std::string untagged =
      first == std::sregex_iterator() ? line : line.substr(0, first->position());
  if (!untagged.empty()) {
    TakeMpirunLine(untagged);
    WriteLine(kMpirun, untagged);
  }
  int rank = kMpirun;
  for (auto match = first; match != std::sregex_iterator(); ++match) {
    const size_t begin = match->position() + match->length();
    const auto next = std::next(match);
    const size_t end = next == std::sregex_iterator() ? line.size() : next->position();
    rank = std::stoi((*match)[1].str().substr(0, 8));
    pending_[rank] += line.substr(begin, end - begin);
  }
  if (rank == kMpirun) return;
  WriteLine(rank, pending_[rank]);
  pending_.erase(rank);
}

void RankLogs::WriteLine(int rank, const std::string& text) {
  std::ofstream& file = files_[rank];
  if (!file.is_open()) {
    file.open(
        rank == kMpirun ? folder_ + "/mpirun.log" : fmt::format("{}/rank-{}.log", folder_, rank),
        std::ios::app);
  }
  file << text << '\n' << std::flush;
  if (text.empty()) return;
  std::deque<std::string>& last = last_[rank];
  last.push_back(text);
  if (last.size() > kRememberedLines) last.pop_front();
}

void RankLogs::TakeMpirunLine(const std::string& line) {
  static const std::regex signalled(
      R"(process rank (\d+) with PID \d+ on node \S+ exited on signal (.+?)\.?$)");
  static const std::regex improper(R"(due to process rank (\d+) with PID \d+ on)");
  static const std::regex named(R"(^\s*Process name: \[\[\d+,\d+\],(\d+)\])");
  static const std::regex code(R"(^\s*Exit code:\s+(\d+))");
  static const std::regex aborted(R"(MPI_ABORT was invoked on rank (\d+))");
  static const std::regex lost(R"(^\s*Remote daemon: \[\[\d+,\d+\],\d+\] on node (\S+))");
  static const std::regex no_daemon(R"(moesaic-orted-shim: host (\S+): (.+)$)");
  std::smatch match;
  const auto fail = [&](const std::string& text) {
    if (failure_.empty()) failure_ = text;
  };
  const auto blame = [&](const std::string& rank) {
    if (!failed_rank_) failed_rank_ = static_cast<uint32_t>(std::stoul(rank.substr(0, 8)));
  };
  if (std::regex_search(line, match, signalled)) {
    blame(match[1]);
    fail("was killed by signal " + match[2].str());
  } else if (std::regex_search(line, match, improper)) {
    blame(match[1]);
    fail("exited before MPI_Finalize");
  } else if (std::regex_search(line, match, aborted)) {
    blame(match[1]);
    fail("called MPI_Abort");
  } else if (std::regex_search(line, match, named)) {
    blame(match[1]);
  } else if (std::regex_search(line, match, code) && failed_rank_) {
    fail("exited with code " + match[1].str());
  } else if (std::regex_search(line, match, no_daemon)) {
    lost_host_ = match[1];
    fail(match[2]);
  } else if (std::regex_search(line, match, lost)) {
    lost_host_ = match[1];
    fail("mpirun lost its daemon there");
  }
}

std::string RankLogs::FirstFailure() const {
  if (!failed_rank_)
    return lost_host_.empty() ? "" : fmt::format("host {}: {}", lost_host_, failure_);
  return fmt::format("rank {} {}{}", *failed_rank_, failure_.empty() ? "failed" : failure_,
                     LastLines(static_cast<int>(*failed_rank_)));
}

std::string RankLogs::LastLines(int rank) const {
  const auto last = last_.find(rank);
  if (last == last_.end()) return "";
  return fmt::format("; its last lines:\n  {}", fmt::join(last->second, "\n  "));
}

}  // namespace moesaic
