#include "trainer/checkpoint/format/shard_files.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/algorithm/container.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/durable_file.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/safetensors.h"
#include "trainer/checkpoint/format/set_aside.h"

namespace moesaic {
namespace {

// A file to be, with the indices of its sources in order.
struct FilePlan {
  std::string name;
  std::vector<size_t> sources;
};

absl::StatusOr<std::vector<FilePlan>> PlanFiles(const std::vector<ShardSource>& sources,
                                                const ShardFilesOptions& options) {
  std::vector<FilePlan> plans;
  std::map<std::pair<int, int>, size_t> of_expert;
  size_t dense = SIZE_MAX;  // the rank's file that is being filled
  uint64_t dense_bytes = 0;
  int dense_files = 0;
  for (size_t i = 0; i < sources.size(); ++i) {
    const ShardSource& source = sources[i];
    absl::Status valid = ValidateBox(source.box, source.shape);
    const std::optional<uint64_t> bytes =
        CheckedBytes(source.element, AsShape(source.box.length()));
    if (!valid.ok() || !bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat(ObjectLabel(source.kind, source.name), ": ",
                       valid.ok() ? "unknown element kind" : valid.message()));
    }
    if (source.expert >= 0) {
      const auto [it, added] = of_expert.try_emplace({source.layer, source.expert}, plans.size());
      if (added) {
        plans.push_back(
            {absl::StrFormat("x-L%03d-E%04d.safetensors", source.layer, source.expert), {}});
      }
      plans[it->second].sources.push_back(i);
      continue;
    }
    if (dense == SIZE_MAX || *bytes > options.max_file_bytes - dense_bytes) {
      dense = plans.size();
      dense_bytes = 0;
      plans.push_back(
          {absl::StrFormat("r%05d-%03d.safetensors", options.rank, dense_files++), {}});
    }
    plans[dense].sources.push_back(i);
    dense_bytes = std::min(options.max_file_bytes, dense_bytes + *bytes);
  }
  return plans;
}

// One shard file of an earlier step.
class EarlierFile {
 public:
  EarlierFile(const StoredFile& stored, uint64_t step) : stored_(&stored), step_(step) {}

  void Add(const StoredObject& object, const Shard& shard) { parts_.push_back({&object, &shard}); }
  void Sort() {
    std::ranges::sort(parts_, {}, [](const Part& part) { return part.shard->begin(); });
  }

  const StoredFile& stored() const { return *stored_; }
  const Shard& shard(size_t i) const { return *parts_[i].shard; }

  // Whether it holds just these tensors, in this order, of whatever bytes.
  bool Holds(const std::vector<SafetensorsTensor>& tensors) const {
    return std::ranges::equal(
        parts_, tensors, [](const Part& part, const SafetensorsTensor& tensor) {
          return ShardTensorName(*part.object, part.shard->box()) == tensor.name &&
                 part.object->element() == tensor.element &&
                 std::ranges::equal(AsShape(part.shard->box().length()), tensor.shape);
        });
  }

  StoredFile AsLinked() const {
    StoredFile linked = *stored_;
    if (!linked.has_written_at_step()) linked.set_written_at_step(step_);
    return linked;
  }

 private:
  struct Part {
    const StoredObject* object;
    const Shard* shard;
  };
  const StoredFile* stored_;
  uint64_t step_;
  std::vector<Part> parts_;
};

// The shard files of an earlier step, by name. Points into it.
class EarlierFiles {
 public:
  explicit EarlierFiles(const EarlierStep& step) : folder_(step.folder.get()) {
    const Manifest& manifest = step.manifest;
    std::vector<EarlierFile> files;
    for (const StoredFile& file : manifest.files()) {
      files.emplace_back(file, manifest.state().step());
    }
    for (const StoredObject& object : manifest.objects()) {
      for (const Shard& shard : object.shards()) files[shard.file()].Add(object, shard);
    }
    for (EarlierFile& file : files) {
      file.Sort();
      by_name_.emplace(file.stored().name(), std::move(file));
    }
  }

  const EarlierFile* Find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : &found->second;
  }

  // False when the file is not what it should be, is gone, or cannot be linked.
  bool LinkInto(const EarlierFile& file, Folder* staging) const {
    const std::string& name = file.stored().name();
    absl::StatusOr<std::string> hash = HashFile(name, file.stored().bytes());
    if (!hash.ok()) return false;
    if (*hash != file.stored().xxh3()) {
      LogError("{}/{} is damaged; it is written anew. Run moesaic ckpt verify on that folder",
               folder_->path(), name);
      return false;
    }
    return folder_->Link(name, staging, name).ok();
  }

 private:
  absl::StatusOr<std::string> HashFile(const std::string& name, uint64_t bytes) const {
    absl::StatusOr<std::unique_ptr<ReadableFile>> file = folder_->Open(name);
    if (!file.ok()) return file.status();
    if ((*file)->size() != bytes) return absl::DataLossError("it has another size");
    Xxh3Stream hash;
    std::vector<std::byte> buffer(std::min<uint64_t>(bytes, 4 << 20));
    for (uint64_t at = 0; at < bytes; at += buffer.size()) {
      const std::span<std::byte> piece =
          std::span(buffer).first(std::min<uint64_t>(buffer.size(), bytes - at));
      if (absl::Status read = (*file)->ReadAt(at, piece); !read.ok()) return read;
      hash.Update(piece);
    }
    return hash.Digest();
  }

