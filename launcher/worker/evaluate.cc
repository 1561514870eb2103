#include "launcher/worker/evaluate.h"

#include <fmt/format.h>

#include <algorithm>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>

#include "launcher/verbs/table.h"
#include "launcher/worker/outcome.h"
#include "trainer/loop/evaluate.h"

namespace moesaic {
namespace {

struct EvaluateFlags {
  EvaluateRequest request;
  std::string output = "text";
};

bool HasRouting(const Evaluation& evaluation) { return !evaluation.routing.routing.layers.empty(); }

// "5 (1.82)": expert 5, with 1.82 times the mean load.
std::string LoadText(std::span<const double> loads, std::span<const double>::iterator expert) {
  const double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  const double share = sum > 0 ? *expert * static_cast<double>(loads.size()) / sum : 0;
  return fmt::format("{} ({:.2f})", expert - loads.begin(), share);
}

void PrintRouting(const RoutingMetrics& routing) {
  Table table({"layer", "busiest (load/mean)", "idlest", "entropy", "experts a token", "null"});
  for (const LayerRoutingMetrics& layer : routing.layers) {
    const std::span<const double> loads = layer.loads;
    table.Add({std::to_string(layer.layer), LoadText(loads, std::ranges::max_element(loads)),
               LoadText(loads, std::ranges::min_element(loads)),
               fmt::format("{:.3f}", layer.entropy), fmt::format("{:.2f}", layer.active),
               fmt::format("{:.1f} %", 100 * layer.null)});
  }
  table.Print(std::cout);
}

int RunEvaluate(EvaluateFlags flags) {
  flags.request.threads = ThreadsOrAll(flags.request.threads);
  const auto result = Evaluate(flags.request);
  if (!result.ok()) return SayFailure(result.status());
  if (flags.output == "json") {
    nlohmann::ordered_json line = {{"checkpoint", flags.request.checkpoint},
                                   {"step", result->step},
                                   {"validation_loss", result->loss},
                                   {"perplexity", result->perplexity},
                                   {"samples", result->samples},
                                   {"seconds", result->seconds}};
    if (HasRouting(*result)) line["routing"] = ValidationRoutingJson(result->routing);
    std::cout << line.dump() << "\n";
  } else {
    std::cout << fmt::format(
        "step {}: validation loss {:.4f}, perplexity {:.2f}, over {} samples in {:.1f} s\n",
        result->step, result->loss, result->perplexity, result->samples, result->seconds);
    if (HasRouting(*result)) PrintRouting(result->routing.routing);
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
  Ablation& ablation = flags->request.ablation;
  verb->add_option("--skip-best", ablation.skip_best,
                   "Without the so many experts that each token likes best, in each layer")
      ->check(CLI::Range(0, 65536));
  verb->add_option("--active", ablation.active, "Experts a token (0: as trained)")
      ->check(CLI::Range(0, 65536));
  verb->add_flag("!--without-shared", ablation.shared, "Without the shared experts");
  verb->add_option("-o,--output", flags->output,
                   "text, or one JSON object")->check(CLI::IsMember({"text", "json"}));
  verb->footer("Example:\n  moesaic eval --checkpoint runs/quickstart/checkpoints -o json");
  verb->callback([flags, &exit_code] { exit_code = RunEvaluate(*flags); });
}

}  // namespace moesaic
