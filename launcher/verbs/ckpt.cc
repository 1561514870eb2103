#include "launcher/verbs/ckpt.h"

namespace moesaic {

void RegisterCkpt(CLI::App& program, VerbContext& context) {
  CLI::App* verb = program.add_subcommand("ckpt", "List, check, keep and convert checkpoints");
  verb->require_subcommand(1);
  verb->footer("Example:\n  moesaic ckpt verify --all runs/quickstart/checkpoints");
  RegisterCkptList(*verb, context);
  RegisterCkptShow(*verb, context);
  RegisterCkptCheck(*verb, context);
  RegisterCkptDiff(*verb, context);
  RegisterCkptKeep(*verb, context);
  RegisterCkptConvert(*verb, context);
  RegisterCkptUpcycle(*verb, context);
  RegisterCkptReshard(*verb, context);
}

}  // namespace moesaic
