#include "launcher/verbs/config.h"

#include <memory>

#include "launcher/config/job_writer.h"
#include "launcher/verbs/job_flags.h"

namespace moesaic {
namespace {

struct CheckFlags {
  JobFlags job;
  bool no_inputs = false;
};

void RegisterCheck(CLI::App& config, VerbContext& context) {
  CLI::App* verb = config.add_subcommand("check", "Check a job file and the files it reads");
  verb->footer(
      "Prints every problem as file:line:column: key: message, and exits 2 when there is one.\n\n"
      "Examples:\n"
      "  moesaic config check -f configs/quickstart.yaml\n"
      "  moesaic config check -f job.yaml --no-inputs --set train.steps=10");
  auto flags = std::make_shared<CheckFlags>();
  AddJobFlags(verb, &flags->job);
  verb->add_flag("--no-inputs", flags->no_inputs,
                 "Do not look for the tokenizer and data files of the job");
  verb->callback([flags, &context] {
    const JobInputs inputs = flags->no_inputs ? JobInputs::kIgnore : JobInputs::kAll;
    if (LoadJobOrFail(flags->job, inputs, context)) {
      context.err << flags->job.file << " is a valid job file\n";
    }
  });
}

struct ShowFlags {
  JobFlags job;
  bool resolved = false;
  std::string format = "yaml";
};

void Show(const ShowFlags& flags, VerbContext& context) {
  const std::optional<LoadedJob> job = LoadJobOrFail(
      flags.job, flags.resolved ? JobInputs::kTokenizer : JobInputs::kIgnore, context);
  if (!job) return;
  const JobSpec& spec = flags.resolved ? job->spec : job->given;
  if (flags.format == "json") {
    context.out << WriteJson(spec);
  } else if (flags.format == "textproto") {
    context.out << WriteTextproto(spec);
  } else {
    context.out << (flags.resolved ? WriteYaml(spec, job->origins) : WriteYaml(spec));
  }
}

void RegisterShow(CLI::App& config, VerbContext& context) {
  CLI::App* verb = config.add_subcommand("show", "Print the job that a job file amounts to");
  verb->footer(
      "Without --resolved: what file, environment and --set say. With it: every value, and in\n"
      "YAML where each came from.\n\n"
      "Examples:\n"
      "  moesaic config show -f job.yaml --resolved\n"
      "  MOESAIC_TRAIN__STEPS=10 moesaic config show -f job.yaml -o json");
  auto flags = std::make_shared<ShowFlags>();
  AddJobFlags(verb, &flags->job);
  verb->add_flag("--resolved", flags->resolved, "Fill in defaults and derived values");
  verb->add_option("-o,--output", flags->format, "yaml, textproto or json")
      ->check(CLI::IsMember({"yaml", "textproto", "json"}))
      ->capture_default_str();
  verb->callback([flags, &context] { Show(*flags, context); });
}

}  // namespace

void RegisterConfig(CLI::App& program, VerbContext& context) {
  CLI::App* verb = program.add_subcommand("config", "Check a job file, or show what it means");
  verb->require_subcommand(1);
  verb->footer("Example:\n  moesaic config check -f configs/quickstart.yaml");
  RegisterCheck(*verb, context);
  RegisterShow(*verb, context);
}

}  // namespace moesaic
