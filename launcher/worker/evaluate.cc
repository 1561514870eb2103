#include "launcher/worker/evaluate.h"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "launcher/worker/outcome.h"
#include "trainer/loop/evaluate.h"

namespace moesaic {
namespace {

struct EvaluateFlags {
  EvaluateRequest request;
  std::string output = "text";
};

int RunEvaluate(EvaluateFlags flags) {
  flags.request.threads = ThreadsOrAll(flags.request.threads);
  const auto result = Evaluate(flags.request);
  if (!result.ok()) return SayFailure(result.status());
  if (flags.output == "json") {
    const nlohmann::ordered_json line = {{"checkpoint", flags.request.checkpoint},
                                         {"step", result->step},
                                         {"validation_loss", result->loss},
                                         {"perplexity", result->perplexity},
                                         {"samples", result->samples},
                                         {"seconds", result->seconds}};
    std::cout << line.dump() << "\n";
  } else {
    std::cout << fmt::format(
        "step {}: validation loss {:.4f}, perplexity {:.2f}, over {} samples in {:.1f} s\n",
        result->step, result->loss, result->perplexity, result->samples, result->seconds);
  }
  return kExitOk;
}

}  // namespace

void RegisterEvaluate(CLI::App& program, int& exit_code) {
  CLI::App* verb = program.add_subcommand("eval", "Validation loss and perplexity of a checkpoint");
  auto flags = std::make_shared<EvaluateFlags>();
  flags->request.threads = 0;
  verb->add_option("--checkpoint", flags->request.checkpoint,
                   "A step folder, or a folder of steps (the newest)")->required();
  verb->add_option("--data", flags->request.data,
                   "Token files (path without .bin) instead of the job's validation data");
  verb->add_option("--samples", flags->request.samples,
                   "Samples from their start (0: all)");
  verb->add_option("--threads", flags->request.threads,
                   "Computing threads (0: all cores)")->check(CLI::Range(0, 4096));
  verb->add_option("-o,--output", flags->output,
                   "text, or one JSON object")->check(CLI::IsMember({"text", "json"}));
  verb->footer("Example:\n  moesaic eval --checkpoint runs/quickstart/checkpoints -o json");
  verb->callback([flags, &exit_code] { exit_code = RunEvaluate(*flags); });
}

}  // namespace moesaic
