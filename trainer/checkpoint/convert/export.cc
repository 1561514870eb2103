#include "trainer/checkpoint/convert/export.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/convert/architecture.h"
#include "trainer/checkpoint/convert/parameter_reader.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/durable_file.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/object_reader.h"
#include "trainer/checkpoint/format/safetensors.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxTokenizerBytes = 1ull << 30;

// Some rows of a parameter, as one tensor of the export.
struct Part {
  const StoredObject* object = nullptr;
  uint64_t begin = 0;  // elements of the object
  uint64_t end = 0;
  SafetensorsTensor tensor;
};

struct PartFile {
  std::string name;
  std::vector<Part> parts;
};

// Rows of each tensor that a parameter is cut into.
std::vector<uint64_t> RowsOf(const ParameterSpec& parameter, const ModelSpec& model) {
  const auto rows = static_cast<uint64_t>(parameter.shape[0]);
  if (absl::EndsWith(parameter.name, ".attention.qkv")) {
    const uint64_t q = uint64_t{model.heads()} * model.head_width();
    const uint64_t kv = uint64_t{model.kv_heads()} * model.head_width();
    return {q, kv, kv};
  }
  if (absl::EndsWith(parameter.name, ".gate_up")) return {rows / 2, rows / 2};
  return {rows};
}

absl::Status AddParts(const ParameterSpec& parameter, const ModelSpec& model,
                      const std::vector<std::string>& names, const ObjectReader& reader,
                      ElementKind element, std::vector<Part>* parts) {
  const StoredObject* object = reader.Find(MASTER, parameter.name);
  if (object == nullptr || object->element() != ELEMENT_F32) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint has no fp32 master of ", parameter.name));
  }
  const std::vector<uint64_t> rows = RowsOf(parameter, model);
  const auto row = static_cast<uint64_t>(parameter.elements() / parameter.shape[0]);
  uint64_t at = 0;
  for (size_t i = 0; i < names.size(); ++i) {
    Part& part = parts->emplace_back();
    part.object = object;
    part.begin = at;
    part.end = at += rows[i] * row;
    part.tensor.name = names[i];
    part.tensor.element = element;
    part.tensor.shape.assign(parameter.shape.begin(), parameter.shape.end());
    part.tensor.shape[0] = rows[i];
  }
  return absl::OkStatus();
}

uint64_t BytesOf(const Part& part) {
  return (part.end - part.begin) * ElementBytes(part.tensor.element);
}

std::vector<PartFile> CutIntoFiles(std::vector<Part> parts, uint64_t max_bytes) {
  std::vector<PartFile> files;
  uint64_t bytes = 0;
  for (Part& part : parts) {
    if (files.empty() || BytesOf(part) > max_bytes - std::min(bytes, max_bytes)) {
      files.emplace_back();
      bytes = 0;
    }
    bytes += BytesOf(part);
    files.back().parts.push_back(std::move(part));
  }
  for (size_t i = 0; i < files.size(); ++i) {
    files[i].name = files.size() == 1
                        ? "model.safetensors"
                        : absl::StrFormat("model-%05d-of-%05d.safetensors", i + 1, files.size());
  }
  return files;
}

// To nearest, ties to even; a not-a-number stays one.
uint16_t ToBf16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Writes the files of one export, and removes them again unless it is told that all went well.
class FolderWriter {
 public:
  FolderWriter(Folder* folder, ObjectReader* reader, std::function<void(uint64_t)> wrote)
      : folder_(folder), reader_(reader), wrote_(std::move(wrote)) {}
  ~FolderWriter() {
    if (kept_) return;
    for (const std::string& name : names_) folder_->RemoveFile(name).IgnoreError();
  }

  absl::Status WriteTensors(const PartFile& file) {
    std::vector<SafetensorsTensor> tensors;
    for (const Part& part : file.parts) tensors.push_back(part.tensor);
    absl::StatusOr<std::string> header = LayOutSafetensors(&tensors, {{"format", "pt"}});
    if (!header.ok()) return header.status();
    absl::StatusOr<std::unique_ptr<DurableFileWriter>> writer =
        DurableFileWriter::Create(folder_, file.name);
    if (!writer.ok()) return writer.status();
    if (absl::Status written = (*writer)->Append(*header); !written.ok()) return written;
    for (const Part& part : file.parts) {
      if (absl::Status written = Append(part, writer->get()); !written.ok()) return written;
    }
    absl::Status finished = (*writer)->Finish().status();
    if (finished.ok()) names_.push_back(file.name);
    return finished;
  }

  absl::Status WriteText(const std::string& name, absl::string_view text) {
    absl::Status written = WriteDurableFile(folder_, name, text).status();
    if (written.ok()) names_.push_back(name);
    return written;
  }

  absl::Status Keep() {
    absl::Status synced = folder_->Sync();
    kept_ = synced.ok();
    return synced;
  }

