#include "launcher/verbs/plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "launcher/verbs/job_flags.h"
#include "proto/field_text.h"
#include "scheduler/state/planner.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/sizing.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint32_t kMostNodes = 4096;

struct PlanFlags {
  JobFlags job;
  std::string nodes;
  std::optional<uint32_t> slots;
  std::string memory;
  std::string load;
  std::string format = "text";
};

struct Range {
  uint32_t first = 0;
  uint32_t last = 0;
};

absl::StatusOr<Range> ParseNodes(const std::string& text) {
  const std::vector<std::string> parts = absl::StrSplit(text, ':');
  Range range;
  if (parts.size() > 2 || !absl::SimpleAtoi(parts.front(), &range.first) ||
      !absl::SimpleAtoi(parts.back(), &range.last) || range.first < 1 || range.last < range.first ||
      range.last > kMostNodes) {
    return absl::InvalidArgumentError(
        fmt::format("--nodes: a number from 1 to {} or a range such as 1:8 is expected, not {}",
                    kMostNodes, text));
  }
  return range;
}

// A cluster of equal nodes, and the job that would run on it.
struct Question {
  JobSpec spec;
  CatalogsAhead catalogs;
  PlanNode node = {};  // what every node is like
  std::optional<TrainingState> restored = {};
};

struct Answer {
  uint32_t nodes = 0;
  absl::StatusOr<GenerationPlan> plan;
  JobSize size = {};  // of the plan, when there is one
  std::optional<JobSize> before = {};  // the spawn, where one is ahead
  int64_t parameters = 0;
  int64_t active_parameters = 0;  // that one token uses
};

absl::StatusOr<TrainingState> LoadState(const JobSpec& spec, const std::string& path) {
  absl::StatusOr<StepFolder> step = OpenCheckpoint(&FileSystem::System(), path);
  if (!step.ok()) return step.status();
  absl::StatusOr<Manifest> manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return manifest.status();
  if (RecordedLoad(spec.model(), manifest->state()).empty()) {
    return absl::FailedPreconditionError(
        fmt::format("{} records no load of this model's experts", step->path));
  }
  return manifest->state();
}

absl::StatusOr<Question> Ask(const PlanFlags& flags, const JobSpec& spec) {
  std::optional<TrainingState> restored;
  if (!flags.load.empty()) {
    absl::StatusOr<TrainingState> state = LoadState(spec, flags.load);
    if (!state.ok()) return state.status();
    restored = *std::move(state);
  }
  absl::StatusOr<CatalogsAhead> catalogs =
      BuildCatalogsAhead(spec, restored ? restored->step() : 0);
  if (!catalogs.ok()) return catalogs.status();
  Question question{
      .spec = spec, .catalogs = *std::move(catalogs), .restored = std::move(restored)};
  question.node.slots = flags.slots.value_or(spec.elastic().slots_per_node());
  question.node.cores = question.node.slots;
  if (!flags.memory.empty()) {
    absl::StatusOr<uint64_t> memory = ParseBytes(flags.memory);
    if (!memory.ok()) {
      return absl::InvalidArgumentError(
          fmt::format("--memory: {}", std::string(memory.status().message())));
    }
    question.node.memory_bytes = *memory;
  }
  return question;
}

Answer AnswerFor(const Question& question, uint32_t nodes) {
  PlanInput input;
  input.spec = &question.spec;
  if (question.restored) input.restored = &*question.restored;
  for (uint32_t i = 1; i <= nodes; ++i) {
    input.nodes.push_back(question.node);
    input.nodes.back().id = fmt::format("node{:0{}}", i, std::to_string(nodes).size());
  }
  const CatalogsAhead& catalogs = question.catalogs;
  Answer answer{.nodes = nodes,
                .plan = PlanGeneration(input),
                .parameters = catalogs.all.total_elements(),
                .active_parameters = catalogs.all.active_elements()};
  if (!answer.plan.ok()) return answer;
  const ExpertLoad load =
      question.restored ? RecordedLoad(question.spec.model(), *question.restored) : ExpertLoad();
  SizingInput sizing = {.spec = &question.spec,
                        .catalog = &catalogs.all,
                        .mesh = &answer.plan->mesh,
                        .placement = &answer.plan->placement,
                        .load = &load,
                        .before_spawn = catalogs.before_spawn ? &*catalogs.before_spawn : nullptr};
  answer.size = SizeJob(sizing);
  if (sizing.before_spawn != nullptr) {
    sizing.catalog = std::exchange(sizing.before_spawn, nullptr);
    answer.before = SizeJob(sizing);
  }
  return answer;
}