  const Folder* folder_;
  std::map<std::string, EarlierFile> by_name_;
};

class ShardFileSet {
 public:
  ShardFileSet(const std::vector<ShardSource>& sources, const ShardFilesOptions& options,
               Folder* staging)
      : sources_(sources), options_(options), staging_(staging) {
    if (options.earlier != nullptr) earlier_.emplace(*options.earlier);
  }

  // Links the earlier step's file where it would be the same, or writes it.
  absl::Status AddFile(const FilePlan& plan) {
    std::vector<SafetensorsTensor> tensors;
    for (size_t i : plan.sources) tensors.push_back(TensorOf(sources_[i]));
    if (earlier_) {
      absl::StatusOr<bool> linked = LinkFile(plan, tensors);
      if (!linked.ok()) return linked.status();
      if (*linked) return absl::OkStatus();
    }
    return WriteFile(plan, std::move(tensors));
  }

  WrittenShards Take() { return std::move(written_); }

 private:
  absl::Status WriteFile(const FilePlan& plan, std::vector<SafetensorsTensor> tensors) {
    absl::StatusOr<std::string> header = LayOutSafetensors(
        &tensors, {{"format", "moesaic"}, {"step", absl::StrCat(options_.step)}});
    if (!header.ok()) return header.status();
    absl::StatusOr<std::unique_ptr<DurableFileWriter>> file =
        DurableFileWriter::Create(staging_, plan.name);
    if (!file.ok()) return file.status();
    if (absl::Status written = (*file)->Append(*header); !written.ok()) return written;
    for (size_t i = 0; i < plan.sources.size(); ++i) {
      absl::Status written = WriteShard(sources_[plan.sources[i]], tensors[i], file->get());
      if (!written.ok()) return written;
    }
    absl::StatusOr<StoredFile> stored = (*file)->Finish();
    if (!stored.ok()) return stored.status();
    written_.files.push_back(*std::move(stored));
    return absl::OkStatus();
  }

  absl::StatusOr<bool> LinkFile(const FilePlan& plan,
                                const std::vector<SafetensorsTensor>& tensors) {
    const EarlierFile* earlier = earlier_->Find(plan.name);
    if (earlier == nullptr || !earlier->Holds(tensors)) return false;
    for (size_t i = 0; i < plan.sources.size(); ++i) {
      Xxh3Stream hash;
      absl::Status produced =
          sources_[plan.sources[i]].produce([&](std::span<const std::byte> piece) {
            hash.Update(piece);
            return absl::OkStatus();
          });
      if (!produced.ok()) return produced;
      if (hash.Digest() != earlier->shard(i).xxh3()) return false;
    }
    if (!earlier_->LinkInto(*earlier, staging_)) return false;
    for (size_t i = 0; i < plan.sources.size(); ++i) {
      Shard* shard = ObjectOf(sources_[plan.sources[i]]).add_shards();
      *shard = earlier->shard(i);
      shard->set_file(static_cast<uint32_t>(written_.files.size()));
    }
    written_.files.push_back(earlier->AsLinked());
    return true;
  }

  static SafetensorsTensor TensorOf(const ShardSource& source) {
    StoredObject object;
    object.set_kind(source.kind);
    object.set_name(source.name);
    object.mutable_shape()->Assign(source.shape.begin(), source.shape.end());
    SafetensorsTensor tensor;
    tensor.name = ShardTensorName(object, source.box);
    tensor.element = source.element;
    tensor.shape.assign(source.box.length().begin(), source.box.length().end());
    return tensor;
  }

  absl::Status WriteShard(const ShardSource& source, const SafetensorsTensor& tensor,
                          DurableFileWriter* file) {
    Xxh3Stream hash;
    uint64_t bytes = 0;
    absl::Status produced = source.produce([&](std::span<const std::byte> piece) {
      hash.Update(piece);
      bytes += piece.size();
      return file->Append(piece);
    });
    if (!produced.ok()) return produced;
    if (bytes != tensor.bytes) {
      return absl::InternalError(absl::StrCat(tensor.name, ": its source gave ", bytes,
                                              " bytes and not ", tensor.bytes));
    }
    Shard* shard = ObjectOf(source).add_shards();
    *shard->mutable_box() = source.box;
    shard->set_file(static_cast<uint32_t>(written_.files.size()));
    shard->set_begin(tensor.begin);
    shard->set_bytes(tensor.bytes);
    shard->set_xxh3(hash.Digest());
    return absl::OkStatus();
  }

