#include "trainer/checkpoint/format/verify.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mutex.h"
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

// Bytes read so far, over all threads.
class ReadProgress {
 public:
  ReadProgress(const VerifyOptions& options, uint64_t total) : options_(options), total_(total) {}

  // False when the verification is to end.
  bool Add(uint64_t bytes) {
    if (options_.progress) {
      const MutexLock lock(&mutex_);
      done_ += bytes;
      options_.progress(done_, total_);
    }
    return options_.cancelled == nullptr || !options_.cancelled->load(std::memory_order_relaxed);
  }

 private:
  const VerifyOptions& options_;
  const uint64_t total_;
  Mutex mutex_;
  uint64_t done_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Problems of a step or of one file.
struct Findings {
  std::vector<std::string> problems;
  bool unreadable = false;

  void Add(std::string problem) { problems.push_back(std::move(problem)); }

  void AddStatus(const absl::Status& status) {
    unreadable |= absl::IsUnavailable(status) || absl::IsPermissionDenied(status) ||
                  absl::IsResourceExhausted(status) || absl::IsCancelled(status);
    Add(std::string(status.message()));
  }
};

// Checks one file against what the manifest says of it.
class FileVerifier {
 public:
  FileVerifier(const Folder& step, VerifyDepth depth, const StoredFile& stored,
               const std::vector<ShardOfFile>& shards, ReadProgress* progress)
      : step_(step), depth_(depth), stored_(stored), shards_(shards), progress_(progress) {}

  Findings Run() {
    CheckFile();
    return std::move(found_);
  }

 private:
  // A problem of the file as a whole, with the objects in it.
  void AddFile(absl::string_view problem) {
    std::vector<std::string> names;
    for (size_t i = 0; i < std::min(shards_.size(), kMaxNamed); ++i) {
      names.push_back(Describe(shards_[i]));
    }
    if (shards_.size() > kMaxNamed) {
      names.push_back(absl::StrCat(shards_.size() - kMaxNamed, " more"));
    }
    found_.Add(absl::StrCat(
        "file ", stored_.name(), ": ", problem,
        names.empty() ? "" : absl::StrCat(" (it holds ", absl::StrJoin(names, ", "), ")")));
  }

  void CheckFile() {
    absl::StatusOr<std::unique_ptr<ReadableFile>> file = step_.Open(stored_.name());
    if (absl::IsNotFound(file.status())) return AddFile("it is missing");
    if (!file.ok()) return found_.AddStatus(file.status());
    if ((*file)->size() != stored_.bytes()) {
      return AddFile(
          absl::StrCat("it has ", (*file)->size(), " bytes and not ", stored_.bytes()));
    }
    if (!shards_.empty() && !CheckHeader(**file)) return;
    if (depth_ == VerifyDepth::kContent) CheckContent(**file);
  }

