#include "trainer/checkpoint/format/verify.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job_spec.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/coverage.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/safetensors.h"

namespace moesaic {
namespace {

constexpr size_t kChunkBytes = 4 << 20;
constexpr size_t kMaxNamed = 3;
constexpr size_t kMaxReported = 5;

struct ShardOfFile {
  const StoredObject* object;
  const Shard* shard;
};

std::string Describe(const ShardOfFile& part) {
  const std::string label = ObjectLabel(part.object->kind(), part.object->name());
  if (IsWhole(part.shard->box(), AsShape(part.object->shape()))) return label;
  return absl::StrCat(label, " ", DescribeBox(part.shard->box()));
}

class StepVerifier {
 public:
  StepVerifier(const Folder& step, VerifyDepth depth) : step_(step), depth_(depth) {}

  VerifyReport Run() {
    absl::StatusOr<Manifest> manifest = ReadManifest(step_);
    if (!manifest.ok()) {
      AddStatus(manifest.status());
      return std::move(report_);
    }
    manifest_ = *std::move(manifest);
    Count();
    CheckStep();
    CheckObjects();
    std::vector<std::vector<ShardOfFile>> shards(manifest_.files_size());
    for (const StoredObject& object : manifest_.objects()) {
      for (const Shard& shard : object.shards()) shards[shard.file()].push_back({&object, &shard});
    }
    for (int i = 0; i < manifest_.files_size(); ++i) CheckFile(manifest_.files(i), shards[i]);
    CheckListing();
    return std::move(report_);
  }

 private:
  void Add(std::string problem) { report_.problems.push_back(std::move(problem)); }

  void AddStatus(const absl::Status& status) {
    report_.unreadable |= absl::IsUnavailable(status) || absl::IsPermissionDenied(status) ||
                          absl::IsResourceExhausted(status);
    Add(std::string(status.message()));
  }

  // A problem of a file as a whole, with the objects in it.
  void AddFile(const StoredFile& file, const std::vector<ShardOfFile>& shards,
               absl::string_view problem) {
    std::vector<std::string> names;
    for (size_t i = 0; i < std::min(shards.size(), kMaxNamed); ++i) {
      names.push_back(Describe(shards[i]));
    }
    if (shards.size() > kMaxNamed) {
      names.push_back(absl::StrCat(shards.size() - kMaxNamed, " more"));
    }
    Add(absl::StrCat("file ", file.name(), ": ", problem,
                     names.empty() ? "" : absl::StrCat(" (it holds ", absl::StrJoin(names, ", "), ")")));
  }

  void Count() {
    report_.step = manifest_.state().step();
    report_.files = static_cast<uint64_t>(manifest_.files_size());
    report_.objects = static_cast<uint64_t>(manifest_.objects_size());
    for (const StoredFile& file : manifest_.files()) report_.bytes += file.bytes();
    for (const StoredObject& object : manifest_.objects()) {
      report_.shards += static_cast<uint64_t>(object.shards_size());
    }
  }

  void CheckStep() {
    const std::string& path = step_.path();
    const std::optional<uint64_t> named = ParseStepFolderName(path.substr(path.rfind('/') + 1));
    if (named && *named != manifest_.state().step()) {
      Add(absl::StrCat("the folder is named after step ", *named, ", the manifest is of step ",
                       manifest_.state().step()));
    }
    for (const StoredObject& object : manifest_.objects()) {
      if (object.step() != manifest_.state().step()) {
        Add(absl::StrCat("object ", ObjectLabel(object.kind(), object.name()), " is of step ",
                         object.step(), " and not ", manifest_.state().step()));
      }
    }
  }

  void CheckObjects() {
    absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(manifest_.spec());
    if (!catalog.ok()) {
      Add(absl::StrCat("the job in the manifest: ", catalog.status().message()));
      return;
    }
    const auto hash = catalog->Hash();
    if (!std::ranges::equal(manifest_.catalog_hash(), hash, {}, [](char c) { return uint8_t(c); })) {
      Add("the catalog hash in the manifest is not the one of its job");
    }
    const std::vector<ExpectedObject> expected =
        ExpectedObjects(*catalog, manifest_.spec(), manifest_.weights_only());
    for (std::string& problem : FindCoverageProblems(expected, manifest_.objects())) {
      Add(std::move(problem));
    }
  }

  void CheckFile(const StoredFile& stored, const std::vector<ShardOfFile>& shards) {
    absl::StatusOr<std::unique_ptr<ReadableFile>> file = step_.Open(stored.name());
    if (absl::IsNotFound(file.status())) return AddFile(stored, shards, "it is missing");
    if (!file.ok()) return AddStatus(file.status());
    if ((*file)->size() != stored.bytes()) {
      return AddFile(stored, shards, absl::StrCat("it has ", (*file)->size(), " bytes and not ",
                                                  stored.bytes()));
    }
    if (!shards.empty() && !CheckHeader(stored, **file, shards)) return;
    if (depth_ == VerifyDepth::kContent) CheckContent(stored, **file, shards);
  }

