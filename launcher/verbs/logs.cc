#include "launcher/verbs/logs.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <regex>
#include <thread>
#include <utility>
#include <vector>

#include "base/foreign_text.h"
#include "base/mutex.h"
#include "launcher/verbs/cluster_client.h"
#include "launcher/verbs/log_tail.h"
#include "launcher/verbs/rank_list.h"

namespace moesaic {
namespace {

// Each is a stream and a thread.
constexpr size_t kMaxRanks = 64;

struct LogFlags {
  ConnectionFlags cluster;
  std::string job;
  std::string ranks = "0";
  uint64_t generation = 0;
  std::string pattern;
  bool follow = false;
  bool mpirun = false;
};

// Lines of several ranks onto one output. Thread-safe.
class LinePrinter {
 public:
  LinePrinter(const LogFlags& flags, bool tagged, VerbContext& context)
      : context_(context), tagged_(tagged) {
    if (!flags.pattern.empty()) pattern_ = std::regex(flags.pattern, std::regex::ECMAScript);
  }

  void Print(const std::string& source, absl::string_view line) {
    const std::string text(line);
    if (pattern_ && !std::regex_search(text, *pattern_)) return;
    MutexLock lock(&mutex_);
    context_.out << (tagged_ ? source + "| " : "") << EscapeControls(text) << '\n' << std::flush;
  }
  void Say(const absl::Status& trouble) {
    MutexLock lock(&mutex_);
    context_.err << std::string(trouble.message()) << "; trying again\n" << std::flush;
  }

 private:
  Mutex mutex_;
  VerbContext& context_;
  const bool tagged_;
  std::optional<std::regex> pattern_;
};

std::vector<std::optional<uint32_t>> Sources(const LogFlags& flags) {
  if (flags.mpirun) return {std::nullopt};
  std::vector<std::optional<uint32_t>> sources;
  const absl::StatusOr<std::vector<uint32_t>> ranks = ParseRanks(flags.ranks, kMaxRanks);
  for (const uint32_t rank : *ranks) sources.emplace_back(rank);
  return sources;
}

void Logs(const LogFlags& flags, VerbContext& context) {
  const auto client = ClusterClient::Open(flags.cluster, context);
  if (!client.ok()) {
    Fail(client.status(), context);
    return;
  }
  const std::vector<std::optional<uint32_t>> sources = Sources(flags);
  LinePrinter printer(flags, sources.size() > 1, context);
  std::vector<absl::Status> ended(sources.size());
  const auto read = [&](size_t i) {
    const std::string name = sources[i] ? fmt::format("{}", *sources[i]) : "mpirun";
    ended[i] = LogTail(client->get(), {flags.job, sources[i], flags.generation, flags.follow},
                       [&](uint64_t, absl::string_view line) { printer.Print(name, line); },
                       [&](const absl::Status& trouble) { printer.Say(trouble); })
                   .Run();
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < sources.size(); ++i) {
    if (flags.follow) {
      threads.emplace_back(read, i);
    } else {
      read(i);
    }
  }
  for (std::thread& thread : threads) thread.join();
  const auto failed = std::find_if(ended.begin(), ended.end(),
                                   [](const absl::Status& status) { return !status.ok(); });
  if (failed != ended.end()) Fail(*failed, context);
}

std::string CheckRanks(const std::string& text) {
  return std::string(ParseRanks(text, kMaxRanks).status().message());
}

// The library has no way to ask without trying.
std::string CheckPattern(const std::string& text) {
  try {
    std::regex(text, std::regex::ECMAScript);
    return "";
  } catch (const std::regex_error& error) {
    return std::string("is not a regular expression: ") + error.what();
  }
}

}  // namespace

void RegisterLogs(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<LogFlags>();
  CLI::App* verb = program.add_subcommand("logs", "what a job's ranks wrote");
  verb->add_option("JOB", flags->job, "the job's id")->required();
  verb->add_flag(
      "-f,--follow", flags->follow,
      "Go on until the job has ended, over new generations and restarts of the coordinator");
  CLI::Option* ranks = verb->add_option("--rank", flags->ranks, "Ranks, e.g. 0,3-5")
                           ->check(CheckRanks)
                           ->capture_default_str();
  verb->add_flag("--mpirun", flags->mpirun, "What mpirun itself wrote")->excludes(ranks);
  verb->add_option("--gen", flags->generation, "The generation (default: the newest)");
  verb->add_option("--grep", flags->pattern, "Only lines that this regular expression finds")
      ->check(CheckPattern);
  AddConnectionFlags(verb, &flags->cluster);
  verb->footer(
      "Lines of several ranks begin with the rank. Control characters are written as \\x1b.\n\n"
      "  moesaic logs -f my-job --rank 0-3");
  verb->callback([flags, &context] { Logs(*flags, context); });
}

}  // namespace moesaic
