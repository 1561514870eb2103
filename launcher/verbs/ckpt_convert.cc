#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "trainer/checkpoint/convert/architecture.h"
#include "trainer/checkpoint/convert/export.h"
#include "trainer/checkpoint/convert/import.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

// ---- import ----

struct ImportFlags {
  FolderImport import;
  std::string format = "text";
};

void Import(const ImportFlags& flags, VerbContext& context) {
  FolderImport import = flags.import;
  import.binary = ThisProgram();
  import.created = Clock::System().Now();
  absl::StatusOr<CommittedStep> committed;
  WithByteProgress("imported", context, [&](std::function<void(int64_t, int64_t)> progress) {
    import.progress = std::move(progress);
    committed = ImportFolder(&FileSystem::System(), import);
  });
  if (!committed.ok()) return Fail(committed.status(), context);
  PrintMade(*committed,
            absl::StrCat("imported ", ShortBytes(committed->bytes),
                         "; start a run from it with train.init_from: ", import.to),
            flags.format, context);
}

void RegisterImport(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("import", "Make a checkpoint of a Hugging Face folder");
  verb->footer(absl::StrCat(
      "Reads config.json (model_type ", absl::StrJoin(ArchitectureNames(), ", "), ")\n"
      "and the safetensors files (F32, BF16, F16) and writes a checkpoint that holds parameters\n"
      "only: a run starts from it with train.init_from. What has no counterpart here is refused\n"
      "by name. Links in the folder are not followed: download with --local-dir, not into the\n"
      "cache of Hugging Face.\n\n"
      "Example:\n  moesaic ckpt import --from mixtral-8x7b --to checkpoints/mixtral"));
  auto flags = std::make_shared<ImportFlags>();
  verb->add_option("--from", flags->import.from, "The Hugging Face folder")->required();
  verb->add_option("--to", flags->import.to, "A folder without checkpoints; made when missing")
      ->required();
  verb->add_option("--tokenizer", flags->import.tokenizer, "A SentencePiece model to keep with it");
  AddOutputFormat(verb, &flags->format);
  verb->callback([flags, &context] { Import(*flags, context); });
}

// ---- export ----

struct ExportFlags {
  FolderExport request;
  std::string dtype = "bf16";
  std::string format = "text";
};

void Export(const ExportFlags& flags, VerbContext& context) {
  FolderExport request = flags.request;
  request.from = StepPath(request.from);
  request.element = flags.dtype == "f32" ? ELEMENT_F32 : ELEMENT_BF16;
  request.threads = ReadingThreads();
  absl::StatusOr<ExportedModel> exported;
  WithByteProgress("exported", context, [&](std::function<void(int64_t, int64_t)> progress) {
    request.progress = std::move(progress);
    exported = ExportFolder(&FileSystem::System(), request);
  });
  if (!exported.ok()) return Fail(exported.status(), context);
  if (flags.format == "json") {
    return PrintJson({{"path", request.to},
                      {"step", exported->step},
                      {"architecture", exported->architecture},
                      {"bytes", exported->bytes},
                      {"files", exported->files}},
                     context);
  }
  context.out << request.to << "\n";
  context.err << "exported " << ShortBytes(exported->bytes) << " of step " << exported->step
              << " as " << exported->architecture << " in " << exported->files
              << (exported->files == 1 ? " file\n" : " files\n");
}

void RegisterExport(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("export", "Write a checkpoint as a Hugging Face folder");
  verb->footer(
      "Verifies the checkpoint, then writes config.json and the parameters as safetensors files\n"
      "(with an index when there are several), and a copy of the tokenizer. The architecture\n"
      "follows from the model; when none can say it, the reason of each is told.\n\n"
      "Examples:\n"
      "  moesaic ckpt export runs/quickstart/checkpoints --to quickstart-hf\n"
      "  moesaic ckpt export runs/quickstart/checkpoints@100 --to quickstart-hf --dtype f32");
  auto flags = std::make_shared<ExportFlags>();
  verb->add_option("PATH", flags->request.from, kStepTarget)->required();
  verb->add_option("--to", flags->request.to, "A folder without files; made when missing")
      ->required();
  verb->add_option("--as", flags->request.as, "The architecture that it must be said in")
      ->check(CLI::IsMember(ArchitectureNames()));
  verb->add_option("--dtype", flags->dtype, "bf16 (rounded to nearest even) or f32 (exact)")
      ->check(CLI::IsMember({"bf16", "f32"}))
      ->capture_default_str();
  verb->add_option("--max-file", flags->request.max_file_bytes, "Size of a file, as in 5GB")
      ->transform(CLI::AsSizeValue(true))
      ->capture_default_str();
  AddOutputFormat(verb, &flags->format);
  verb->callback([flags, &context] { Export(*flags, context); });
}

}  // namespace

void RegisterCkptConvert(CLI::App& ckpt, VerbContext& context) {
  RegisterImport(ckpt, context);
  RegisterExport(ckpt, context);
}

}  // namespace moesaic