  bool CheckHeader(const StoredFile& stored, const ReadableFile& file,
                   const std::vector<ShardOfFile>& shards) {
    absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(file);
    if (!header.ok()) {
      report_.unreadable |= absl::IsUnavailable(header.status());
      AddFile(stored, shards, header.status().message());
      return false;
    }
    bool agrees = header->tensors.size() == shards.size();
    if (!agrees) {
      AddFile(stored, shards, absl::StrCat("it has ", header->tensors.size(), " tensors and not ",
                                           shards.size()));
    }
    for (const ShardOfFile& part : shards) {
      const SafetensorsTensor* tensor =
          FindTensor(*header, ShardTensorName(*part.object, part.shard->box()), *part.shard);
      if (tensor == nullptr || tensor->bytes != part.shard->bytes() ||
          tensor->element != part.object->element() ||
          !std::ranges::equal(tensor->shape, AsShape(part.shard->box().length()))) {
        Add(absl::StrCat("file ", stored.name(), ": it does not hold ", Describe(part),
                         " where the manifest says"));
        agrees = false;
      }
    }
    return agrees;
  }

  // Of that name and place; the tensors are sorted by place.
  static const SafetensorsTensor* FindTensor(const SafetensorsHeader& header,
                                             const std::string& name, const Shard& shard) {
    auto found = std::ranges::lower_bound(header.tensors, shard.begin(), {},
                                          &SafetensorsTensor::begin);
    while (found != header.tensors.end() && found->begin == shard.begin() && found->name != name) {
      ++found;
    }
    return found != header.tensors.end() && found->begin == shard.begin() ? &*found : nullptr;
  }

  void CheckContent(const StoredFile& stored, const ReadableFile& file,
                    std::vector<ShardOfFile> shards) {
    std::ranges::sort(shards, {}, [](const ShardOfFile& part) { return part.shard->begin(); });
    Xxh3Stream whole;
    uint64_t at = 0;
    bool damaged = false;
    for (const ShardOfFile& part : shards) {
      if (part.shard->begin() < at) continue;  // reported as an overlap of its object
      absl::StatusOr<std::string> before = Hash(file, at, part.shard->begin(), &whole);
      absl::StatusOr<std::string> shard =
          Hash(file, part.shard->begin(), part.shard->begin() + part.shard->bytes(), &whole);
      if (!before.ok() || !shard.ok()) return AddStatus(before.ok() ? shard.status() : before.status());
      if (*shard != part.shard->xxh3()) {
        damaged = true;
        Add(absl::StrCat("file ", stored.name(), ": the bytes of ", Describe(part),
                         " do not match their checksum"));
      }
      at = part.shard->begin() + part.shard->bytes();
    }
    absl::StatusOr<std::string> rest = Hash(file, at, stored.bytes(), &whole);
    if (!rest.ok()) return AddStatus(rest.status());
    if (!damaged && whole.Digest() != stored.xxh3()) {
      AddFile(stored, shards, "its checksum does not match");
    }
  }

  absl::StatusOr<std::string> Hash(const ReadableFile& file, uint64_t begin, uint64_t end,
                                   Xxh3Stream* whole) {
    Xxh3Stream hash;
    while (begin < end) {
      buffer_.resize(std::min<uint64_t>(kChunkBytes, end - begin));
      if (absl::Status read = file.ReadAt(begin, buffer_); !read.ok()) return read;
      hash.Update(buffer_);
      whole->Update(buffer_);
      begin += buffer_.size();
    }
    return hash.Digest();
  }

  void CheckListing() {
    absl::StatusOr<std::vector<FolderEntry>> entries = step_.List();
    if (!entries.ok()) return AddStatus(entries.status());
    std::set<absl::string_view> known = {kManifestName};
    for (const StoredFile& file : manifest_.files()) known.insert(file.name());
    for (const FolderEntry& entry : *entries) {
      if (!known.contains(entry.name)) {
        Add(absl::StrCat("file ", entry.name, ": the manifest does not list it"));
      }
    }
  }

  const Folder& step_;
  VerifyDepth depth_;
  Manifest manifest_;
  VerifyReport report_;
  std::vector<std::byte> buffer_;
};

}  // namespace

VerifyReport VerifyStep(const Folder& step, VerifyDepth depth) {
  return StepVerifier(step, depth).Run();
}

absl::Status VerifyStatus(const Folder& step, const VerifyReport& report) {
  if (report.ok()) return absl::OkStatus();
  std::vector<std::string> shown = report.problems;
  const size_t more = shown.size() - std::min(shown.size(), kMaxReported);
  shown.resize(shown.size() - more);
  return absl::Status(
      report.unreadable ? absl::StatusCode::kUnavailable : absl::StatusCode::kDataLoss,
      absl::StrCat(step.path(), ": ", absl::StrJoin(shown, "; "),
                   more > 0 ? absl::StrCat("; and ", more, " more") : ""));
}

}  // namespace moesaic
