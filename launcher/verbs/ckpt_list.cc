#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/foreign_text.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_cluster.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/pins.h"
#include "trainer/checkpoint/format/retention.h"
#include "trainer/checkpoint/format/set_aside.h"

namespace moesaic {
namespace {

// A root as it stands. Manifests that cannot be read stay errors.
struct RootListing {
  std::vector<uint64_t> steps;
  std::vector<absl::StatusOr<Manifest>> manifests;
  std::map<uint64_t, std::string> pins;
  std::vector<QuarantinedStep> quarantined;
};

absl::StatusOr<RootListing> ListRoot(const std::string& path) {
  absl::StatusOr<std::unique_ptr<Folder>> root = FileSystem::System().OpenFolder(path);
  if (!root.ok()) return root.status();
  absl::StatusOr<std::vector<uint64_t>> steps = ListSteps(**root);
  if (!steps.ok()) return steps.status();
  absl::StatusOr<std::map<uint64_t, std::string>> pins = ListPins(**root);
  if (!pins.ok()) return pins.status();
  absl::StatusOr<std::vector<QuarantinedStep>> quarantined = ListQuarantined(**root);
  if (!quarantined.ok()) return quarantined.status();
  RootListing listing{*std::move(steps), {}, *std::move(pins), *std::move(quarantined)};
  for (uint64_t step : listing.steps) {
    absl::StatusOr<std::unique_ptr<Folder>> folder = (*root)->OpenFolder(StepFolderName(step));
    listing.manifests.push_back(folder.ok() ? ReadManifest(**folder) : folder.status());
  }
  return listing;
}

// What retention would say of each step, by the rules of the newest step that can be read.
std::vector<KeepDecision> DecideKept(const RootListing& listing) {
  KeepSpec keep;
  for (const absl::StatusOr<Manifest>& manifest : listing.manifests) {
    if (manifest.ok()) keep = manifest->spec().checkpoint().keep();
  }
  std::vector<StepFacts> facts;
  for (size_t i = 0; i < listing.steps.size(); ++i) {
    StepFacts& fact = facts.emplace_back();
    fact.step = listing.steps[i];
    fact.pinned = listing.pins.contains(fact.step);
    fact.damaged = !listing.manifests[i].ok();
    if (fact.damaged) continue;
    fact.metric = MetricOf(keep.best_by(), listing.manifests[i]->state());
    fact.created = absl::FromUnixNanos(listing.manifests[i]->created_unix_ns());
  }
  return ChooseKept(keep, facts, Clock::System().Now());
}

OrderedJson LsEntry(uint64_t step, const std::string& path,
                    const absl::StatusOr<Manifest>& manifest) {
  OrderedJson entry = {{"step", step}, {"path", path}};
  if (!manifest.ok()) {
    entry["error"] = std::string(manifest.status().message());
    return entry;
  }
  entry["job"] = manifest->job();
  entry["contents"] = ContentsText(manifest->weights_only());
  entry["bytes"] = TotalBytes(*manifest);
  entry["reused_bytes"] = ReusedBytes(*manifest);
  entry["files"] = manifest->files_size();
  entry["created"] = TimeText(manifest->created_unix_ns());
  entry["generation"] = manifest->generation();
  entry["layout"] = manifest->layout();
  return entry;
}

OrderedJson CheckpointList(const std::string& root, const RootListing& listing) {
  const std::vector<KeepDecision> decisions = DecideKept(listing);
  OrderedJson list = OrderedJson::array();
  for (size_t i = 0; i < listing.steps.size(); ++i) {
    const uint64_t step = listing.steps[i];
    OrderedJson entry =
        LsEntry(step, absl::StrCat(root, "/", StepFolderName(step)), listing.manifests[i]);
    const auto pin = listing.pins.find(step);
    entry["pinned"] = pin != listing.pins.end();
    if (pin != listing.pins.end()) entry["pin_note"] = pin->second;
    entry["kept_for"] = OrderedJson::array();
    for (KeepReason reason : decisions[i].reasons) {
      entry["kept_for"].push_back(std::string(KeepReasonName(reason)));
    }
    list.push_back(std::move(entry));
  }
  return list;
}

OrderedJson QuarantineList(const RootListing& listing) {
  OrderedJson list = OrderedJson::array();
  for (const QuarantinedStep& step : listing.quarantined) {
    OrderedJson entry = {{"step", step.step}, {"path", step.path}};
    if (step.when != absl::InfinitePast()) {
      entry["when"] = absl::FormatTime(absl::RFC3339_sec, step.when, absl::UTCTimeZone());
    }
    entry["reason"] = step.reason;
    entry["was_pinned"] = step.was_pinned;
    list.push_back(std::move(entry));
  }
  return list;
}

void PrintCheckpoints(const OrderedJson& list, std::ostream& out) {
  out << absl::StrFormat("%12s  %-20s  %10s  %-8s  %6s  %-14s  %s\n", "STEP", "CREATED", "SIZE",
                         "CONTENTS", "FILES", "KEPT FOR", "LAYOUT");
  for (const OrderedJson& entry : list) {
    const auto step = entry["step"].get<uint64_t>();
    if (entry.contains("error")) {
      out << absl::StrFormat("%12d  damaged: %s\n", step,
                             EscapeControls(entry["error"].get<std::string>()));
      continue;
    }
    out << absl::StrFormat(
        "%12d  %-20s  %10s  %-8s  %6d  %-14s  %s\n", step, entry["created"].get<std::string>(),
        ShortBytes(entry["bytes"].get<uint64_t>()), entry["contents"].get<std::string>(),
        entry["files"].get<int>(),
        absl::StrJoin(entry["kept_for"].get<std::vector<std::string>>(), ","),
        EscapeControls(entry["layout"].get<std::string>()));
  }
}

void PrintQuarantined(const OrderedJson& list, std::ostream& out) {
  out << absl::StrFormat("\n%12s  %-20s  %s\n", "QUARANTINED", "WHEN", "WHY");
  for (const OrderedJson& entry : list) {
    const auto reason = entry["reason"].get<std::string>();
    out << absl::StrFormat("%12d  %-20s  %s\n%36s%s\n", entry["step"].get<uint64_t>(),
                           entry.value("when", "?"), reason.empty() ? "?" : EscapeControls(reason),
                           "", EscapeControls(entry["path"].get<std::string>()));
  }
}

// The two lists of a root or of a job.
struct Lists {
  OrderedJson checkpoints = OrderedJson::array();
  OrderedJson quarantined = OrderedJson::array();
};

absl::StatusOr<Lists> ListsOfFolder(const std::string& path) {
  const absl::StatusOr<RootListing> listing = ListRoot(path);
  if (!listing.ok()) return listing.status();
  return Lists{CheckpointList(path, *listing), QuarantineList(*listing)};
}

OrderedJson JobEntry(const CheckpointEntry& entry) {
  OrderedJson json = {{"step", entry.step()}, {"path", entry.path()}};
  if (entry.unreadable().empty()) {
    json["job"] = entry.job();
    json["contents"] = ContentsText(entry.weights_only());
    json["bytes"] = entry.bytes();
    json["reused_bytes"] = entry.reused_bytes();
    json["files"] = entry.files();
    json["created"] = TimeText(entry.created_unix_ns());
    json["generation"] = entry.generation();
    json["layout"] = entry.layout();
    json["verified"] = entry.verified_unix_ns() == 0
                           ? OrderedJson()
                           : OrderedJson(TimeText(entry.verified_unix_ns()));
  } else {
    json["error"] = entry.unreadable();
  }
  json["pinned"] = entry.pinned();
  if (entry.pinned()) json["pin_note"] = entry.pin_note();
  json["kept_for"] = std::vector<std::string>(entry.kept_for().begin(), entry.kept_for().end());
  return json;
}

OrderedJson JobQuarantined(const CheckpointEntry& entry) {
  OrderedJson json = {{"step", entry.step()}, {"path", entry.path()}};
  if (entry.quarantined_unix_ns() != 0) json["when"] = TimeText(entry.quarantined_unix_ns());
  json["reason"] = entry.quarantined();
  json["was_pinned"] = entry.pinned();
  return json;
}

absl::StatusOr<Lists> ListsOfJob(const CkptTarget& target, const VerbContext& context) {
  const absl::StatusOr<CheckpointRef> ref = ParseJobStep(target.path);
  if (!ref.ok()) return ref.status();
  const absl::StatusOr<std::unique_ptr<CkptCluster>> cluster =
      CkptCluster::Open(target.connection, context);
  if (!cluster.ok()) return cluster.status();
  const absl::StatusOr<std::vector<CheckpointEntry>> entries = (*cluster)->List(ref->job());
  if (!entries.ok()) return entries.status();
  Lists lists;
  for (const CheckpointEntry& entry : *entries) {
    if (ref->step() != 0 && ref->step() != entry.step()) continue;
    if (entry.quarantined().empty()) {
      lists.checkpoints.push_back(JobEntry(entry));
    } else {
      lists.quarantined.push_back(JobQuarantined(entry));
    }
  }
  return lists;
}

void Ls(const CkptTarget& target, VerbContext& context) {
  const bool of_job = NamesJobs(target.connection);
  const absl::StatusOr<Lists> lists =
      of_job ? ListsOfJob(target, context) : ListsOfFolder(target.path);
  if (!lists.ok()) return Fail(lists.status(), context);
  if (target.json()) {
    return PrintJson({{of_job ? "job" : "root", target.path},
                      {"checkpoints", lists->checkpoints},
                      {"quarantined", lists->quarantined}},
                     context);
  }
  if (lists->checkpoints.empty()) {
    context.err << target.path << " has no checkpoints\n";
  } else {
    PrintCheckpoints(lists->checkpoints, context.out);
  }
  if (!lists->quarantined.empty()) PrintQuarantined(lists->quarantined, context.out);
}

void RegisterLs(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("ls", "List the checkpoints of a folder or a job");
  verb->footer(
      "KEPT FOR says which rules of checkpoint.keep want a step, or that it is pinned; a step\n"
      "that none wants goes at the next save. Steps that were set aside are listed below, with\n"
      "the reason.\n\n" +
      std::string(kJobsFooter) +
      "Examples:\n"
      "  moesaic ckpt ls runs/quickstart/checkpoints\n"
      "  moesaic ckpt ls --coordinator 10.0.0.1:7470 my-job");
  auto target = std::make_shared<CkptTarget>();
  AddCkptTarget(verb, target.get(), "Folder with step-<N> folders (checkpoint.dir of the job)");
  AddConnectionFlags(verb, &target->connection);
  verb->callback([target, &context] { Ls(*target, context); });
}

}  // namespace

void RegisterCkptList(CLI::App& ckpt, VerbContext& context) { RegisterLs(ckpt, context); }

}  // namespace moesaic
