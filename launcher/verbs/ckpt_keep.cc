#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/foreign_text.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_cluster.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/commit.h"

namespace moesaic {
namespace {

struct KeepFlags {
  std::vector<std::string> paths;
  std::string note;
  bool force = false;
  std::string format = "text";
  ConnectionFlags connection;
};

// What a verb does with a step of a folder, and with one of a job.
struct KeepVerb {
  const char* done;
  absl::Status (*in_folder)(CheckpointRoot& root, uint64_t step, const KeepFlags& flags);
  absl::StatusOr<CheckpointEntry> (*of_job)(CkptCluster& cluster, const CheckpointRef& ref,
                                            const KeepFlags& flags);
};

// Both return the path of the step that was changed.
absl::StatusOr<std::string> ChangeInFolder(const KeepVerb& verb, const std::string& path,
                                           const KeepFlags& flags) {
  const absl::StatusOr<NamedStep> named = ParseNamedStep(path);
  if (!named.ok()) return named.status();
  absl::StatusOr<std::unique_ptr<CheckpointRoot>> root =
      CheckpointRoot::Open(&FileSystem::System(), named->root);
  if (!root.ok()) return root.status();
  const absl::Status changed = verb.in_folder(**root, named->step, flags);
  if (!changed.ok()) return changed;
  return (*root)->StepPath(named->step);
}

absl::StatusOr<std::string> ChangeOfJob(const KeepVerb& verb, const std::string& text,
                                        const KeepFlags& flags, CkptCluster* cluster) {
  const absl::StatusOr<CheckpointRef> ref = ParseJobStep(text);
  if (!ref.ok()) return ref.status();
  if (ref->step() == 0) {
    return absl::InvalidArgumentError(absl::StrCat("which step of job ", text, "? Write ", text,
                                                   "@STEP (moesaic ckpt ls lists them)"));
  }
  const absl::StatusOr<CheckpointEntry> entry = verb.of_job(*cluster, *ref, flags);
  if (!entry.ok()) return entry.status();
  return entry->path();
}

// Changes one step after another, and stops at the first that fails.
void ChangeAll(const KeepVerb& verb, const KeepFlags& flags, VerbContext& context) {
  std::unique_ptr<CkptCluster> cluster;
  if (NamesJobs(flags.connection)) {
    absl::StatusOr<std::unique_ptr<CkptCluster>> opened =
        CkptCluster::Open(flags.connection, context);
    if (!opened.ok()) return Fail(opened.status(), context);
    cluster = *std::move(opened);
  }
  OrderedJson changed = OrderedJson::array();
  for (const std::string& path : flags.paths) {
    const absl::StatusOr<std::string> step_path =
        cluster == nullptr ? ChangeInFolder(verb, path, flags)
                           : ChangeOfJob(verb, path, flags, cluster.get());
    if (!step_path.ok()) {
      Fail(step_path.status(), context);
      break;
    }
    changed.push_back(*step_path);
    if (flags.format == "text") {
      context.out << verb.done << " " << EscapeControls(*step_path) << "\n";
    }
  }
  if (flags.format == "json") PrintJson({{verb.done, changed}}, context);
}

absl::StatusOr<CheckpointEntry> PinOfJob(CkptCluster& cluster, const CheckpointRef& ref,
                                         const KeepFlags& flags, bool unpin) {
  PinCheckpointRequest request;
  *request.mutable_checkpoint() = ref;
  request.set_note(flags.note);
  request.set_unpin(unpin);
  return cluster.Pin(request);
}

constexpr KeepVerb kPin = {
    "pinned",
    [](CheckpointRoot& root, uint64_t step, const KeepFlags& flags) {
      return root.Pin(step, flags.note);
    },
    [](CkptCluster& cluster, const CheckpointRef& ref, const KeepFlags& flags) {
      return PinOfJob(cluster, ref, flags, false);
    }};

constexpr KeepVerb kUnpin = {
    "unpinned",
    [](CheckpointRoot& root, uint64_t step, const KeepFlags&) { return root.Unpin(step); },
    [](CkptCluster& cluster, const CheckpointRef& ref, const KeepFlags& flags) {
      return PinOfJob(cluster, ref, flags, true);
    }};

constexpr KeepVerb kRemove = {
    "removed",
    [](CheckpointRoot& root, uint64_t step, const KeepFlags& flags) {
      return root.Remove(step, flags.force);
    },
    [](CkptCluster& cluster, const CheckpointRef& ref, const KeepFlags& flags) {
      return cluster.Remove(ref, flags.force);
    }};

CLI::App* AddVerb(CLI::App& ckpt, const char* name, const char* description,
                  const std::shared_ptr<KeepFlags>& flags) {
  CLI::App* verb = ckpt.add_subcommand(name, description);
  verb->add_option("PATH", flags->paths,
                   "FOLDER/step-<N> or FOLDER@<step>; may come more than once")
      ->required();
  AddOutputFormat(verb, &flags->format);
  AddConnectionFlags(verb, &flags->connection);
  return verb;
}

}  // namespace

void RegisterCkptKeep(CLI::App& ckpt, VerbContext& context) {
  auto pin = std::make_shared<KeepFlags>();
  CLI::App* verb = AddVerb(ckpt, "pin", "Keep a checkpoint whatever checkpoint.keep says", pin);
  verb->footer(
      "A pin is a file in FOLDER/.pins; a running job sees it at once.\n\n" +
      std::string(kJobsFooter) +
      "Example:\n  moesaic ckpt pin runs/quickstart/checkpoints@100 --note 'before the new data'");
  verb->add_option("--note", pin->note, "Why, for those who list it");
  verb->callback([pin, &context] { ChangeAll(kPin, *pin, context); });

  auto unpin = std::make_shared<KeepFlags>();
  verb = AddVerb(ckpt, "unpin", "Let checkpoint.keep decide about a checkpoint again", unpin);
  verb->footer(std::string(kJobsFooter) +
               "Example:\n  moesaic ckpt unpin runs/quickstart/checkpoints@100");
  verb->callback([unpin, &context] { ChangeAll(kUnpin, *unpin, context); });

  auto rm = std::make_shared<KeepFlags>();
  verb = AddVerb(ckpt, "rm", "Delete checkpoints", rm);
  verb->footer(
      "A step is moved to .trash before anything in it is deleted. A pinned step and the last one\n"
      "of a folder are refused without --force. A coordinator also refuses the one that a live\n"
      "job would go on from.\n\n" +
      std::string(kJobsFooter) +
      "Example:\n"
      "  moesaic ckpt rm runs/quickstart/checkpoints@100 runs/quickstart/checkpoints@200");
  verb->add_flag("--force", rm->force, "Also a pinned step, and the last one");
  verb->callback([rm, &context] { ChangeAll(kRemove, *rm, context); });
}

}  // namespace moesaic