int64_t MostOnANode(const JobSize& size) {
  int64_t most = 0;
  for (const NodeMemory& node : size.nodes) most = std::max(most, node.most());
  return most;
}

int64_t MostInARankAtTheSpawn(const JobSize& size) {
  int64_t most = 0;
  for (const RankMemory& rank : size.ranks) most = std::max(most, rank.at_spawn);
  return most;
}

int64_t MostOnANodeUntilTheSpawn(const JobSize& size) {
  int64_t most = 0;
  for (const NodeMemory& node : size.nodes) most = std::max(most, node.until_spawn);
  return most;
}

// ---- JSON ----

Json RankJson(const Mesh& mesh, int rank, const RankMemory& memory) {
  return {{"rank", rank},
          {"node", mesh.place(rank).node},
          {"weights", memory.weights},
          {"moments", memory.moments},
          {"gradients", memory.gradients},
          {"activations", memory.activations},
          {"snapshot", memory.snapshot}};
}

Json ToJson(const Answer& answer) {
  Json json = {{"nodes", answer.nodes},
               {"parameters", answer.parameters},
               {"active_parameters", answer.active_parameters}};
  if (!answer.plan.ok()) {
    json["refused"] = std::string(answer.plan.status().message());
    return json;
  }
  const GenerationPlan& plan = *answer.plan;
  json["used"] = plan.nodes.size();
  json["ranks"] = plan.mesh.size();
  json["expert"] = plan.mesh.expert_size();
  json["threads"] = plan.threads;
  json["rounds"] = plan.rounds;
  json["layout"] = plan.layout;
  json["reason"] = plan.reason;
  json["survives_any_node"] = plan.survives_any_node;
  json["imbalance"] = plan.imbalance;
  json["spares"] = Json::array();
  for (const SpareNode& spare : plan.spares) {
    json["spares"].push_back({{"node", spare.id}, {"reason", spare.reason}});
  }
  json["rank_memory"] = Json::array();
  for (int rank = 0; rank < plan.mesh.size(); ++rank) {
    json["rank_memory"].push_back(RankJson(plan.mesh, rank, answer.size.ranks[rank]));
  }
  json["node_memory"] = Json::array();
  for (const NodeMemory& node : answer.size.nodes) {
    json["node_memory"].push_back({{"node", node.node},
                                   {"processes", node.processes},
                                   {"snapshot", node.snapshot},
                                   {"in_flight", node.in_flight},
                                   {"peer_copy", node.peer_copy},
                                   {"until_spawn", node.until_spawn},
                                   {"most", node.most()}});
  }
  json["checkpoint_bytes"] = answer.size.checkpoint;
  const StepTraffic& traffic = answer.size.traffic;
  json["step_bytes"] = {{"tokens", traffic.tokens},
                        {"counts", traffic.counts},
                        {"gradients", traffic.gradients},
                        {"weights", traffic.weights},
                        {"sums", traffic.sums},
                        {"total", traffic.total()},
                        {"between_nodes", traffic.between_nodes}};
  if (answer.before) {
    json["before_spawn"] = {{"node_most", MostOnANode(*answer.before)},
                            {"step_bytes", answer.before->traffic.total()},
                            {"checkpoint_bytes", answer.before->checkpoint},
                            {"rank_at_spawn", MostInARankAtTheSpawn(answer.size)}};
  }
  return json;
}

