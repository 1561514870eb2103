#include "trainer/checkpoint/convert/import.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/convert/tensor_folder.h"

namespace moesaic {
namespace {

ShardSource SourceOf(const ParameterSpec& parameter, TensorFolder* tensors) {
  ShardSource source = ShardOf(MASTER, parameter);
  source.produce = [parameter, tensors](const ByteSink& sink) {
    return StreamChunks(static_cast<uint64_t>(parameter.elements()), sink,
                        [&](uint64_t begin, std::span<float> values) {
                          return tensors->Read(MASTER, parameter, begin, values);
                        });
  };
  return source;
}

}  // namespace

absl::StatusOr<CommittedStep> ImportFolder(FileSystem* files, const FolderImport& import) {
  absl::StatusOr<std::unique_ptr<Folder>> from = files->OpenFolder(import.from);
  if (!from.ok()) return from.status();
  absl::StatusOr<std::unique_ptr<TensorFolder>> tensors = TensorFolder::Open(**from, "import");
  if (!tensors.ok()) return tensors.status();
  FirstStep step;
  step.to = import.to;
  step.tokenizer = import.tokenizer;
  step.binary = import.binary;
  step.origin =
      absl::StrCat("import of a Hugging Face folder (", (*tensors)->model().architecture->name, ")");
  step.created = import.created;
  step.spec = (*tensors)->model().spec;
  for (const ParameterSpec& parameter : (*tensors)->catalog().parameters()) {
    step.sources.push_back(SourceOf(parameter, tensors->get()));
  }
  step.progress = import.progress;
  return CommitFirstStep(files, std::move(step));
}

}  // namespace moesaic