  bool CheckHeader(const ReadableFile& file) {
    absl::StatusOr<SafetensorsHeader> header = ReadSafetensorsHeader(file);
    if (!header.ok()) {
      found_.unreadable |= absl::IsUnavailable(header.status());
      AddFile(header.status().message());
      return false;
    }
    bool agrees = header->tensors.size() == shards_.size();
    if (!agrees) {
      AddFile(absl::StrCat("it has ", header->tensors.size(), " tensors and not ",
                           shards_.size()));
    }
    for (const ShardOfFile& part : shards_) {
      const SafetensorsTensor* tensor =
          FindTensor(*header, ShardTensorName(*part.object, part.shard->box()), *part.shard);
      if (tensor == nullptr || tensor->bytes != part.shard->bytes() ||
          tensor->element != part.object->element() ||
          !std::ranges::equal(tensor->shape, AsShape(part.shard->box().length()))) {
        found_.Add(absl::StrCat("file ", stored_.name(), ": it does not hold ", Describe(part),
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

  void CheckContent(const ReadableFile& file) {
    std::vector<ShardOfFile> shards = shards_;
    std::ranges::sort(shards, {}, [](const ShardOfFile& part) { return part.shard->begin(); });
    Xxh3Stream whole;
    uint64_t at = 0;
    bool damaged = false;
    for (const ShardOfFile& part : shards) {
      if (part.shard->begin() < at) continue;  // reported as an overlap of its object
      absl::StatusOr<std::string> before = Hash(file, at, part.shard->begin(), &whole);
      if (!before.ok()) return found_.AddStatus(before.status());
      absl::StatusOr<std::string> shard =
          Hash(file, part.shard->begin(), part.shard->begin() + part.shard->bytes(), &whole);
      if (!shard.ok()) return found_.AddStatus(shard.status());
      if (*shard != part.shard->xxh3()) {
        damaged = true;
        found_.Add(absl::StrCat("file ", stored_.name(), ": the bytes of ", Describe(part),
                                " do not match their checksum"));
      }
      at = part.shard->begin() + part.shard->bytes();
    }
    absl::StatusOr<std::string> rest = Hash(file, at, stored_.bytes(), &whole);
    if (!rest.ok()) return found_.AddStatus(rest.status());
    if (!damaged && whole.Digest() != stored_.xxh3()) AddFile("its checksum does not match");
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
      if (!progress_->Add(buffer_.size())) {
        return absl::CancelledError("the verification was ended early");
      }
    }
    return hash.Digest();
  }

  const Folder& step_;
  const VerifyDepth depth_;
  const StoredFile& stored_;
  const std::vector<ShardOfFile>& shards_;
  ReadProgress* progress_;
  Findings found_;
  std::vector<std::byte> buffer_;
};

class StepVerifier {
 public:
  StepVerifier(const Folder& step, const VerifyOptions& options)
      : step_(step), options_(options) {}

  VerifyReport Run() {
    absl::StatusOr<Manifest> manifest = ReadManifest(step_);
    if (manifest.ok()) {
      manifest_ = *std::move(manifest);
      Count();
      CheckStep();
      CheckObjects();
      CheckFiles();
      CheckListing();
    } else {
      found_.AddStatus(manifest.status());
    }
    report_.problems = std::move(found_.problems);
    report_.unreadable = found_.unreadable;
    return std::move(report_);
  }

 private:
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
      found_.Add(absl::StrCat("the folder is named after step ", *named,
                              ", the manifest is of step ", manifest_.state().step()));
    }
    for (const StoredObject& object : manifest_.objects()) {
      if (object.step() != manifest_.state().step()) {
        found_.Add(absl::StrCat("object ", ObjectLabel(object.kind(), object.name()),
                                " is of step ", object.step(), " and not ",
                                manifest_.state().step()));
      }
    }
  }

  void CheckObjects() {
    absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(
        manifest_.spec(), ExpertsAt(manifest_.spec(), manifest_.state().step()));
    if (!catalog.ok()) {
      found_.Add(absl::StrCat("the job in the manifest: ", catalog.status().message()));
      return;
    }
    const auto hash = catalog->Hash();
    if (!std::ranges::equal(manifest_.catalog_hash(), hash, {},
                            [](char c) { return uint8_t(c); })) {
      found_.Add("the catalog hash in the manifest is not the one of its job");
    }
    const std::vector<ExpectedObject> expected =
        ExpectedObjects(*catalog, manifest_.spec(), manifest_.weights_only());
    for (std::string& problem : FindCoverageProblems(expected, manifest_.objects())) {
      found_.Add(std::move(problem));
    }
  }

  void CheckFiles() {
    std::vector<std::vector<ShardOfFile>> shards(manifest_.files_size());
    for (const StoredObject& object : manifest_.objects()) {
      for (const Shard& shard : object.shards()) shards[shard.file()].push_back({&object, &shard});
    }
    ReadProgress progress(options_, report_.bytes);
    std::vector<Findings> of_file(manifest_.files_size());
    std::vector<int> order(manifest_.files_size());
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, std::ranges::greater(),
                             [&](int i) { return manifest_.files(i).bytes(); });
    std::atomic<size_t> next = 0;
    const auto work = [&] {
      for (size_t k = next++; k < order.size(); k = next++) {
        const int i = order[k];
        of_file[i] =
            FileVerifier(step_, options_.depth, manifest_.files(i), shards[i], &progress).Run();
      }
    };
    std::vector<std::thread> helpers;
    for (int i = 1; i < std::min(options_.threads, manifest_.files_size()); ++i) {
      helpers.emplace_back(work);
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    for (Findings& found : of_file) {
      std::ranges::move(found.problems, std::back_inserter(found_.problems));
      found_.unreadable |= found.unreadable;
    }
  }

  void CheckListing() {
    absl::StatusOr<std::vector<FolderEntry>> entries = step_.List();
    if (!entries.ok()) return found_.AddStatus(entries.status());
    std::set<absl::string_view> known = {kManifestName};
    for (const StoredFile& file : manifest_.files()) known.insert(file.name());
    for (const FolderEntry& entry : *entries) {
      if (!known.contains(entry.name)) {
        found_.Add(absl::StrCat("file ", entry.name, ": the manifest does not list it"));
      }
    }
  }

  const Folder& step_;
  const VerifyOptions& options_;
  Manifest manifest_;
  Findings found_;
  VerifyReport report_;
};

}  // namespace

int ReadingThreads() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 8);
}

VerifyReport VerifyStep(const Folder& step, const VerifyOptions& options) {
  return StepVerifier(step, options).Run();
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