  StoredObject& ObjectOf(const ShardSource& source) {
    const auto [it, added] =
        by_name_.try_emplace({source.kind, source.name}, written_.objects.size());
    if (added) {
      StoredObject& object = written_.objects.emplace_back();
      object.set_kind(source.kind);
      object.set_name(source.name);
      object.set_element(source.element);
      object.mutable_shape()->Assign(source.shape.begin(), source.shape.end());
      object.set_step(options_.step);
    }
    return written_.objects[it->second];
  }

  const std::vector<ShardSource>& sources_;
  const ShardFilesOptions& options_;
  Folder* staging_;
  std::optional<EarlierFiles> earlier_;
  std::map<std::pair<int, std::string>, size_t> by_name_;
  WrittenShards written_;
};

}  // namespace

namespace {

// The root of "<root>/.staging/<name>".
absl::StatusOr<std::unique_ptr<Folder>> OpenRootOf(FileSystem* files, const std::string& staging) {
  const std::vector<absl::string_view> parts = absl::StrSplit(staging, '/');
  if (parts.size() < 3 || parts[parts.size() - 2] != kStagingFolder ||
      absl::c_linear_search(parts, "..")) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", staging, "\" is not <checkpoint.dir>/", kStagingFolder, "/<name>"));
  }
  const size_t root = staging.size() - parts.back().size() - sizeof(kStagingFolder) - 1;
  return files->OpenFolder(root == 0 ? "/" : staging.substr(0, root));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Folder>> OpenStaging(FileSystem* files,
                                                    const std::string& staging) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = OpenRootOf(files, staging);
  if (folder.ok()) folder = (*folder)->OpenFolder(kStagingFolder);
  if (folder.ok()) folder = (*folder)->OpenFolder(staging.substr(staging.rfind('/') + 1));
  return folder;
}

std::unique_ptr<EarlierStep> OpenEarlierStep(FileSystem* files, const std::string& staging,
                                             uint64_t step) {
  const absl::StatusOr<std::unique_ptr<Folder>> root = OpenRootOf(files, staging);
  if (!root.ok()) return nullptr;
  absl::StatusOr<std::vector<uint64_t>> steps = ListSteps(**root);
  if (!steps.ok()) return nullptr;
  const auto after = std::ranges::lower_bound(*steps, step);
  if (after == steps->begin()) return nullptr;
  absl::StatusOr<std::unique_ptr<Folder>> opened =
      (*root)->OpenFolder(StepFolderName(*std::prev(after)));
  if (!opened.ok()) return nullptr;
  absl::StatusOr<Manifest> manifest = ReadManifest(**opened);
  if (!manifest.ok()) return nullptr;
  return std::make_unique<EarlierStep>(EarlierStep{*std::move(opened), *std::move(manifest)});
}

absl::StatusOr<WrittenShards> WriteShardFiles(const std::vector<ShardSource>& sources,
                                              const ShardFilesOptions& options, Folder* staging) {
  absl::StatusOr<std::vector<FilePlan>> plans = PlanFiles(sources, options);
  if (!plans.ok()) return plans.status();
  ShardFileSet files(sources, options, staging);
  for (const FilePlan& plan : *plans) {
    absl::Status written = files.AddFile(plan);
    if (!written.ok()) {
      return absl::Status(written.code(),
                          absl::StrCat("shard file ", plan.name, ": ", written.message()));
    }
  }
  if (absl::Status synced = staging->Sync(); !synced.ok()) return synced;
  return files.Take();
}

absl::StatusOr<ShardsPersisted> PersistShards(const SnapshotReader& snapshot, uint64_t step,
                                              Folder* staging, const EarlierStep* earlier) {
  const SnapshotIndex& index = snapshot.index();
  if (index.state().step() != step) {
    return absl::FailedPreconditionError(absl::StrCat("the snapshot of rank ", index.rank(),
                                                      " is of step ", index.state().step(),
                                                      " and not of step ", step));
  }
  std::vector<ShardSource> sources;
  for (int i = 0; i < index.objects_size(); ++i) {
    const ArenaObject& object = index.objects(i);
    ShardSource source;
    source.kind = object.kind();
    source.name = object.name();
    source.element = object.element();
    source.shape.assign(object.shape().begin(), object.shape().end());
    source.box = object.box();
    source.layer = object.layer();
    source.expert = object.expert();
    source.produce = [&snapshot, i, bytes = object.bytes()](const ByteSink& sink) {
      return snapshot.Read(i, 0, bytes, [&sink](uint64_t, std::span<const std::byte> piece) {
        return sink(piece);
      });
    };
    sources.push_back(std::move(source));
  }
  absl::StatusOr<WrittenShards> written =
      WriteShardFiles(
      sources, {.rank = index.rank(), .step = step, .earlier = earlier}, staging);
  if (!written.ok()) return written.status();
  ShardsPersisted persisted;
  persisted.set_job(index.job());
  persisted.set_generation(index.generation());
  persisted.set_step(step);
  persisted.set_rank(index.rank());
  *persisted.mutable_state() = index.state();
  persisted.mutable_files()->Assign(written->files.begin(), written->files.end());
  persisted.mutable_objects()->Assign(written->objects.begin(), written->objects.end());
  return persisted;
}

}  // namespace moesaic
