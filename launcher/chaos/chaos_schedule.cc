#include "launcher/chaos/chaos_schedule.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <random>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "launcher/config/yaml_tree.h"

namespace moesaic {
namespace {

constexpr absl::Duration kDefaultLength = absl::Seconds(10);

// Reads the tree; the first problem counts.
class Reader {
 public:
  explicit Reader(const std::string& name) : name_(name) {}

  using Keys = std::map<std::string, std::function<absl::Status(const YamlNode&)>>;

  absl::Status Map(const YamlNode& node, const Keys& keys) const {
    if (node.kind != YamlNode::kMap) return Problem(node, "expected a map");
    for (size_t i = 0; i < node.items.size(); ++i) {
      const YamlNode& key = node.keys[i];
      const auto known = keys.find(key.text);
      if (known == keys.end()) {
        std::vector<std::string> names;
        for (const auto& [name, read] : keys) names.push_back(name);
        return Problem(key, fmt::format("unknown key \"{}\"; there are {}", key.text,
                                        absl::StrJoin(names, ", ")));
      }
      for (size_t j = 0; j < i; ++j) {
        if (node.keys[j].text == key.text) {
          return Problem(key, fmt::format("{} is there twice", key.text));
        }
      }
      if (const absl::Status status = known->second(node.items[i]); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status List(const YamlNode& node,
                    const std::function<absl::Status(const YamlNode&)>& item) const {
    if (node.kind != YamlNode::kList) return Problem(node, "expected a list");
    for (const YamlNode& entry : node.items) {
      if (const absl::Status status = item(entry); !status.ok()) return status;
    }
    return absl::OkStatus();
  }

  absl::Status Text(const YamlNode& node, std::string* text) const {
    if (node.kind != YamlNode::kScalar || !node.refused.empty()) {
      return Problem(node, node.refused.empty() ? "expected a word" : node.refused);
    }
    *text = node.text;
    return absl::OkStatus();
  }

  absl::Status Duration(const YamlNode& node, absl::Duration* duration) const {
    std::string text;
    if (const absl::Status status = Text(node, &text); !status.ok()) return status;
    if (!absl::ParseDuration(text, duration) || *duration <= absl::ZeroDuration()) {
      return Problem(node, fmt::format("\"{}\" is not a time such as 5s or 2m", text));
    }
    return absl::OkStatus();
  }

  absl::Status Problem(const YamlNode& node, absl::string_view message) const {
    return absl::InvalidArgumentError(fmt::format("{}:{}:{}: {}", name_, node.place.line,
                                                  node.place.column, std::string(message)));
  }

 private:
  const std::string& name_;
};

absl::StatusOr<ChaosTarget> ParseTarget(const std::string& text) {
  const std::vector<std::string> words = absl::StrSplit(text, ' ', absl::SkipEmpty());
  ChaosTarget target;
  const bool alone = words.size() == 1;
  if (alone && words[0] == "coordinator") {
    target.kind = ChaosTarget::kCoordinator;
    return target;
  }
  if (alone && words[0] == "checkpoint") {
    target.kind = ChaosTarget::kCheckpoint;
    return target;
  }
  uint32_t rank = 0;
  if (words.size() <= 2 && !words.empty() && words[0] == "rank" &&
      (alone || absl::SimpleAtoi(words[1], &rank))) {
    if (!alone) target.rank = rank;
    return target;
  }
  if (words.size() <= 2 && !words.empty() && words[0] == "node") {
    target.kind = ChaosTarget::kNode;
    if (!alone) target.node = words[1];
    return target;
  }
  return absl::InvalidArgumentError(fmt::format(
      "\"{}\" is no target; write rank, rank 1, node, node n2, coordinator or checkpoint", text));
}

absl::StatusOr<ChaosMoment> ParseMoment(const std::string& text) {
  ChaosMoment moment;
  absl::string_view number = text;
  uint64_t step = 0;
  if (absl::ConsumePrefix(&number, "step ") && absl::SimpleAtoi(number, &step)) {
    moment.step = step;
    return moment;
  }
  if (!absl::ParseDuration(text, &moment.time) || moment.time < absl::ZeroDuration()) {
    return absl::InvalidArgumentError(
        fmt::format("\"{}\" is no moment; write \"step 40\" or \"30s\"", text));
  }
  return moment;
}

std::string NameOf(const ChaosTarget& target) {
  switch (target.kind) {
    case ChaosTarget::kRank:
      return target.rank ? fmt::format("rank {}", *target.rank) : "a rank";
    case ChaosTarget::kNode:
      return target.node.empty() ? "a node" : "node " + target.node;
    case ChaosTarget::kCoordinator:
      return "the coordinator";
    case ChaosTarget::kCheckpoint:
      return "the newest checkpoint";
  }
  return "";
}

absl::Status ReadFault(const Reader& reader, const YamlNode& node, ChaosSchedule* schedule) {
  std::string at, target, fault;
  const absl::Status read = reader.Map(
      node, {{"at", [&](const YamlNode& value) { return reader.Text(value, &at); }},
             {"target", [&](const YamlNode& value) { return reader.Text(value, &target); }},
             {"fault", [&](const YamlNode& value) { return reader.Text(value, &fault); }}});
  if (!read.ok()) return read;
  PlannedFault planned;
  const auto moment = ParseMoment(at);
  if (!moment.ok()) return reader.Problem(node, moment.status().message());
  const auto whom = ParseTarget(target);
  if (!whom.ok()) return reader.Problem(node, whom.status().message());
  const auto what = ParseFault(fault);
  if (!what.ok()) return reader.Problem(node, what.status().message());
  if (!Fits(*what, whom->kind)) {
    return reader.Problem(node, fmt::format("{} cannot hit {}", fault, NameOf(*whom)));
  }
  schedule->faults.push_back(
      {*moment, *whom, *what, fmt::format("{} of {}", fault, NameOf(*whom))});
  return absl::OkStatus();
}

absl::Status ReadRandom(const Reader& reader, const YamlNode& node, ChaosSchedule* schedule) {
  ChaosSchedule::Random random;
  const auto target = [&](const YamlNode& value) {
    std::string text;
    if (const absl::Status status = reader.Text(value, &text); !status.ok()) return status;
    const auto parsed = ParseTarget(text);
    if (!parsed.ok()) return reader.Problem(value, parsed.status().message());
    random.targets.push_back(*parsed);
    return absl::OkStatus();
  };
  const auto fault = [&](const YamlNode& value) {
    std::string text;
    if (const absl::Status status = reader.Text(value, &text); !status.ok()) return status;
    const auto parsed = ParseFault(text);
    if (!parsed.ok()) return reader.Problem(value, parsed.status().message());
    random.faults.push_back(text);
    return absl::OkStatus();
  };
  const absl::Status read = reader.Map(
      node, {{"every", [&](const YamlNode& v) { return reader.Duration(v, &random.every); }},
             {"until", [&](const YamlNode& v) { return reader.Duration(v, &random.until); }},
             {"targets", [&](const YamlNode& v) { return reader.List(v, target); }},
             {"faults", [&](const YamlNode& v) { return reader.List(v, fault); }}});
  if (!read.ok()) return read;
  if (random.every == absl::ZeroDuration() || random.until == absl::ZeroDuration() ||
      random.targets.empty() || random.faults.empty()) {
    return reader.Problem(node, "random needs every, until, targets and faults");
  }
  for (const std::string& text : random.faults) {
    const Fault parsed = *ParseFault(text);
    if (std::none_of(random.targets.begin(), random.targets.end(),
                     [&](const ChaosTarget& t) { return Fits(parsed, t.kind); })) {
      return reader.Problem(node, fmt::format("{} fits none of the targets", text));
    }
  }
  schedule->random = std::move(random);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Fault> ParseFault(absl::string_view text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  static const std::map<std::string, Fault::Kind> kinds = {
      {"kill", Fault::KILL},           {"segv", Fault::SEGV},
      {"stop", Fault::STOP},           {"hang_collective", Fault::STOP},
      {"slow", Fault::SLOW},           {"drop_net", Fault::DROP_NETWORK},
      {"disk_full", Fault::DISK_FULL}, {"corrupt_shard", Fault::CORRUPT},
      {"exit0", Fault::EXIT},          {"exit7", Fault::EXIT}};
  const auto known = kinds.find(parts[0]);
  const auto refuse = [&] {
    return absl::InvalidArgumentError(fmt::format(
        "\"{}\" is no fault; write kill, segv, exit0, exit7, hang_collective, stop:5s, "
        "slow:3x:10s, drop_net:5s, disk_full:10s or corrupt_shard",
        std::string(text)));
  };
  if (known == kinds.end()) return refuse();
  Fault fault;
  fault.set_kind(known->second);
  size_t next = 1;
  if (fault.kind() == Fault::EXIT) fault.set_exit_code(parts[0] == "exit0" ? 0 : 7);
  if (fault.kind() == Fault::SLOW) {
    absl::string_view factor = parts.size() > next ? absl::string_view(parts[next]) : "";
    double value = 0;
    if (!absl::ConsumeSuffix(&factor, "x") || !absl::SimpleAtod(factor, &value) || value <= 1 ||
        value > 100) {
      return refuse();
    }
    fault.set_factor(value);
    ++next;
  }
  const bool lasts = parts[0] == "stop" || fault.kind() == Fault::SLOW ||
                     fault.kind() == Fault::DROP_NETWORK || fault.kind() == Fault::DISK_FULL;
  if (lasts) {
    absl::Duration length = kDefaultLength;
    if (parts.size() > next &&
        (!absl::ParseDuration(parts[next++], &length) || length <= absl::ZeroDuration())) {
      return refuse();
    }
    fault.set_seconds(absl::ToDoubleSeconds(length));
  }
  if (parts.size() > next) return refuse();
  return fault;
}

bool Fits(const Fault& fault, ChaosTarget::Kind target) {
  switch (fault.kind()) {
    case Fault::KILL:
      return target != ChaosTarget::kCheckpoint;
    case Fault::STOP:
      return target == ChaosTarget::kRank || target == ChaosTarget::kNode;
    case Fault::SEGV:
    case Fault::EXIT:
    case Fault::SLOW:
      return target == ChaosTarget::kRank;
    case Fault::DROP_NETWORK:
    case Fault::DISK_FULL:
      return target == ChaosTarget::kNode;
    case Fault::CORRUPT:
      return target == ChaosTarget::kCheckpoint;
    default:
      return false;
  }
}

absl::StatusOr<ChaosSchedule> ParseChaosSchedule(const std::string& name, const std::string& text) {
  YamlNode root;
  if (const auto error = ParseYaml(text, &root)) {
    return absl::InvalidArgumentError(
        fmt::format("{}:{}:{}: {}", name, error->place.line, error->place.column, error->message));
  }
  const Reader reader(name);
  ChaosSchedule schedule;
  std::string seed = "0";
  const auto fault = [&](const YamlNode& node) { return ReadFault(reader, node, &schedule); };
  const absl::Status read = reader.Map(
      root,
      {{"job", [&](const YamlNode& v) { return reader.Text(v, &schedule.job); }},
       {"seed",
        [&](const YamlNode& v) {
          const absl::Status status = reader.Text(v, &seed);
          if (!status.ok()) return status;
          return absl::SimpleAtoi(seed, &schedule.seed)
                     ? absl::OkStatus()
                     : reader.Problem(v, fmt::format("\"{}\" is not a whole number", seed));
        }},
       {"recover_within",
        [&](const YamlNode& v) { return reader.Duration(v, &schedule.recover_within); }},
       {"faults", [&](const YamlNode& v) { return reader.List(v, fault); }},
       {"random", [&](const YamlNode& v) { return ReadRandom(reader, v, &schedule); }}});
  if (!read.ok()) return read;
  if (schedule.job.empty()) return absl::InvalidArgumentError(name + ": job is missing");
  if (schedule.faults.empty() && !schedule.random) {
    return absl::InvalidArgumentError(name + ": there are neither faults nor random ones");
  }
  return schedule;
}

std::vector<PlannedFault> FaultsOf(const ChaosSchedule& schedule) {
  std::vector<PlannedFault> faults = schedule.faults;
  if (schedule.random) {
    const ChaosSchedule::Random& random = *schedule.random;
    // The engine's sequence is the standard's; its distributions are not, so draws are made here.
    std::mt19937_64 engine(schedule.seed);
    const auto uniform = [&] { return static_cast<double>(engine() >> 11) * 0x1.0p-53; };
    absl::Duration at;
    while (true) {
      at += random.every * -std::log(1 - uniform());
      if (at > random.until) break;
      const std::string& text = random.faults[engine() % random.faults.size()];
      const Fault fault = *ParseFault(text);
      std::vector<ChaosTarget> targets;
      for (const ChaosTarget& target : random.targets) {
        if (Fits(fault, target.kind)) targets.push_back(target);
      }
      const ChaosTarget& target = targets[engine() % targets.size()];
      faults.push_back({{std::nullopt, at},
                        target,
                        fault,
                        fmt::format("{} of {}", text, NameOf(target))});
    }
  }
  std::stable_sort(faults.begin(), faults.end(), [](const PlannedFault& a, const PlannedFault& b) {
    if (a.at.step.has_value() != b.at.step.has_value()) return b.at.step.has_value();
    return a.at.step ? *a.at.step < *b.at.step : a.at.time < b.at.time;
  });
  return faults;
}

}  // namespace moesaic
