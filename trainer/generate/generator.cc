#include "trainer/generate/generator.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/data/tokenizer.h"
#include "trainer/loop/stored_state.h"
#include "trainer/model/decode.h"
#include "trainer/optim/parameter_store.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";  // what half a character decodes to

bool EndsInHalfACharacter(absl::string_view text) {
  return text.size() >= kReplacement.size() &&
         text.substr(text.size() - kReplacement.size()) == kReplacement;
}

std::vector<int> ExpertsByLayer(const ParameterCatalog& catalog) {
  std::vector<int> experts;
  for (int layer = 0; layer < catalog.layers(); ++layer) experts.push_back(catalog.experts(layer));
  return experts;
}

class GeneratorImpl : public Generator {
 public:
  GeneratorImpl(JobSpec spec, ParameterCatalog catalog, Tokenizer tokenizer)
      : spec_(std::move(spec)),
        catalog_(std::move(catalog)),
        tokenizer_(std::move(tokenizer)),
        mesh_(Mesh::Flat(1, 1)),
        placement_(ExpertPlacement::Even(mesh_, ExpertsByLayer(catalog_))),
        compute_(spec_.train().precision() == BF16 ? at::kBFloat16 : at::kFloat),
        store_(catalog_, mesh_, placement_, {.rank = 0, .compute = compute_, .moments = false}) {}

  absl::Status Restore(const std::string& checkpoint, int threads) {
    absl::Status status = RestoreWeights(
        checkpoint, {.catalog = &catalog_, .store = &store_, .threads = threads});
    if (!status.ok()) return status;
    for (const ParameterId id : store_.owned()) store_.RefreshCompute(id);
    return absl::OkStatus();
  }

  absl::StatusOr<GenerateSummary> Generate(
      const GenerateRequest& request,
      const std::function<void(absl::string_view piece)>& piece) override;

 private:
  Transformer MakeModel(int64_t positions) const {
    return Transformer({.spec = &spec_,
                        .catalog = &catalog_,
                        .recipe = RecipeAt(spec_, 0),
                        .parallel = {.mesh = &mesh_,
                                     .placement = &placement_,
                                     .rank = 0,
                                     .exchange = nullptr},
                        .positions = positions});
  }

  const JobSpec spec_;
  const ParameterCatalog catalog_;
  const Tokenizer tokenizer_;
  const Mesh mesh_;
  const ExpertPlacement placement_;
  const at::ScalarType compute_;
  ParameterStore store_;
};

absl::StatusOr<GenerateSummary> GeneratorImpl::Generate(
    const GenerateRequest& request, const std::function<void(absl::string_view piece)>& piece) {
  const auto begin = std::chrono::steady_clock::now();
  const std::vector<int32_t> prompt = tokenizer_.Encode(request.prompt);
  if (prompt.empty()) return absl::InvalidArgumentError("[generate] the prompt is empty");
  const auto prompt_tokens = static_cast<int64_t>(prompt.size());
  const int64_t capacity =
      std::max<int64_t>(spec_.model().sequence(), prompt_tokens + request.tokens);
  const Transformer model = MakeModel(capacity);
  Decoder decoder(model, store_, 1, capacity, compute_);
  TokenSampler sampler(request.sampling);

  std::vector<int32_t> generated;
  std::string shown;
  at::Tensor next = at::tensor(at::ArrayRef<int32_t>(prompt), at::kLong).view({1, -1});
  while (static_cast<int64_t>(generated.size()) < request.tokens) {
    const at::Tensor logits = decoder.Append(next).contiguous();
    const auto token = static_cast<int32_t>(
        sampler.Sample({logits.const_data_ptr<float>(), static_cast<size_t>(logits.numel())},
                       static_cast<uint64_t>(decoder.length())));
    if (token == tokenizer_.end_of_document()) break;
    generated.push_back(token);
    auto text = tokenizer_.Decode(generated);
    if (!text.ok()) return text.status();
    if (!EndsInHalfACharacter(*text) && text->size() > shown.size()) {
      piece(absl::string_view(*text).substr(shown.size()));
      shown = *std::move(text);
    }
    next = at::full({1, 1}, token, at::kLong);
  }
  return GenerateSummary{
      .prompt_tokens = prompt_tokens,
      .new_tokens = static_cast<int64_t>(generated.size()),
      .seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count()};
}

absl::StatusOr<Tokenizer> OpenTokenizer(const StepFolder& step, const std::string& given) {
  if (!given.empty()) return Tokenizer::Load(given);
  const std::string stored = absl::StrCat(step.path, "/", kTokenizerName);
  if (!std::filesystem::exists(stored)) {
    return absl::FailedPreconditionError(absl::StrCat(
        "[generate] ", step.path, " holds no tokenizer: name one with --tokenizer"));
  }
  return Tokenizer::Load(stored);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Generator>> Generator::Open(const std::string& checkpoint,
                                                           const std::string& tokenizer,
                                                           int threads) {
  at::set_num_threads(threads);
  const auto step = OpenCheckpoint(&FileSystem::System(), checkpoint);
  if (!step.ok()) return step.status();
  const auto manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return manifest.status();
  auto catalog = ParameterCatalog::Build(manifest->spec(),
                                         ExpertsAt(manifest->spec(), manifest->state().step()));
  if (!catalog.ok()) return catalog.status();
  auto words = OpenTokenizer(*step, tokenizer);
  if (!words.ok()) return words.status();
  if (words->vocabulary() > manifest->spec().model().vocabulary()) {
    return absl::FailedPreconditionError(
        absl::StrCat("[generate] the tokenizer has ", words->vocabulary(),
                     " tokens but the model only ", manifest->spec().model().vocabulary()));
  }
  auto generator = std::make_unique<GeneratorImpl>(manifest->spec(), *std::move(catalog),
                                                   *std::move(words));
  if (absl::Status status = generator->Restore(step->path, threads); !status.ok()) return status;
  return generator;
}

}  // namespace moesaic
