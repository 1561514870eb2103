#include "trainer/checkpoint/format/manifest.h"

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"

namespace moesaic {
namespace {

constexpr absl::string_view kMagic("MOEMANI1", 8);
constexpr size_t kDigestBytes = 32;
constexpr int kHashBytes = 16;
constexpr int kMaxFiles = 1 << 20;
constexpr int kMaxObjects = 1 << 22;
constexpr int kMaxRank = 8;

absl::Status Broken(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("manifest: ", what));
}

absl::Status CheckFiles(const Manifest& manifest) {
  if (manifest.files_size() > kMaxFiles) return Broken("too many files");
  absl::flat_hash_set<absl::string_view> names;
  for (const StoredFile& file : manifest.files()) {
    if (!ValidateName(file.name()).ok() || file.name() == kManifestName) {
      return Broken(absl::StrCat("\"", file.name(), "\" is no name for a file of a checkpoint"));
    }
    if (!names.insert(file.name()).second) {
      return Broken(absl::StrCat("file ", file.name(), " comes twice"));
    }
    if (file.xxh3().size() != kHashBytes) {
      return Broken(absl::StrCat("file ", file.name(), " has no checksum"));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckShard(const Manifest& manifest, const StoredObject& object, const Shard& shard) {
  if (absl::Status valid = ValidateBox(shard.box(), AsShape(object.shape())); !valid.ok()) {
    return Broken(valid.message());
  }
  const std::optional<uint64_t> bytes =
      CheckedBytes(object.element(), AsShape(shard.box().length()));
  if (!bytes || *bytes != shard.bytes()) {
    return Broken(absl::StrCat("box ", DescribeBox(shard.box()), " cannot have ", shard.bytes(),
                               " bytes"));
  }
  if (shard.file() >= static_cast<uint32_t>(manifest.files_size())) {
    return Broken(absl::StrCat("file number ", shard.file(), " does not exist"));
  }
  const StoredFile& file = manifest.files(static_cast<int>(shard.file()));
  if (shard.begin() > file.bytes() || shard.bytes() > file.bytes() - shard.begin()) {
    return Broken(absl::StrCat("bytes [", shard.begin(), ", +", shard.bytes(),
                               ") are outside file ", file.name(), " of ", file.bytes(), " bytes"));
  }
  if (shard.xxh3().size() != kHashBytes) return Broken("a shard has no checksum");
  return absl::OkStatus();
}

absl::Status CheckObjects(const Manifest& manifest) {
  if (manifest.objects_size() > kMaxObjects) return Broken("too many objects");
  absl::flat_hash_set<std::string> labels;
  for (const StoredObject& object : manifest.objects()) {
    const std::string label = ObjectLabel(object.kind(), object.name());
    const std::optional<uint64_t> bytes = CheckedBytes(object.element(), AsShape(object.shape()));
    if (object.name().empty() || ObjectKindName(object.kind()) == "?" || !bytes ||
        object.shape_size() > kMaxRank) {
      return Broken(absl::StrCat("object ", label, " of shape ",
                                 DescribeShape(AsShape(object.shape())), " is not valid"));
    }
    if (!labels.insert(label).second) return Broken(absl::StrCat("object ", label, " comes twice"));
    for (const Shard& shard : object.shards()) {
      absl::Status valid = CheckShard(manifest, object, shard);
      if (!valid.ok()) return Broken(absl::StrCat("object ", label, ": ", valid.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string EncodeManifest(const Manifest& manifest) {
  std::string bytes = manifest.SerializeAsString();
  absl::StrAppend(&bytes, Sha256(bytes), kMagic);
  return bytes;
}

absl::StatusOr<Manifest> DecodeManifest(absl::string_view bytes) {
  const size_t trailer = kDigestBytes + kMagic.size();
  if (bytes.size() < trailer || bytes.size() > kMaxManifestBytes) {
    return Broken(absl::StrCat("it cannot have ", bytes.size(), " bytes"));
  }
  if (bytes.substr(bytes.size() - kMagic.size()) != kMagic) {
    return Broken("it does not end in MOEMANI1: it is cut short or not a manifest");
  }
  const absl::string_view message = bytes.substr(0, bytes.size() - trailer);
  if (Sha256(message) != bytes.substr(message.size(), kDigestBytes)) {
    return Broken("its SHA-256 does not match: it is damaged");
  }
  Manifest manifest;
  if (!manifest.ParseFromArray(message.data(), static_cast<int>(message.size()))) {
    return Broken("it is not a Manifest message");
  }
  if (manifest.format_version() != kManifestVersion) {
    return Broken(absl::StrCat("format version ", manifest.format_version(),
                               "; this program reads version ", kManifestVersion));
  }
  for (const std::string* hash :
       {&manifest.identity_hash(), &manifest.trajectory_hash(), &manifest.catalog_hash()}) {
    if (hash->size() != kHashBytes) return Broken("a hash has not 16 bytes");
  }
  if (absl::Status valid = CheckFiles(manifest); !valid.ok()) return valid;
  if (absl::Status valid = CheckObjects(manifest); !valid.ok()) return valid;
  return manifest;
}

absl::StatusOr<Manifest> ReadManifest(const Folder& step) {
  absl::StatusOr<std::string> bytes = ReadWholeFile(step, kManifestName, kMaxManifestBytes);
  if (!bytes.ok()) return bytes.status();
  absl::StatusOr<Manifest> manifest = DecodeManifest(*bytes);
  if (!manifest.ok()) {
    return absl::Status(manifest.status().code(), absl::StrCat(step.path(), "/", kManifestName,
                                                               ": ", manifest.status().message()));
  }
  return manifest;
}

std::string StepFolderName(uint64_t step) { return absl::StrFormat("step-%09d", step); }

std::optional<uint64_t> ParseStepFolderName(absl::string_view name) {
  constexpr absl::string_view kPrefix = "step-";
  uint64_t step = 0;
  if (name.substr(0, kPrefix.size()) != kPrefix ||
      !absl::SimpleAtoi(name.substr(kPrefix.size()), &step) || StepFolderName(step) != name) {
    return std::nullopt;
  }
  return step;
}

absl::StatusOr<std::vector<uint64_t>> ListSteps(const Folder& root) {
  absl::StatusOr<std::vector<FolderEntry>> entries = root.List();
  if (!entries.ok()) return entries.status();
  std::vector<uint64_t> steps;
  for (const FolderEntry& entry : *entries) {
    const std::optional<uint64_t> step = ParseStepFolderName(entry.name);
    if (step && entry.kind == EntryKind::kFolder) steps.push_back(*step);
  }
  std::ranges::sort(steps);
  return steps;
}

absl::StatusOr<StepFolder> OpenCheckpoint(FileSystem* files, const std::string& path) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = files->OpenFolder(path);
  if (!folder.ok()) return folder.status();
  const std::string plain = path.substr(0, path.find_last_not_of('/') + 1);
  if (ParseStepFolderName(plain.substr(plain.rfind('/') + 1)) ||
      (*folder)->Open(kManifestName).ok()) {
    return StepFolder{path, *std::move(folder)};
  }
  absl::StatusOr<std::vector<uint64_t>> steps = ListSteps(**folder);
  if (!steps.ok()) return steps.status();
  if (steps->empty()) {
    return absl::NotFoundError(
        absl::StrCat(path, " is no checkpoint: it has neither ", kManifestName,
                     " nor folders named step-<number>"));
  }
  const std::string name = StepFolderName(steps->back());
  absl::StatusOr<std::unique_ptr<Folder>> step = (*folder)->OpenFolder(name);
  if (!step.ok()) return step.status();
  return StepFolder{absl::StrCat(path, "/", name), *std::move(step)};
}

absl::string_view ObjectKindName(ObjectKind kind) {
  switch (kind) {
    case MASTER:
      return "master";
    case ADAM_M:
      return "adam_m";
    case ADAM_V:
      return "adam_v";
    case BUFFER:
      return "buffer";
    default:
      return "?";
  }
}

std::string ObjectLabel(ObjectKind kind, absl::string_view name) {
  return absl::StrCat(ObjectKindName(kind), "/", name);
}

std::string ShardTensorName(const StoredObject& object, const Box& box) {
  const std::string label = ObjectLabel(object.kind(), object.name());
  if (IsWhole(box, AsShape(object.shape()))) return label;
  return absl::StrCat(label, "@", absl::StrJoin(box.offset(), ","));
}

}  // namespace moesaic
