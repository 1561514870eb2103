// TensorFolder: the parameters of a model in a Hugging Face folder: config.json, and
// model.safetensors, or shards with model.safetensors.index.json. Dtypes F32, BF16 and F16.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "trainer/checkpoint/convert/architecture.h"
#include "trainer/checkpoint/convert/parameter_reader.h"
#include "trainer/checkpoint/format/file_system.h"
#include "trainer/checkpoint/format/safetensors.h"

namespace moesaic {

// Holds no tensor in memory. Links are not followed: a Hugging Face cache folder, which is made of
// links, must be downloaded to a plain folder first.
class TensorFolder : public ParameterReader {
 public:
  // `job_name` is that of the job that model() gets. NotFound: a file is missing. FailedPrecondition:
  // config.json says something that has no counterpart here, or tensors are missing, of another
  // shape, or left over. DataLoss: a file is damaged.
  static absl::StatusOr<std::unique_ptr<TensorFolder>> Open(const Folder& folder,
                                                            const std::string& job_name);

  const DescribedModel& model() const { return model_; }
  const ParameterCatalog& catalog() const { return catalog_; }  // of that model

  absl::Status Read(ObjectKind kind, const ParameterSpec& parameter, uint64_t begin,
                    std::span<float> values) override;

 private:
  // One tensor of the folder.
  struct Tensor {
    std::shared_ptr<const ReadableFile> file;
    SafetensorsTensor at;
  };

  TensorFolder(DescribedModel model, ParameterCatalog catalog)
      : model_(std::move(model)), catalog_(std::move(catalog)) {}

  absl::Status AddFiles(const Folder& folder);
  absl::Status AddIndexed(const Folder& folder, absl::string_view index);
  absl::Status AddFile(const Folder& folder, const std::string& name);
  absl::Status FindParts();
  absl::Status CheckNothingIsLeft() const;
  absl::StatusOr<std::vector<const Tensor*>> PartsOf(const ParameterSpec& parameter) const;

  DescribedModel model_;
  ParameterCatalog catalog_;
  std::map<std::string, Tensor> tensors_;
  std::map<std::string, std::vector<const Tensor*>> parts_;  // by parameter, rows in order
};

}  // namespace moesaic
