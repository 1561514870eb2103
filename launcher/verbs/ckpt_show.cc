#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "base/foreign_text.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_cluster.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/pins.h"

namespace moesaic {
namespace {

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

ShowCheckpointReply DescribeFolder(OpenedStep opened) {
  ShowCheckpointReply reply;
  CheckpointEntry& entry = *reply.mutable_entry();
  entry.set_path(opened.step.path);
  entry.set_pinned(IsPinned(opened.step.path));
  entry.set_bytes(TotalBytes(opened.manifest));
  entry.set_reused_bytes(ReusedBytes(opened.manifest));
  entry.set_files(static_cast<uint32_t>(opened.manifest.files_size()));
  reply.set_objects(static_cast<uint32_t>(opened.manifest.objects_size()));
  *reply.mutable_manifest() = std::move(opened.manifest);
  return reply;
}

absl::StatusOr<ShowCheckpointReply> Ask(const ShowFlags& flags, const VerbContext& context) {
  if (!NamesJobs(flags.target.connection)) {
    absl::StatusOr<OpenedStep> opened = OpenStep(flags.target.path);
    if (!opened.ok()) return opened.status();
    return DescribeFolder(*std::move(opened));
  }
  const absl::StatusOr<CheckpointRef> ref = ParseJobStep(flags.target.path);
  if (!ref.ok()) return ref.status();
  const absl::StatusOr<std::unique_ptr<CkptCluster>> cluster =
      CkptCluster::Open(flags.target.connection, context);
  if (!cluster.ok()) return cluster.status();
  return (*cluster)->Show(*ref, flags.objects);
}

OrderedJson Summary(const ShowCheckpointReply& shown) {
  const Manifest& manifest = shown.manifest();
  const TrainingState& state = manifest.state();
  OrderedJson summary = {{"path", shown.entry().path()},
                  {"step", state.step()},
                  {"pinned", shown.entry().pinned()},
                  {"job", manifest.job()},
                  {"contents", ContentsText(manifest.weights_only())},
                  {"bytes", shown.entry().bytes()},
                  {"reused_bytes", shown.entry().reused_bytes()},
                  {"files", shown.entry().files()},
                  {"objects", shown.objects()},
                  {"samples", state.samples()},
                  {"tokens", state.tokens()},
                  {"optimizer_updates", state.optimizer_updates()},
                  {"skipped_steps", state.skipped_steps_size()}};
  if (state.has_loss()) summary["loss"] = state.loss();
  if (state.has_validation_loss()) summary["validation_loss"] = state.validation_loss();
  summary["created"] = TimeText(manifest.created_unix_ns());
  summary["generation"] = manifest.generation();
  summary["layout"] = manifest.layout();
  summary["binary"] = manifest.binary();
  summary["identity_hash"] = Hex(manifest.identity_hash());
  summary["trajectory_hash"] = Hex(manifest.trajectory_hash());
  summary["catalog_hash"] = Hex(manifest.catalog_hash());
  summary["writers"] =
      std::vector<std::string>(manifest.writers().begin(), manifest.writers().end());
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
      out << absl::StrFormat(
          "%-18s %s\n", key,
          value.is_string() ? EscapeControls(value.get<std::string>()) : value.dump());
      continue;
    }
    for (const OrderedJson& item : value) {
      out << absl::StrFormat("%-18s %s\n", key, EscapeControls(item.get<std::string>()));
    }
  }
}

void Show(const ShowFlags& flags, VerbContext& context) {
  const absl::StatusOr<ShowCheckpointReply> shown = Ask(flags, context);
  if (!shown.ok()) return Fail(shown.status(), context);
  OrderedJson summary = Summary(*shown);
  if (flags.objects) summary["object_list"] = ObjectList(shown->manifest());
  if (flags.target.json()) return PrintJson(summary, context);
  PrintSummary(summary, context.out);
  if (!flags.objects) return;
  context.out << absl::StrFormat("\n%-56s  %-4s  %-20s  %s\n", "OBJECT", "TYPE", "SHAPE", "SHARDS");
  for (const OrderedJson& object : summary["object_list"]) {
    context.out << absl::StrFormat("%-56s  %-4s  %-20s  %d\n",
                                   EscapeControls(object["name"].get<std::string>()),
                                   object["element"].get<std::string>(), object["shape"].dump(),
                                   object["shards"].get<int>());
  }
}

void RegisterShow(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("show", "Show what a checkpoint holds");
  verb->footer(
      std::string(kJobsFooter) +
      "Examples:\n"
      "  moesaic ckpt show runs/quickstart/checkpoints\n"
      "  moesaic ckpt show runs/quickstart/checkpoints@100 --objects -o json\n"
      "  moesaic ckpt show --coordinator 10.0.0.1:7470 my-job@100");
  auto flags = std::make_shared<ShowFlags>();
  AddCkptTarget(verb, &flags->target, kStepTarget);
  AddConnectionFlags(verb, &flags->target.connection);
  verb->add_flag("--objects", flags->objects, "Also list every object");
  verb->callback([flags, &context] { Show(*flags, context); });
}

}  // namespace

void RegisterCkptShow(CLI::App& ckpt, VerbContext& context) { RegisterShow(ckpt, context); }

}  // namespace moesaic