// ---- Text ----

std::string Size(double bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  int unit = 0;
  while (bytes >= 1024 && unit < 4) {
    bytes /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", bytes, unit == 0 ? 0 : 1, kUnits[unit]);
}
std::string Size(int64_t bytes) { return Size(static_cast<double>(bytes)); }

std::string Count(int64_t things) {
  constexpr const char* kUnits[] = {"", " thousand", " million", " billion"};
  auto count = static_cast<double>(things);
  int unit = 0;
  while (count >= 1000 && unit < 3) {
    count /= 1000;
    ++unit;
  }
  return fmt::format("{:.{}f}{}", count, unit == 0 ? 0 : 1, kUnits[unit]);
}

void PrintMemory(const Answer& answer, uint64_t node_bytes, std::ostream& out) {
  out << fmt::format("\n{:>5}  {:<12} {:>11} {:>11} {:>11} {:>12}  {:>11}\n", "RANK", "NODE",
                     "WEIGHTS", "MOMENTS", "GRADIENTS", "ACTIVATIONS*", "SNAPSHOT");
  for (int rank = 0; rank < answer.plan->mesh.size(); ++rank) {
    const RankMemory& memory = answer.size.ranks[rank];
    out << fmt::format("{:>5}  {:<12} {:>11} {:>11} {:>11} {:>12}  {:>11}\n", rank,
                       answer.plan->mesh.place(rank).node, Size(memory.weights),
                       Size(memory.moments), Size(memory.gradients), Size(memory.activations),
                       Size(memory.snapshot));
  }
  out << fmt::format("\n{:<12} {:>11} {:>11} {:>11} {:>11} {:>11}\n", "NODE", "PROCESSES",
                     "SNAPSHOT", "IN FLIGHT", "PEER'S COPY", "AT MOST");
  for (const NodeMemory& node : answer.size.nodes) {
    out << fmt::format("{:<12} {:>11} {:>11} {:>11} {:>11} {:>11}", node.node, Size(node.processes),
                       Size(node.snapshot), Size(node.in_flight), Size(node.peer_copy),
                       Size(node.most()));
    if (node_bytes > 0) {
      out << fmt::format("  {:.0f}% of {}",
                         100.0 * static_cast<double>(node.most()) / static_cast<double>(node_bytes),
                         FormatBytes(node_bytes));
    }
    out << "\n";
  }
  out << "\nSnapshots lie in shared memory. The peer's copy counts twice in the last column: the "
         "new\n"
         "one is complete before the old one goes. * an estimate\n";
}

void PrintOne(const Answer& answer, uint64_t node_bytes, std::ostream& out) {
  const GenerationPlan& plan = *answer.plan;
  out << fmt::format("parameters {}, {} of them used by a token\n", Count(answer.parameters),
                     Count(answer.active_parameters));
  out << "layout     " << plan.layout << "\nwhy        " << plan.reason << "\n";
  for (const SpareNode& spare : plan.spares) {
    out << "spare      " << spare.id << ": " << spare.reason << "\n";
  }
  out << fmt::format("experts    the busiest rank takes {:.2f} of the mean; {}\n", plan.imbalance,
                     plan.survives_any_node ? "any one node may be lost without losing an expert"
                                            : "some experts are on one node only");
  const StepTraffic& traffic = answer.size.traffic;
  out << fmt::format(
      "a step     {} between ranks: {} tokens, {} gradients, {} weights, {} counts and sums; {} "
      "of it between nodes\n",
      Size(traffic.total()), Size(traffic.tokens), Size(traffic.gradients), Size(traffic.weights),
      Size(traffic.counts + traffic.sums), Size(traffic.between_nodes));
  out << fmt::format("checkpoint {} on disk\n", Size(answer.size.checkpoint));
  if (answer.before) {
    out << fmt::format(
        "before     the spawn: at most {} on a node, {} between ranks a step, a checkpoint of {}; "
        "until it is done at most {} in a rank and {} on a node\n",
        Size(MostOnANode(*answer.before)), Size(answer.before->traffic.total()),
        Size(answer.before->checkpoint), Size(MostInARankAtTheSpawn(answer.size)),
        Size(MostOnANodeUntilTheSpawn(answer.size)));
  }
  PrintMemory(answer, node_bytes, out);
}

void PrintTable(const std::vector<Answer>& answers, std::ostream& out) {
  out << fmt::format("{:>5} {:>5} {:>5} {:>6} {:>6} {:>9} {:>8} {:>12} {:>12}  {}\n", "NODES",
                     "USED", "RANKS", "EXPERT", "ROUNDS", "IMBALANCE", "SURVIVES", "MEMORY/NODE",
                     "WIRE/STEP", "SPARES");
  for (const Answer& answer : answers) {
    if (!answer.plan.ok()) {
      out << fmt::format("{:>5}  {}\n", answer.nodes, std::string(answer.plan.status().message()));
      continue;
    }
    const GenerationPlan& plan = *answer.plan;
    out << fmt::format("{:>5} {:>5} {:>5} {:>6} {:>6} {:>9.2f} {:>8} {:>12} {:>12}  {}\n",
                       answer.nodes, plan.nodes.size(), plan.mesh.size(), plan.mesh.expert_size(),
                       plan.rounds, plan.imbalance, plan.survives_any_node ? "yes" : "no",
                       Size(MostOnANode(answer.size)), Size(answer.size.traffic.total()),
                       plan.spares.empty() ? "" : plan.spares.front().reason);
  }
}

void Plan(const PlanFlags& flags, VerbContext& context) {
  const std::optional<LoadedJob> job = LoadJobOrFail(flags.job, JobInputs::kTokenizer, context);
  if (!job) return;
  const absl::StatusOr<Range> range = ParseNodes(flags.nodes);
  if (!range.ok()) return Fail(range.status(), context);
  const absl::StatusOr<Question> question = Ask(flags, job->spec);
  if (!question.ok()) return Fail(question.status(), context);
  std::vector<Answer> answers;
  for (uint32_t nodes = range->first; nodes <= range->last; ++nodes) {
    answers.push_back(AnswerFor(*question, nodes));
  }
  const bool one = answers.size() == 1;
  if (one && !answers.front().plan.ok()) return Fail(answers.front().plan.status(), context);
  if (flags.format == "json") {
    Json list = Json::array();
    for (const Answer& answer : answers) list.push_back(ToJson(answer));
    context.out << (one ? list.front() : Json{{"plans", list}}).dump() << "\n";
  } else if (one) {
    PrintOne(answers.front(), question->node.memory_bytes, context.out);
  } else {
    PrintTable(answers, context.out);
  }
}

}  // namespace

