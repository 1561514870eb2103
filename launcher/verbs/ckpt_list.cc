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
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/pins.h"
#include "trainer/checkpoint/format/retention.h"
#include "trainer/checkpoint/format/set_aside.h"

namespace moesaic {
namespace {

// ---- ls ----

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
  entry["contents"] = ContentsText(*manifest);
  entry["bytes"] = TotalBytes(*manifest);
  entry["reused_bytes"] = ReusedBytes(*manifest);
  entry["files"] = manifest->files_size();
  entry["created"] = CreatedText(*manifest);
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
      out << absl::StrFormat("%12d  damaged: %s\n", step, entry["error"].get<std::string>());
      continue;
    }
    out << absl::StrFormat(
        "%12d  %-20s  %10s  %-8s  %6d  %-14s  %s\n", step, entry["created"].get<std::string>(),
        ShortBytes(entry["bytes"].get<uint64_t>()), entry["contents"].get<std::string>(),
        entry["files"].get<int>(),
        absl::StrJoin(entry["kept_for"].get<std::vector<std::string>>(), ","),
        entry["layout"].get<std::string>());
  }
}

void PrintQuarantined(const OrderedJson& list, std::ostream& out) {
  out << absl::StrFormat("\n%12s  %-20s  %s\n", "QUARANTINED", "WHEN", "WHY");
  for (const OrderedJson& entry : list) {
    const auto reason = entry["reason"].get<std::string>();
    out << absl::StrFormat("%12d  %-20s  %s\n%36s%s\n", entry["step"].get<uint64_t>(),
                           entry.value("when", "?"), reason.empty() ? "?" : reason, "",
                           entry["path"].get<std::string>());
  }
}

void Ls(const CkptTarget& target, VerbContext& context) {
  const absl::StatusOr<RootListing> listing = ListRoot(target.path);
  if (!listing.ok()) return Fail(listing.status(), context);
  const OrderedJson list = CheckpointList(target.path, *listing);
  const OrderedJson quarantined = QuarantineList(*listing);
  if (target.json()) {
    return PrintJson(
        {{"root", target.path}, {"checkpoints", list}, {"quarantined", quarantined}}, context);
  }
  if (list.empty()) {
    context.err << target.path << " has no checkpoints\n";
  } else {
    PrintCheckpoints(list, context.out);
  }
  if (!quarantined.empty()) PrintQuarantined(quarantined, context.out);
}

void RegisterLs(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("ls", "List the checkpoints of a folder");
  verb->footer(
      "KEPT FOR says which rules of checkpoint.keep want a step, or that it is pinned; a step that\n"
      "none wants goes at the next save. Steps that were set aside are listed below, with the\n"
      "reason.\n\n"
      "Example:\n  moesaic ckpt ls runs/quickstart/checkpoints");
  auto target = std::make_shared<CkptTarget>();
  AddCkptTarget(verb, target.get(), "Folder with step-<N> folders (checkpoint.dir of the job)");
  verb->callback([target, &context] { Ls(*target, context); });
}

// ---- show ----

struct ShowFlags {
  CkptTarget target;
  bool objects = false;
};

bool IsPinned(const std::string& path) {
  const std::optional<NamedStep> named = StepOfFolder(path);
  if (!named) return false;
  absl::StatusOr<std::unique_ptr<Folder>> root = FileSystem::System().OpenFolder(named->root);
  if (!root.ok()) return false;
  const absl::StatusOr<std::map<uint64_t, std::string>> pins = ListPins(**root);
  return pins.ok() && pins->contains(named->step);
}

