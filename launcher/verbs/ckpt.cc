#include "launcher/verbs/ckpt.h"

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "launcher/build_info.h"
#include "launcher/verbs/byte_progress.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/import_mixtral.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

// What every one of these verbs is told.
struct Target {
  std::string path;
  std::string format = "text";
  bool json() const { return format == "json"; }
};

void AddTarget(CLI::App* verb, Target* target, const char* what) {
  verb->add_option("PATH", target->path, what)->required();
  verb->add_option("-o,--output", target->format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

std::string Created(const Manifest& manifest) {
  return absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::FromUnixNanos(manifest.created_unix_ns()),
                          absl::UTCTimeZone());
}

uint64_t TotalBytes(const Manifest& manifest) {
  uint64_t bytes = 0;
  for (const StoredFile& file : manifest.files()) bytes += file.bytes();
  return bytes;
}

const char* Contents(const Manifest& manifest) {
  return manifest.weights_only() ? "weights" : "full";
}

std::string ShortBytes(uint64_t bytes) { return BytesForPeople(static_cast<int64_t>(bytes)); }

// ---- ls ----

Json LsEntry(uint64_t step, const std::string& path, const absl::StatusOr<Manifest>& manifest) {
  Json entry = {{"step", step}, {"path", path}};
  if (!manifest.ok()) {
    entry["error"] = std::string(manifest.status().message());
    return entry;
  }
  entry["job"] = manifest->job();
  entry["contents"] = Contents(*manifest);
  entry["bytes"] = TotalBytes(*manifest);
  entry["files"] = manifest->files_size();
  entry["created"] = Created(*manifest);
  entry["generation"] = manifest->generation();
  entry["layout"] = manifest->layout();
  return entry;
}

void Ls(const Target& target, VerbContext& context) {
  absl::StatusOr<std::unique_ptr<Folder>> root = FileSystem::System().OpenFolder(target.path);
  if (!root.ok()) return Fail(root.status(), context);
  absl::StatusOr<std::vector<uint64_t>> steps = ListSteps(**root);
  if (!steps.ok()) return Fail(steps.status(), context);
  Json list = Json::array();
  for (uint64_t step : *steps) {
    const std::string name = StepFolderName(step);
    absl::StatusOr<std::unique_ptr<Folder>> folder = (*root)->OpenFolder(name);
    list.push_back(LsEntry(step, absl::StrCat(target.path, "/", name),
                           folder.ok() ? ReadManifest(**folder) : folder.status()));
  }
  if (target.json()) {
    context.out << Json{{"root", target.path}, {"checkpoints", list}}.dump() << "\n";
    return;
  }
  if (list.empty()) context.err << target.path << " has no checkpoints\n";
  if (!list.empty()) {
    context.out << absl::StrFormat("%12s  %-20s  %10s  %-8s  %6s  %s\n", "STEP", "CREATED", "SIZE",
                                   "CONTENTS", "FILES", "LAYOUT");
  }
  for (const Json& entry : list) {
    const auto step = entry["step"].get<uint64_t>();
    if (entry.contains("error")) {
      context.out << absl::StrFormat("%12d  damaged: %s\n", step,
                                     entry["error"].get<std::string>());
      continue;
    }
    context.out << absl::StrFormat(
        "%12d  %-20s  %10s  %-8s  %6d  %s\n", step, entry["created"].get<std::string>(),
        ShortBytes(entry["bytes"].get<uint64_t>()), entry["contents"].get<std::string>(),
        entry["files"].get<int>(), entry["layout"].get<std::string>());
  }
}

void RegisterLs(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("ls", "List the checkpoints of a folder");
  verb->footer("Example:\n  moesaic ckpt ls runs/quickstart/checkpoints");
  auto target = std::make_shared<Target>();
  AddTarget(verb, target.get(), "Folder with step-<N> folders (checkpoint.dir of the job)");
  verb->callback([target, &context] { Ls(*target, context); });
}

// ---- show ----

struct ShowFlags {
  Target target;
  bool objects = false;
};

Json Summary(const StepFolder& step, const Manifest& manifest) {
  const TrainingState& state = manifest.state();
  Json summary = {{"path", step.path},
                  {"step", state.step()},
                  {"job", manifest.job()},
                  {"contents", Contents(manifest)},
                  {"bytes", TotalBytes(manifest)},
                  {"files", manifest.files_size()},
                  {"objects", manifest.objects_size()},
                  {"samples", state.samples()},
                  {"tokens", state.tokens()},
                  {"optimizer_updates", state.optimizer_updates()},
                  {"skipped_steps", state.skipped_steps_size()}};
  if (state.has_loss()) summary["loss"] = state.loss();
  if (state.has_validation_loss()) summary["validation_loss"] = state.validation_loss();
  summary["created"] = Created(manifest);
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

Json ObjectList(const Manifest& manifest) {
  Json list = Json::array();
  for (const StoredObject& object : manifest.objects()) {
    const Shape shape = AsShape(object.shape());
    list.push_back({{"name", ObjectLabel(object.kind(), object.name())},
                    {"element", std::string(ElementName(object.element()))},
                    {"shape", std::vector<uint64_t>(shape.begin(), shape.end())},
                    {"shards", object.shards_size()}});
  }
  return list;
}

void PrintSummary(const Json& summary, std::ostream& out) {
  for (const auto& [key, value] : summary.items()) {
    if (key == "object_list") continue;
    if (!value.is_array()) {
      out << absl::StrFormat("%-18s %s\n", key,
                             value.is_string() ? value.get<std::string>() : value.dump());
      continue;
    }
    for (const Json& item : value) {
      out << absl::StrFormat("%-18s %s\n", key, item.get<std::string>());
    }
  }
}

void Show(const ShowFlags& flags, VerbContext& context) {
  absl::StatusOr<StepFolder> step = OpenCheckpoint(&FileSystem::System(), flags.target.path);
  if (!step.ok()) return Fail(step.status(), context);
  absl::StatusOr<Manifest> manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return Fail(manifest.status(), context);
  Json summary = Summary(*step, *manifest);
  if (flags.objects) summary["object_list"] = ObjectList(*manifest);
  if (flags.target.json()) {
    context.out << summary.dump() << "\n";
    return;
  }
  PrintSummary(summary, context.out);
  if (!flags.objects) return;
  context.out << absl::StrFormat("\n%-56s  %-4s  %-20s  %s\n", "OBJECT", "TYPE", "SHAPE", "SHARDS");
  for (const Json& object : summary["object_list"]) {
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
      "  moesaic ckpt show runs/quickstart/checkpoints/step-000000100 --objects -o json");
  auto flags = std::make_shared<ShowFlags>();
  AddTarget(verb, &flags->target, "A step folder, or a folder of them (its newest)");
  verb->add_flag("--objects", flags->objects, "Also list every object");
  verb->callback([flags, &context] { Show(*flags, context); });
}

// ---- verify ----

struct VerifyFlags {
  Target target;
  bool all = false;
  bool quick = false;
};

absl::StatusOr<std::vector<StepFolder>> StepsToVerify(const VerifyFlags& flags) {
  std::vector<StepFolder> folders;
  FileSystem& files = FileSystem::System();
  if (!flags.all) {
    absl::StatusOr<StepFolder> step = OpenCheckpoint(&files, flags.target.path);
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

void Verify(const VerifyFlags& flags, VerbContext& context) {
  absl::StatusOr<std::vector<StepFolder>> folders = StepsToVerify(flags);
  if (!folders.ok()) return Fail(folders.status(), context);
  Json list = Json::array();
  bool ok = true;
  for (const StepFolder& step : *folders) {
    const VerifyReport report = VerifyStep(
        *step.folder, flags.quick ? VerifyDepth::kStructure : VerifyDepth::kContent);
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
    context.out << Json{{"ok", ok}, {"checkpoints", list}}.dump(
                       -1, ' ', false, Json::error_handler_t::replace)
                << "\n";
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
  AddTarget(verb, &flags->target, "A step folder, or a folder of them (its newest)");
  verb->add_flag("--all", flags->all, "Every step of the folder");
  verb->add_flag("--quick", flags->quick, "Structure and sizes only; reads no tensor");
  verb->callback([flags, &context] { Verify(*flags, context); });
}

// ---- import ----

struct ImportFlags {
  MixtralImport import;
  std::string format = "text";
};

void Import(const ImportFlags& flags, VerbContext& context) {
  MixtralImport import = flags.import;
  import.binary = absl::StrCat(ThisBuild().version, " ", ThisBuild().commit);
  import.created = Clock::System().Now();
  absl::StatusOr<CommittedStep> committed = [&] {
    ByteProgress progress("imported", ::isatty(STDERR_FILENO) != 0, context.err, Clock::System());
    import.progress = [&](int64_t done, int64_t total) { progress.Update(done, total); };
    return ImportMixtral(&FileSystem::System(), import);
  }();
  if (!committed.ok()) return Fail(committed.status(), context);
  if (flags.format == "json") {
    context.out << Json{{"path", committed->path}, {"step", committed->step},
                        {"bytes", committed->bytes}}.dump()
                << "\n";
    return;
  }
  context.out << committed->path << "\n";
  context.err << "imported " << ShortBytes(committed->bytes)
              << "; start a run from it with train.init_from: " << import.to << "\n";
}

void RegisterImport(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("import", "Make a checkpoint of a Hugging Face Mixtral folder");
  verb->footer(
      "Reads config.json and the safetensors files (F32, BF16, F16) and writes a checkpoint that\n"
      "holds parameters only: a run starts from it with train.init_from. Links in the folder are\n"
      "not followed, so download with --local-dir and not into the Hugging Face cache.\n\n"
      "Example:\n  moesaic ckpt import --from mixtral-8x7b --to checkpoints/mixtral");
  auto flags = std::make_shared<ImportFlags>();
  verb->add_option("--from", flags->import.from, "The Hugging Face folder")->required();
  verb->add_option("--to", flags->import.to, "A folder without checkpoints; made when missing")
      ->required();
  verb->add_option("--tokenizer", flags->import.tokenizer, "A SentencePiece model to keep with it");
  verb->add_option("-o,--output", flags->format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  verb->callback([flags, &context] { Import(*flags, context); });
}

}  // namespace

void RegisterCkpt(CLI::App& program, VerbContext& context) {
  CLI::App* verb = program.add_subcommand("ckpt", "List, show, verify and import checkpoints");
  verb->require_subcommand(1);
  verb->footer("Example:\n  moesaic ckpt verify --all runs/quickstart/checkpoints");
  RegisterLs(*verb, context);
  RegisterShow(*verb, context);
  RegisterVerify(*verb, context);
  RegisterImport(*verb, context);
}

}  // namespace moesaic
