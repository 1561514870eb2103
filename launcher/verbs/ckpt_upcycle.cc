#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "launcher/verbs/job_flags.h"
#include "trainer/checkpoint/convert/upcycle.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

const std::map<std::string, UpcycleMethod> kMethods = {{"copy", UpcycleMethod::kCopy},
                                                       {"granular", UpcycleMethod::kGranular},
                                                       {"spawn", UpcycleMethod::kSpawn}};
constexpr double kMask = 0.3;  // as recipe.experts.spawn.mask

struct UpcycleFlags {
  JobFlags job;
  std::string from;
  std::string to;
  std::string method = "copy";
  std::optional<double> mask;
  bool rescale = false;
  bool keep_optimizer = false;
  std::string format = "text";
};

absl::Status CheckFlags(const UpcycleFlags& flags) {
  if (flags.method == "spawn" || (!flags.mask && !flags.rescale)) return absl::OkStatus();
  return absl::InvalidArgumentError("--mask and --rescale go with --method spawn");
}

void Run(const UpcycleFlags& flags, VerbContext& context) {
  if (absl::Status status = CheckFlags(flags); !status.ok()) return Fail(status, context);
  std::optional<LoadedJob> job = LoadJobOrFail(flags.job, JobInputs::kTokenizer, context);
  if (!job) return;
  Upcycle upcycle;
  upcycle.from = StepPath(flags.from);
  upcycle.to = flags.to;
  upcycle.spec = std::move(job->spec);
  upcycle.method = kMethods.at(flags.method);
  upcycle.mask = flags.mask.value_or(kMask);
  upcycle.rescale = flags.rescale;
  upcycle.keep_moments = flags.keep_optimizer;
  upcycle.threads = ReadingThreads();
  upcycle.binary = ThisProgram();
  upcycle.created = Clock::System().Now();
  absl::StatusOr<CommittedStep> committed;
  WithByteProgress("upcycled", context, [&](std::function<void(int64_t, int64_t)> progress) {
    upcycle.progress = std::move(progress);
    committed = UpcycleModel(&FileSystem::System(), upcycle);
  });
  if (!committed.ok()) return Fail(committed.status(), context);
  const char* use = flags.keep_optimizer ? "a run resumes from it with checkpoint.dir: "
                                         : "start a run from it with train.init_from: ";
  PrintMade(*committed,
            absl::StrCat("upcycled to ", ShortBytes(committed->bytes), "; ", use, flags.to),
            flags.format, context);
}

}  // namespace

void RegisterCkptUpcycle(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("upcycle", "Make a model with experts of a dense one");
  verb->footer(
      "Writes a checkpoint for the job of -f, whose model is that of --from but for its experts.\n"
      "Methods:\n"
      "  copy      each expert is the dense layer (model.moe.expert_width is its width); the\n"
      "            weights of a token's experts must sum up to 1\n"
      "  granular  the dense layer in g pieces (expert_width is a g-th), each experts / g times;\n"
      "            active must be a multiple of g, and recipe.router.weight.scale must be g\n"
      "  spawn     copies, in each of which another random share of the weights is zero\n"
      "With copy and granular the new model computes what the dense one did.\n\n"
      "Examples:\n"
      "  moesaic ckpt upcycle --from runs/dense/checkpoints -f moe.yaml --to checkpoints/moe\n"
      "  moesaic ckpt upcycle --from llama-hf -f moe.yaml --to checkpoints/moe --method granular");
  auto flags = std::make_shared<UpcycleFlags>();
  verb->add_option("--from", flags->from,
                   "The dense model: a step folder, a folder of them (its newest), FOLDER@STEP, or "
                   "a Hugging Face Llama folder")
      ->required();
  AddJobFlags(verb, &flags->job);
  verb->add_option("--to", flags->to, "A folder without checkpoints; made when missing")
      ->required();
  verb->add_option("--method", flags->method, "What the experts are made of the dense layer")
      ->check(CLI::IsMember({"copy", "granular", "spawn"}))
      ->capture_default_str();
  verb->add_option("--mask", flags->mask, "spawn: the share of zeros (default 0.3)")
      ->check(CLI::Range(0.0, 0.99));
  verb->add_flag("--rescale", flags->rescale, "spawn: divide what is left by 1 - mask");
  verb->add_flag("--keep-optimizer", flags->keep_optimizer,
                 "Carry AdamW's moments along: a run can resume from the result");
  AddOutputFormat(verb, &flags->format);
  verb->callback([flags, &context] { Run(*flags, context); });
}

}  // namespace moesaic