OrderedJson Summary(const StepFolder& step, const Manifest& manifest) {
  const TrainingState& state = manifest.state();
  OrderedJson summary = {{"path", step.path},
                  {"step", state.step()},
                  {"pinned", IsPinned(step.path)},
                  {"job", manifest.job()},
                  {"contents", ContentsText(manifest)},
                  {"bytes", TotalBytes(manifest)},
                  {"reused_bytes", ReusedBytes(manifest)},
                  {"files", manifest.files_size()},
                  {"objects", manifest.objects_size()},
                  {"samples", state.samples()},
                  {"tokens", state.tokens()},
                  {"optimizer_updates", state.optimizer_updates()},
                  {"skipped_steps", state.skipped_steps_size()}};
  if (state.has_loss()) summary["loss"] = state.loss();
  if (state.has_validation_loss()) summary["validation_loss"] = state.validation_loss();
  summary["created"] = CreatedText(manifest);
  summary["generation"] = manifest.generation();
  summary["layout"] = manifest.layout();
  summary["binary"] = manifest.binary();
  summary["identity_hash"] = Hex(manifest.identity_hash());
  summary["trajectory_hash"] = Hex(manifest.trajectory_hash());
  summary["catalog_hash"] = Hex(manifest.catalog_hash());
  summary["writers"] = std::vector<std::string>(manifest.writers().begin(), manifest.writers().end());
  summary["trajectory_changes"] = std::vector<std::string>(manifest.trajectory_changes().begin(),
                                                           manifest.trajectory_changes().end());
  return summary;
}

OrderedJson ObjectList(const Manifest& manifest) {
  OrderedJson list = OrderedJson::array();
  for (const StoredObject& object : manifest.objects()) {
    const Shape shape = AsShape(object.shape());
    list.push_back({{"name", ObjectLabel(object.kind(), object.name())},
                    {"element", std::string(ElementName(object.element()))},
                    {"shape", std::vector<uint64_t>(shape.begin(), shape.end())},
                    {"shards", object.shards_size()}});
  }
  return list;
}

void PrintSummary(const OrderedJson& summary, std::ostream& out) {
  for (const auto& [key, value] : summary.items()) {
    if (key == "object_list") continue;
    if (!value.is_array()) {
      out << absl::StrFormat("%-18s %s\n", key,
                             value.is_string() ? value.get<std::string>() : value.dump());
      continue;
    }
    for (const OrderedJson& item : value) {
      out << absl::StrFormat("%-18s %s\n", key, item.get<std::string>());
    }
  }
}

void Show(const ShowFlags& flags, VerbContext& context) {
  absl::StatusOr<OpenedStep> opened = OpenStep(flags.target.path);
  if (!opened.ok()) return Fail(opened.status(), context);
  OrderedJson summary = Summary(opened->step, opened->manifest);
  if (flags.objects) summary["object_list"] = ObjectList(opened->manifest);
  if (flags.target.json()) return PrintJson(summary, context);
  PrintSummary(summary, context.out);
  if (!flags.objects) return;
  context.out << absl::StrFormat("\n%-56s  %-4s  %-20s  %s\n", "OBJECT", "TYPE", "SHAPE", "SHARDS");
  for (const OrderedJson& object : summary["object_list"]) {
    context.out << absl::StrFormat("%-56s  %-4s  %-20s  %d\n", object["name"].get<std::string>(),
                                   object["element"].get<std::string>(), object["shape"].dump(),
                                   object["shards"].get<int>());
  }
}

void RegisterShow(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("show", "Show what a checkpoint holds");
  verb->footer(
      "Examples:\n"
      "  moesaic ckpt show runs/quickstart/checkpoints\n"
      "  moesaic ckpt show runs/quickstart/checkpoints@100 --objects -o json");
  auto flags = std::make_shared<ShowFlags>();
  AddCkptTarget(verb, &flags->target, "A step folder, a folder of them (its newest), or FOLDER@STEP");
  verb->add_flag("--objects", flags->objects, "Also list every object");
  verb->callback([flags, &context] { Show(*flags, context); });
}

}  // namespace

void RegisterCkptList(CLI::App& ckpt, VerbContext& context) {
  RegisterLs(ckpt, context);
  RegisterShow(ckpt, context);
}

}  // namespace moesaic
