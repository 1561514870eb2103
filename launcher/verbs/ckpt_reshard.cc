#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "scheduler/state/planner.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/load_plan.h"

namespace moesaic {
namespace {

struct ReshardFlags {
  CkptTarget target;
  int ranks = 0;
  int expert = 0;  // 0: as a job chooses
  bool reads = false;
};

// What one rank would read.
struct RankReads {
  int experts = 0;  // that it is the primary of, over all layers
  size_t objects = 0;
  LoadPlan plan;
};

int Experts(const JobSpec& spec) {
  return spec.model().has_moe() ? static_cast<int>(spec.model().moe().experts()) : 1;
}

absl::StatusOr<int> DegreeFor(const ReshardFlags& flags, JobSpec spec) {
  spec.mutable_parallel()->clear_expert();
  if (flags.expert == 0) {
    return static_cast<int>(*ExpertDegree(spec, static_cast<uint32_t>(flags.ranks)));
  }
  const int experts = Experts(spec);
  if (flags.ranks % flags.expert != 0 || flags.expert > experts) {
    return absl::InvalidArgumentError(
        absl::StrCat("--expert ", flags.expert, " must divide --ranks ", flags.ranks,
                     " and be at most the experts of a layer (", experts, ")"));
  }
  return flags.expert;
}

// A rank loads the state that it owns: all that is no expert's, and the experts it is primary of;
// their other holders get compute weights from it.
absl::StatusOr<RankReads> PlanRank(const Manifest& manifest, const ParameterCatalog& catalog,
                                   const ExpertPlacement& placement, int rank) {
  RankReads reads;
  std::vector<LoadTarget> targets;
  std::set<std::pair<int, int>> experts;
  for (const StoredObject& object : manifest.objects()) {
    const ParameterId id = catalog.Find(object.name());
    if (id == kNoParameter) {
      return absl::FailedPreconditionError(absl::StrCat(
          "object ", ObjectLabel(object.kind(), object.name()), " is not one of the job's"));
    }
    const ParameterSpec& parameter = catalog[id];
    if (parameter.expert >= 0) {
      if (placement.primary(parameter.layer, parameter.expert) != rank) continue;
      experts.insert({parameter.layer, parameter.expert});
    }
    targets.push_back({object.kind(), object.name(), WholeBox(AsShape(object.shape()))});
  }
  absl::StatusOr<LoadPlan> plan = PlanLoad(manifest, targets);
  if (!plan.ok()) return plan.status();
  reads.experts = static_cast<int>(experts.size());
  reads.objects = targets.size();
  reads.plan = *std::move(plan);
  return reads;
}

size_t FilesOf(const LoadPlan& plan) {
  std::set<std::string> files;
  for (const ShardRead& read : plan.reads) files.insert(read.file);
  return files.size();
}

OrderedJson ReadList(const LoadPlan& plan) {
  OrderedJson list = OrderedJson::array();
  for (const ShardRead& read : plan.reads) {
    list.push_back({{"file", read.file},
                    {"begin", read.shard.begin()},
                    {"bytes", read.shard.bytes()},
                    {"object", read.label},
                    {"box", DescribeBox(read.shard.box())}});
  }
  return list;
}

void PrintPlan(const OrderedJson& plan, std::ostream& out) {
  out << absl::StrFormat("%d ranks, expert %d: %s are read of %s that are stored; %s\n\n",
                         plan["ranks"].get<int>(), plan["expert"].get<int>(),
                         ShortBytes(plan["bytes"].get<uint64_t>()),
                         ShortBytes(plan["stored_bytes"].get<uint64_t>()),
                         plan["placed"].get<std::string>());
  out << absl::StrFormat("%6s  %8s  %8s  %8s  %6s  %10s\n", "RANK", "EXPERTS", "OBJECTS", "SHARDS",
                         "FILES", "BYTES");
  for (const OrderedJson& rank : plan["plan"]) {
    out << absl::StrFormat("%6d  %8d  %8d  %8d  %6d  %10s\n", rank["rank"].get<int>(),
                           rank["experts"].get<int>(), rank["objects"].get<size_t>(),
                           rank["shards"].get<size_t>(), rank["files"].get<size_t>(),
                           ShortBytes(rank["bytes"].get<uint64_t>()));
    if (!rank.contains("reads")) continue;
    for (const OrderedJson& read : rank["reads"]) {
      out << absl::StrFormat("        %s [%d, +%d)  %s %s\n", read["file"].get<std::string>(),
                             read["begin"].get<uint64_t>(), read["bytes"].get<uint64_t>(),
                             read["object"].get<std::string>(), read["box"].get<std::string>());
    }
  }
}

absl::StatusOr<OrderedJson> PlanAll(const OpenedStep& opened, const ReshardFlags& flags) {
  const Manifest& manifest = opened.manifest;
  absl::StatusOr<ParameterCatalog> catalog =
      ParameterCatalog::Build(manifest.spec(), ExpertsAt(manifest.spec(), manifest.state().step()));
  if (!catalog.ok()) return catalog.status();
  const absl::StatusOr<int> degree = DegreeFor(flags, manifest.spec());
  if (!degree.ok()) return degree.status();
  const PlacedExperts placed =
      PlaceExperts({.spec = &manifest.spec(), .nodes = {}, .restored = &manifest.state()}, {},
                   Mesh::Flat(flags.ranks, *degree));
  OrderedJson ranks = OrderedJson::array();
  uint64_t total = 0;
  for (int rank = 0; rank < flags.ranks; ++rank) {
    const absl::StatusOr<RankReads> reads = PlanRank(manifest, *catalog, placed.placement, rank);
    if (!reads.ok()) return reads.status();
    total += reads->plan.bytes;
    OrderedJson entry = {{"rank", rank},
                         {"experts", reads->experts},
                         {"objects", reads->objects},
                         {"shards", reads->plan.reads.size()},
                         {"files", FilesOf(reads->plan)},
                         {"bytes", reads->plan.bytes}};
    if (flags.reads) entry["reads"] = ReadList(reads->plan);
    ranks.push_back(std::move(entry));
  }
  uint64_t stored = 0;
  for (const StoredObject& object : manifest.objects()) {
    for (const Shard& shard : object.shards()) stored += shard.bytes();
  }
  return OrderedJson{{"path", opened.step.path}, {"step", manifest.state().step()},
                     {"ranks", flags.ranks},     {"expert", *degree},
                     {"saved_at", manifest.layout()}, {"placed", placed.reason},
                     {"bytes", total},
                     {"stored_bytes", stored},   {"plan", ranks}};
}

void Reshard(const ReshardFlags& flags, VerbContext& context) {
  const absl::StatusOr<OpenedStep> opened = OpenStep(flags.target.path);
  if (!opened.ok()) return Fail(opened.status(), context);
  const absl::StatusOr<OrderedJson> plan = PlanAll(*opened, flags);
  if (!plan.ok()) return Fail(plan.status(), context);
  if (flags.target.json()) return PrintJson(*plan, context);
  PrintPlan(*plan, context.out);
}

}  // namespace

void RegisterCkptReshard(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand(
      "reshard-plan", "Say which rank of another layout reads what, and read no tensor");
  verb->footer(
      "A checkpoint needs no conversion: any layout loads it. This shows what that costs, with\n"
      "experts placed by the load that the checkpoint recorded, as a job on one host places "
      "them.\n\n"
      "Examples:\n"
      "  moesaic ckpt reshard-plan runs/quickstart/checkpoints --ranks 6\n"
      "  moesaic ckpt reshard-plan runs/quickstart/checkpoints@100 --ranks 6 --expert 3 --reads -o "
      "json");
  auto flags = std::make_shared<ReshardFlags>();
  AddCkptTarget(verb, &flags->target, kStepTarget);
  verb->add_option("--ranks", flags->ranks, "Ranks of the layout")
      ->required()
      ->check(CLI::Range(1, 1 << 20));
  verb->add_option("--expert", flags->expert,
                   "Ranks that hold one copy of the experts; default: as parallel.expert: auto")
      ->check(CLI::Range(1, 65536));
  verb->add_flag("--reads", flags->reads, "Also list every byte range");
  verb->callback([flags, &context] { Reshard(*flags, context); });
}

}  // namespace moesaic
