#include "launcher/worker/generate.h"

#include <fmt/format.h>

#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "launcher/worker/outcome.h"
#include "trainer/generate/generator.h"

namespace moesaic {
namespace {

struct GenerateFlags {
  std::string checkpoint;
  std::string tokenizer;
  std::string output = "text";
  int threads = 0;
  GenerateRequest request;
};

int RunGenerate(const GenerateFlags& flags) {
  auto generator = Generator::Open(flags.checkpoint, flags.tokenizer, ThreadsOrAll(flags.threads));
  if (!generator.ok()) return SayFailure(generator.status());
  const bool json = flags.output == "json";
  std::string text;
  if (!json) std::cout << flags.request.prompt;
  const auto summary = (*generator)->Generate(flags.request, [&](absl::string_view piece) {
    if (json) {
      text.append(piece.data(), piece.size());
    } else {
      std::cout << std::string(piece) << std::flush;
    }
  });
  if (!summary.ok()) return SayFailure(summary.status());
  if (json) {
    nlohmann::ordered_json line = {{"prompt", flags.request.prompt},
                                   {"text", text},
                                   {"prompt_tokens", summary->prompt_tokens},
                                   {"tokens", summary->new_tokens},
                                   {"seconds", summary->seconds}};
    std::cout << line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
  } else {
    std::cout << "\n";
    std::cerr << fmt::format("{} tokens in {:.1f} s\n", summary->new_tokens, summary->seconds);
  }
  return kExitOk;
}

}  // namespace

void RegisterGenerate(CLI::App& program, int& exit_code) {
  CLI::App* verb = program.add_subcommand("generate", "Write text from a checkpoint");
  auto flags = std::make_shared<GenerateFlags>();
  SamplingOptions& sampling = flags->request.sampling;
  verb->add_option("--checkpoint", flags->checkpoint,
                   "A step folder, or a folder of steps (the newest)")->required();
  verb->add_option("--prompt", flags->request.prompt,
                   "What the text goes on from")->required();
  verb->add_option("--tokens", flags->request.tokens,
                   "New tokens at most (100)")->check(CLI::Range(1, 1000000));
  verb->add_option("--temperature", sampling.temperature,
                   "0: always the likeliest token; 1: as the model says (1)")
      ->check(CLI::Range(0.0, 100.0));
  verb->add_option("--top-p", sampling.top_p,
                   "Choose among the likeliest tokens that reach this probability (1)")
      ->check(CLI::Range(0.0, 1.0));
  verb->add_option("--seed", sampling.seed,
                   "Same seed, same text (1)");
  verb->add_option("--tokenizer", flags->tokenizer,
                   "A SentencePiece model (the one stored with the checkpoint)");
  verb->add_option("--threads", flags->threads,
                   "Computing threads (0: all cores)")->check(CLI::Range(0, 4096));
  verb->add_option("-o,--output", flags->output,
                   "text, or one JSON object")->check(CLI::IsMember({"text", "json"}));
  verb->footer(
      "Example:\n  moesaic generate --checkpoint runs/quickstart/checkpoints --prompt 'In the "
      "beginning'");
  verb->callback([flags, &exit_code] { exit_code = RunGenerate(*flags); });
}

}  // namespace moesaic
