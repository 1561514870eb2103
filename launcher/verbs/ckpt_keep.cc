#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/commit.h"

namespace moesaic {
namespace {

struct KeepFlags {
  std::vector<std::string> paths;
  std::string note;
  bool force = false;
  std::string format = "text";
};

using Change = absl::Status (*)(CheckpointRoot& root, uint64_t step, const KeepFlags& flags);

absl::Status ChangeStep(const std::string& path, Change change, const KeepFlags& flags,
                        std::string* step_path) {
  const absl::StatusOr<NamedStep> named = ParseNamedStep(path);
  if (!named.ok()) return named.status();
  absl::StatusOr<std::unique_ptr<CheckpointRoot>> root =
      CheckpointRoot::Open(&FileSystem::System(), named->root);
  if (!root.ok()) return root.status();
  *step_path = (*root)->StepPath(named->step);
  return change(**root, named->step, flags);
}

// Changes one step after another, and stops at the first that fails.
void ChangeAll(const char* done, Change change, const KeepFlags& flags, VerbContext& context) {
  OrderedJson changed = OrderedJson::array();
  for (const std::string& path : flags.paths) {
    std::string step_path;
    const absl::Status status = ChangeStep(path, change, flags, &step_path);
    if (!status.ok()) {
      Fail(status, context);
      break;
    }
    changed.push_back(step_path);
    if (flags.format == "text") context.out << done << " " << step_path << "\n";
  }
  if (flags.format == "json") PrintJson({{done, changed}}, context);
}

absl::Status Pin(CheckpointRoot& root, uint64_t step, const KeepFlags& flags) {
  return root.Pin(step, flags.note);
}

absl::Status Unpin(CheckpointRoot& root, uint64_t step, const KeepFlags&) {
  return root.Unpin(step);
}

absl::Status Remove(CheckpointRoot& root, uint64_t step, const KeepFlags& flags) {
  const absl::Status removed = root.Remove(step, flags.force);
  if (!absl::IsFailedPrecondition(removed)) return removed;
  return absl::FailedPreconditionError(
      absl::StrCat(std::string(removed.message()), "; --force removes it all the same"));
}

CLI::App* AddVerb(CLI::App& ckpt, const char* name, const char* description,
                  const std::shared_ptr<KeepFlags>& flags) {
  CLI::App* verb = ckpt.add_subcommand(name, description);
  verb->add_option("PATH", flags->paths, "FOLDER/step-<N> or FOLDER@<step>; may come more than once")
      ->required();
  AddOutputFormat(verb, &flags->format);
  return verb;
}

}  // namespace

void RegisterCkptKeep(CLI::App& ckpt, VerbContext& context) {
  auto pin = std::make_shared<KeepFlags>();
  CLI::App* verb = AddVerb(ckpt, "pin", "Keep a checkpoint whatever checkpoint.keep says", pin);
  verb->footer(
      "A pin is a file in FOLDER/.pins; a running job sees it at once.\n\n"
      "Example:\n  moesaic ckpt pin runs/quickstart/checkpoints@100 --note 'before the new data'");
  verb->add_option("--note", pin->note, "Why, for those who list it");
  verb->callback([pin, &context] { ChangeAll("pinned", Pin, *pin, context); });

  auto unpin = std::make_shared<KeepFlags>();
  verb = AddVerb(ckpt, "unpin", "Let checkpoint.keep decide about a checkpoint again", unpin);
  verb->footer("Example:\n  moesaic ckpt unpin runs/quickstart/checkpoints@100");
  verb->callback([unpin, &context] { ChangeAll("unpinned", Unpin, *unpin, context); });

  auto rm = std::make_shared<KeepFlags>();
  verb = AddVerb(ckpt, "rm", "Delete checkpoints", rm);
  verb->footer(
      "A step is moved to .trash before anything in it is deleted. A pinned step and the last one\n"
      "of a folder are refused without --force.\n\n"
      "Example:\n"
      "  moesaic ckpt rm runs/quickstart/checkpoints@100 runs/quickstart/checkpoints@200");
  verb->add_flag("--force", rm->force, "Also a pinned step, and the last one");
  verb->callback([rm, &context] { ChangeAll("removed", Remove, *rm, context); });
}

}  // namespace moesaic
