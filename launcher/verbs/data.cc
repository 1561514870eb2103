#include "launcher/verbs/data.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "launcher/verbs/byte_progress.h"
#include "trainer/data/corpus_preparation.h"
#include "trainer/data/tokenizer.h"

namespace moesaic {
namespace {

using nlohmann::ordered_json;

struct TokenizerFlags {
  TokenizerTraining training;
  std::string format = "text";
};

struct PrepareFlags {
  CorpusPreparation preparation;
  std::string tokenizer;
  std::string separator = "line";
  bool no_end = false;
  std::string format = "text";
};

void PrintJson(const ordered_json& object, VerbContext& context) {
  // Paths may be any bytes.
  context.out << object.dump(-1, ' ', false, ordered_json::error_handler_t::replace) << std::endl;
}

void AddFormat(CLI::App* verb, std::string* format) {
  verb->add_option("-o", *format, "How the summary is written")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
}

void AddInputs(CLI::App* verb, std::vector<std::string>* inputs) {
  verb->add_option("--input", *inputs, "Text files, UTF-8")->required()->check(CLI::ExistingFile);
}

void RunTokenizer(const TokenizerFlags& flags, VerbContext& context) {
  const absl::Time start = Clock::System().Now();
  const auto summary = TrainTokenizer(flags.training);
  if (!summary.ok()) return Fail(summary.status(), context);
  const double seconds = absl::ToDoubleSeconds(Clock::System().Now() - start);
  if (flags.format == "json") {
    return PrintJson({{"tokenizer", flags.training.output},
                      {"vocabulary", summary->vocabulary},
                      {"input_bytes", summary->input_bytes},
                      {"sampled_bytes", summary->sampled_bytes},
                      {"seconds", seconds}},
                     context);
  }
  context.out << fmt::format("{}: {} tokens, trained on {} of {} in {:.1f} s\n",
                             flags.training.output, summary->vocabulary,
                             BytesForPeople(summary->sampled_bytes),
                             BytesForPeople(summary->input_bytes), seconds);
}

ordered_json PartJson(const std::string& path, const CorpusPart& part) {
  return {{"path", path},
          {"documents", part.documents},
          {"tokens", part.tokens},
          {"unigram_entropy", part.unigram_entropy}};
}

void PrintPart(const char* name, const std::string& path, const CorpusPart& part,
               VerbContext& context) {
  context.out << fmt::format(
      "{:<10} {}.bin: {} documents, {} tokens, unigram entropy {:.4f} nats\n", name, path,
      part.documents, part.tokens, part.unigram_entropy);
}

void PrintSummary(const PrepareFlags& flags, const CorpusSummary& summary, double seconds,
                  VerbContext& context) {
  const CorpusPreparation& preparation = flags.preparation;
  const bool validates = !preparation.validation_output.empty();
  if (flags.format == "json") {
    ordered_json object = {{"tokenizer", flags.tokenizer},
                           {"input_bytes", summary.input_bytes},
                           {"seconds", seconds},
                           {"train", PartJson(preparation.output, summary.train)}};
    if (validates) {
      object["validation"] = PartJson(preparation.validation_output, summary.validation);
    }
    return PrintJson(object, context);
  }
  context.out << fmt::format("{} of text in {:.1f} s ({:.1f} MB/s)\n",
                             BytesForPeople(summary.input_bytes), seconds,
                             static_cast<double>(summary.input_bytes) / 1e6 / seconds);
  PrintPart("train", preparation.output, summary.train, context);
  if (validates) {
    PrintPart("validation", preparation.validation_output, summary.validation, context);
  }
}

absl::StatusOr<CorpusSummary> PrepareWithProgress(const CorpusPreparation& preparation,
                                                  const Tokenizer& tokenizer,
                                                  VerbContext& context) {
  ByteProgress progress("encoded", ::isatty(STDERR_FILENO) != 0, context.err, Clock::System());
  return PrepareCorpus(preparation, tokenizer,
                       [&](int64_t done, int64_t total) { progress.Update(done, total); });
}

void RunPrepare(PrepareFlags flags, VerbContext& context) {
  auto separator = DocumentSeparator::Parse(flags.separator);
  if (!separator.ok()) return Fail(separator.status(), context);
  flags.preparation.separator = *std::move(separator);
  flags.preparation.end_documents = !flags.no_end;
  const auto tokenizer = Tokenizer::Load(flags.tokenizer);
  if (!tokenizer.ok()) return Fail(tokenizer.status(), context);

  const absl::Time start = Clock::System().Now();
  const auto summary = PrepareWithProgress(flags.preparation, *tokenizer, context);
  if (!summary.ok()) return Fail(summary.status(), context);
  PrintSummary(flags, *summary, absl::ToDoubleSeconds(Clock::System().Now() - start), context);
}

void RegisterTokenizer(CLI::App* data, VerbContext& context) {
  CLI::App* verb = data->add_subcommand("tokenizer", "Train a tokenizer on text files");
  verb->footer(
      "Makes a byte-pair SentencePiece model that gives back any text exactly.\n"
      "Example:\n"
      "  moesaic data tokenizer --input text/*.txt --vocabulary 4096 --output corpus/bpe.model");
  auto flags = std::make_shared<TokenizerFlags>();
  TokenizerTraining& training = flags->training;
  AddInputs(verb, &training.inputs);
  verb->add_option("--vocabulary", training.vocabulary, "Tokens of the model, 260 at the least")
      ->check(CLI::Range(int64_t{260}, int64_t{4194304}))
      ->capture_default_str();
  verb->add_option("--output", training.output, "The model file")->required();
  verb->add_option("--sample-bytes", training.sample_bytes,
                   "Bytes to train on at most; longer inputs are sampled by line. Memory is many "
                   "times that")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddFormat(verb, &flags->format);
  verb->callback([flags, &context] { RunTokenizer(*flags, context); });
}

void RegisterPrepare(CLI::App* data, VerbContext& context) {
  CLI::App* verb =
      data->add_subcommand("prepare", "Turn text files into the token files that jobs read");
  verb->footer(
      "Writes PREFIX.bin and PREFIX.idx, the format of Megatron's indexed datasets.\n"
      "Example:\n"
      "  moesaic data prepare --tokenizer corpus/bpe.model --input text/*.txt \\\n"
      "    --document-separator blank-line --output corpus/train \\\n"
      "    --validation-output corpus/validation");
  auto flags = std::make_shared<PrepareFlags>();
  CorpusPreparation& preparation = flags->preparation;
  preparation.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  verb->add_option("--tokenizer", flags->tokenizer, "A SentencePiece model")
      ->required()
      ->check(CLI::ExistingFile);
  AddInputs(verb, &preparation.inputs);
  verb->add_option("--output", preparation.output, "Prefix of the training files")->required();
  CLI::Option* validation = verb->add_option("--validation-output", preparation.validation_output,
                                             "Prefix of the validation files");
  verb->add_option("--validation-share", preparation.validation_share,
                   "Share of the documents that go to validation, chosen by their hash")
      ->needs(validation)
      ->capture_default_str();
  verb->add_option("--document-separator", flags->separator,
                   "What stands between documents: line, blank-line, file (each file is one "
                   "document), or a text with \\n, \\r, \\t, \\\\")
      ->capture_default_str();
  verb->add_flag("--no-end-of-document", flags->no_end,
                 "Do not end documents with the tokenizer's </s>");
  verb->add_option("--threads", preparation.threads, "Threads that encode")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  AddFormat(verb, &flags->format);
  verb->callback([flags, &context] { RunPrepare(*flags, context); });
}

}  // namespace

void RegisterData(CLI::App& program, VerbContext& context) {
  CLI::App* data = program.add_subcommand("data", "Prepare training data");
  data->require_subcommand(1);
  RegisterTokenizer(data, context);
  RegisterPrepare(data, context);
}

}  // namespace moesaic