 private:
  absl::Status Append(const Part& part, DurableFileWriter* writer) {
    std::vector<float> values;
    std::vector<uint16_t> halves;
    for (uint64_t at = part.begin; at < part.end; at += values.size()) {
      values.resize(std::min(kChunkElements, part.end - at));
      absl::Status done =
          reader_->Read(*part.object, at, at + values.size(),
                        std::as_writable_bytes(std::span<float>(values)));
      if (!done.ok()) return done;
      if (part.tensor.element == ELEMENT_F32) {
        done = writer->Append(std::as_bytes(std::span<const float>(values)));
      } else {
        halves.resize(values.size());
        std::ranges::transform(values, halves.begin(), ToBf16);
        done = writer->Append(std::as_bytes(std::span<const uint16_t>(halves)));
      }
      if (!done.ok()) return done;
      wrote_(values.size() * ElementBytes(part.tensor.element));
    }
    return absl::OkStatus();
  }

  Folder* folder_;
  ObjectReader* reader_;
  std::function<void(uint64_t)> wrote_;
  std::vector<std::string> names_;
  bool kept_ = false;
};

std::string IndexOf(const std::vector<PartFile>& files, uint64_t bytes) {
  Json map = Json::object();
  for (const PartFile& file : files) {
    for (const Part& part : file.parts) map[part.tensor.name] = file.name;
  }
  return Json{{"metadata", {{"total_size", bytes}}}, {"weight_map", map}}.dump(2) + "\n";
}

absl::StatusOr<std::unique_ptr<Folder>> OpenEmpty(FileSystem* files, const std::string& path) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = files->MakeFolders(path);
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::vector<FolderEntry>> entries = (*folder)->List();
  if (!entries.ok()) return entries.status();
  if (!entries->empty()) {
    return absl::AlreadyExistsError(
        absl::StrCat(path, " is not empty; export into another folder"));
  }
  return folder;
}

absl::Status WriteFolder(const std::vector<PartFile>& parts, const std::string& config,
                         uint64_t bytes, const Folder& step, FolderWriter* writer) {
  for (const PartFile& file : parts) {
    if (absl::Status written = writer->WriteTensors(file); !written.ok()) return written;
  }
  if (parts.size() > 1) {
    absl::Status written =
        writer->WriteText("model.safetensors.index.json", IndexOf(parts, bytes));
    if (!written.ok()) return written;
  }
  absl::StatusOr<std::string> tokenizer = ReadWholeFile(step, kTokenizerName, kMaxTokenizerBytes);
  if (tokenizer.ok()) {
    absl::Status written = writer->WriteText(kTokenizerName, *tokenizer);
    if (!written.ok()) return written;
  } else if (!absl::IsNotFound(tokenizer.status())) {
    return tokenizer.status();
  }
  if (absl::Status written = writer->WriteText("config.json", config); !written.ok()) {
    return written;
  }
  return writer->Keep();
}

}  // namespace

absl::StatusOr<ExportedModel> ExportFolder(FileSystem* files, const FolderExport& request) {
  absl::StatusOr<StepFolder> step = OpenCheckpoint(files, request.from);
  if (!step.ok()) return step.status();
  absl::StatusOr<Manifest> manifest = ReadManifest(*step->folder);
  if (!manifest.ok()) return manifest.status();
  const JobSpec& spec = manifest->spec();
  if (ExpertsAt(spec, manifest->state().step()) == Experts::kOne) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint of step ", manifest->state().step(),
                     " has one expert a layer: export one "
                     "from step ",
                     spec.recipe().experts().spawn().step(), " on"));
  }
  absl::StatusOr<const Architecture*> architecture = ArchitectureOf(spec, request.as);
  if (!architecture.ok()) return architecture.status();
  absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(spec);
  if (!catalog.ok()) return catalog.status();

  ObjectReader reader(step->folder.get(), &*manifest);
  std::vector<Part> parts;
  for (const ParameterSpec& parameter : catalog->parameters()) {
    absl::Status added = AddParts(parameter, spec.model(), TensorsOf(**architecture, parameter),
                                  reader, request.element, &parts);
    if (!added.ok()) return added;
  }
  ExportedModel exported;
  exported.step = manifest->state().step();
  exported.architecture = (*architecture)->name;
  for (const Part& part : parts) exported.bytes += BytesOf(part);
  uint64_t done = 0;
  uint64_t total = exported.bytes;
  for (const StoredFile& file : manifest->files()) total += file.bytes();
  const auto report = [&](uint64_t bytes) {
    if (request.progress) {
      request.progress(static_cast<int64_t>(bytes), static_cast<int64_t>(total));
    }
  };

  absl::StatusOr<std::unique_ptr<Folder>> to = OpenEmpty(files, request.to);
  if (!to.ok()) return to.status();
  VerifyOptions options;
  options.threads = request.threads;
  options.progress = [&](uint64_t verified, uint64_t) { report(done = verified); };
  absl::Status verified = VerifyStatus(*step->folder, VerifyStep(*step->folder, options));
  if (!verified.ok()) return verified;

  const std::vector<PartFile> part_files = CutIntoFiles(std::move(parts), request.max_file_bytes);
  exported.files = static_cast<int>(part_files.size());
  FolderWriter writer(to->get(), &reader, [&](uint64_t bytes) { report(done += bytes); });
  absl::Status written =
      WriteFolder(part_files, WriteConfig(spec, **architecture, request.element), exported.bytes,
                  *step->folder, &writer);
  if (!written.ok()) return written;
  return exported;
}

}  // namespace moesaic
