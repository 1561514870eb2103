#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/foreign_text.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_cluster.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

struct VerifyFlags {
  CkptTarget target;
  bool all = false;
  bool quick = false;
  int threads = ReadingThreads();
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

void PrintProblems(const OrderedJson& checkpoint, std::ostream& out) {
  const std::string path = EscapeControls(checkpoint["path"].get<std::string>());
  for (const OrderedJson& problem : checkpoint["problems"]) {
    out << path << ": " << EscapeControls(problem.get<std::string>()) << "\n";
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

// What came of each step.
absl::StatusOr<std::vector<OrderedJson>> VerifyFolders(const VerifyFlags& flags,
                                                       VerbContext& context) {
  absl::StatusOr<std::vector<StepFolder>> folders = StepsToVerify(flags);
  if (!folders.ok()) return folders.status();
  std::vector<OrderedJson> list;
  for (const StepFolder& step : *folders) {
    const VerifyReport report = VerifyOne(step, flags, context);
    list.push_back({{"path", step.path},
                    {"step", report.step},
                    {"ok", report.ok()},
                    {"files", report.files},
                    {"objects", report.objects},
                    {"shards", report.shards},
                    {"bytes", report.bytes},
                    {"problems", report.problems}});
    if (flags.target.json()) continue;
    PrintProblems(list.back(), context.out);
    if (report.ok()) {
      context.out << step.path << ": ok, " << report.objects << " objects in " << report.files
                  << " files, " << ShortBytes(report.bytes) << "\n";
    }
  }
  return list;
}

absl::StatusOr<std::vector<CheckpointEntry>> EntriesToVerify(const CheckpointRef& ref, bool all,
                                                             CkptCluster* cluster) {
  if (!all) {
    absl::StatusOr<CheckpointEntry> entry = cluster->Find(ref);
    if (!entry.ok()) return entry.status();
    return std::vector<CheckpointEntry>{*std::move(entry)};
  }
  absl::StatusOr<std::vector<CheckpointEntry>> entries = cluster->List(ref.job());
  if (!entries.ok()) return entries.status();
  std::erase_if(*entries, [](const CheckpointEntry& e) { return !e.quarantined().empty(); });
  return entries;
}

absl::StatusOr<VerifyProgress> VerifyEntry(const CheckpointEntry& entry, CkptCluster* cluster,
                                           VerbContext& context) {
  CheckpointRef ref;
  ref.set_job(entry.job());
  ref.set_step(entry.step());
  absl::StatusOr<VerifyProgress> verified;
  WithByteProgress("verified", context, [&](std::function<void(int64_t, int64_t)> progress) {
    verified = cluster->Verify(ref, progress);
  });
  return verified;
}

absl::StatusOr<std::vector<OrderedJson>> VerifyJob(const VerifyFlags& flags, VerbContext& context) {
  const absl::StatusOr<CheckpointRef> ref = ParseJobStep(flags.target.path);
  if (!ref.ok()) return ref.status();
  if (flags.quick || (flags.all && ref->step() != 0)) {
    return absl::InvalidArgumentError(
        "a coordinator reads every byte of JOB@STEP, of JOB (its newest), or with --all of all of "
        "JOB; there is no --quick");
  }
  const absl::StatusOr<std::unique_ptr<CkptCluster>> cluster =
      CkptCluster::Open(flags.target.connection, context);
  if (!cluster.ok()) return cluster.status();
  const absl::StatusOr<std::vector<CheckpointEntry>> entries =
      EntriesToVerify(*ref, flags.all, cluster->get());
  if (!entries.ok()) return entries.status();
  std::vector<OrderedJson> list;
  for (const CheckpointEntry& entry : *entries) {
    const absl::StatusOr<VerifyProgress> verified = VerifyEntry(entry, cluster->get(), context);
    if (!verified.ok()) return verified.status();
    const bool ok = verified->problems().empty();
    list.push_back({{"path", entry.path()},
                    {"step", entry.step()},
                    {"ok", ok},
                    {"files", entry.files()},
                    {"bytes", entry.bytes()},
                    {"problems", std::vector<std::string>(verified->problems().begin(),
                                                          verified->problems().end())}});
    if (!ok) context.err << EscapeControls(entry.path()) << " was moved to .quarantine\n";
    if (flags.target.json()) continue;
    PrintProblems(list.back(), context.out);
    if (ok) {
      context.out << EscapeControls(entry.path()) << ": ok, " << entry.files() << " files, "
                  << ShortBytes(entry.bytes()) << "\n";
    }
  }
  return list;
}

void Verify(const VerifyFlags& flags, VerbContext& context) {
  const absl::StatusOr<std::vector<OrderedJson>> list = NamesJobs(flags.target.connection)
                                               ? VerifyJob(flags, context)
                                               : VerifyFolders(flags, context);
  if (!list.ok()) return Fail(list.status(), context);
  bool ok = true;
  for (const OrderedJson& checkpoint : *list) ok &= checkpoint["ok"].get<bool>();
  if (flags.target.json()) {
    PrintJson({{"ok", ok}, {"checkpoints", *list}}, context);
  } else if (list->empty()) {
    context.err << flags.target.path << " has no checkpoints\n";
  }
  if (!ok) context.exit_code = kExitCheckpointInvalid;
}

void RegisterVerify(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb =
      ckpt.add_subcommand("verify", "Check that a checkpoint is complete and undamaged");
  verb->footer(
      "Names every file and object that is damaged or missing, and exits 8 when there is one.\n"
      "A coordinator also moves what is damaged to .quarantine.\n\n" +
      std::string(kJobsFooter) +
      "Examples:\n"
      "  moesaic ckpt verify runs/quickstart/checkpoints\n"
      "  moesaic ckpt verify --all runs/quickstart/checkpoints -o json\n"
      "  moesaic ckpt verify --coordinator 10.0.0.1:7470 my-job@100");
  auto flags = std::make_shared<VerifyFlags>();
  AddCkptTarget(verb, &flags->target, kStepTarget);
  AddConnectionFlags(verb, &flags->target.connection);
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