void RegisterPlan(CLI::App& program, VerbContext& context) {
  CLI::App* verb = program.add_subcommand(
      "plan", "Show the layout of a job on so many nodes, and what it needs");
  verb->footer(
      "The layout is the one that the coordinator would choose. Nothing is run.\n\n"
      "Examples:\n"
      "  moesaic plan -f job.yaml --nodes 4\n"
      "  moesaic plan -f job.yaml --nodes 1:8 --memory 64GiB\n"
      "  moesaic plan -f job.yaml --nodes 3 --load runs/quickstart/checkpoints -o json");
  auto flags = std::make_shared<PlanFlags>();
  AddJobFlags(verb, &flags->job);
  verb->add_option("--nodes", flags->nodes, "Nodes that there are: N, or FIRST:LAST for a table")
      ->required();
  verb->add_option("--slots", flags->slots,
                   "Slots of each node; else as many as the job wants (elastic.slots_per_node)");
  verb->add_option("--memory", flags->memory, "Memory of each node, such as 16GiB");
  verb->add_option("--load", flags->load,
                   "Checkpoint whose record of the experts' load, and placement, to plan with");
  AddOutputFormat(verb, &flags->format);
  verb->callback([flags, &context] { Plan(*flags, context); });
}

}  // namespace moesaic
