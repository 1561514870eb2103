#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

struct VerifyFlags {
  CkptTarget target;
  bool all = false;
  bool quick = false;
  int threads = ReadThreads();
};

absl::StatusOr<std::vector<StepFolder>> StepsToVerify(const VerifyFlags& flags) {
  std::vector<StepFolder> folders;
  FileSystem& files = FileSystem::System();
  if (!flags.all) {
    absl::StatusOr<StepFolder> step = OpenCheckpoint(&files, StepPath(flags.target.path));
    if (!step.ok()) return step.status();
    folders.push_back(*std::move(step));
    return folders;
  }
  absl::StatusOr<std::unique_ptr<Folder>> root = files.OpenFolder(flags.target.path);
  if (!root.ok()) return root.status();
  absl::StatusOr<std::vector<uint64_t>> steps = ListSteps(**root);
  if (!steps.ok()) return steps.status();
  for (uint64_t step : *steps) {
    absl::StatusOr<std::unique_ptr<Folder>> folder = (*root)->OpenFolder(StepFolderName(step));
    if (!folder.ok()) return folder.status();
    const std::string path = (*folder)->path();
    folders.push_back({path, *std::move(folder)});
  }
  return folders;
}

void PrintReport(const std::string& path, const VerifyReport& report, VerbContext& context) {
  if (report.ok()) {
    context.out << path << ": ok, " << report.objects << " objects in " << report.files
                << " files, " << ShortBytes(report.bytes) << "\n";
    return;
  }
  for (const std::string& problem : report.problems) {
    context.out << path << ": " << problem << "\n";
  }
}

VerifyReport VerifyOne(const StepFolder& step, const VerifyFlags& flags, VerbContext& context) {
  VerifyOptions options;
  options.depth = flags.quick ? VerifyDepth::kStructure : VerifyDepth::kContent;
  options.threads = flags.threads;
  VerifyReport report;
  WithByteProgress("verified", context, [&](std::function<void(int64_t, int64_t)> progress) {
    options.progress = [&](uint64_t done, uint64_t total) {
      progress(static_cast<int64_t>(done), static_cast<int64_t>(total));
    };
    report = VerifyStep(*step.folder, options);
  });
  return report;
}

void Verify(const VerifyFlags& flags, VerbContext& context) {
  absl::StatusOr<std::vector<StepFolder>> folders = StepsToVerify(flags);
  if (!folders.ok()) return Fail(folders.status(), context);
  OrderedJson list = OrderedJson::array();
  bool ok = true;
  for (const StepFolder& step : *folders) {
    const VerifyReport report = VerifyOne(step, flags, context);
    ok &= report.ok();
    if (!flags.target.json()) PrintReport(step.path, report, context);
    list.push_back({{"path", step.path},
                    {"step", report.step},
                    {"ok", report.ok()},
                    {"files", report.files},
                    {"objects", report.objects},
                    {"shards", report.shards},
                    {"bytes", report.bytes},
                    {"problems", report.problems}});
  }
  if (flags.target.json()) {
    PrintJson({{"ok", ok}, {"checkpoints", list}}, context);
  } else if (list.empty()) {
    context.err << flags.target.path << " has no checkpoints\n";
  }
  if (!ok) context.exit_code = kExitCheckpointInvalid;
}

void RegisterVerify(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("verify", "Check that a checkpoint is complete and undamaged");
  verb->footer(
      "Names every file and object that is damaged or missing, and exits 8 when there is one.\n\n"
      "Examples:\n"
      "  moesaic ckpt verify runs/quickstart/checkpoints\n"
      "  moesaic ckpt verify --all runs/quickstart/checkpoints -o json");
  auto flags = std::make_shared<VerifyFlags>();
  AddCkptTarget(verb, &flags->target, "A step folder, a folder of them (its newest), or FOLDER@STEP");
  verb->add_flag("--all", flags->all, "Every step of the folder");
  verb->add_option("--threads", flags->threads, "Files that are read at once")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  verb->add_flag("--quick", flags->quick, "Structure and sizes only; reads no tensor");
  verb->callback([flags, &context] { Verify(*flags, context); });
}

}  // namespace

void RegisterCkptCheck(CLI::App& ckpt, VerbContext& context) { RegisterVerify(ckpt, context); }

}  // namespace moesaic
