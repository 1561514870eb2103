// The manifest of a checkpoint and the names of its folders. Layout: proto/checkpoint.proto.
//
// A step folder that exists is complete: it gets its name by one rename after all in it is durable.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

inline constexpr char kManifestName[] = "MANIFEST.pb";
inline constexpr char kTokenizerName[] = "tokenizer.model";
inline constexpr uint32_t kManifestVersion = 1;
inline constexpr uint64_t kMaxManifestBytes = 512ull << 20;

// The message and its trailer: SHA-256 of the message bytes, "MOEMANI1".
std::string EncodeManifest(const Manifest& manifest);

// DataLoss, with the reason, unless the trailer fits and the content is consistent: version,
// hashes of 16 bytes, file names that are plain and come once, shards inside their files and their
// objects, bytes that match element kind and box. It does not look at other files. Reads what
// anyone may have written: sizes are checked before memory is taken.
absl::StatusOr<Manifest> DecodeManifest(absl::string_view bytes);

// Of an open step folder. NotFound when it has no manifest.
absl::StatusOr<Manifest> ReadManifest(const Folder& step);

// "step-000001234".
std::string StepFolderName(uint64_t step);
// Nothing unless `name` is exactly what StepFolderName makes.
std::optional<uint64_t> ParseStepFolderName(absl::string_view name);

// Steps that have a folder in a checkpoint root, ascending.
absl::StatusOr<std::vector<uint64_t>> ListSteps(const Folder& root);

// A step folder that was asked for.
struct StepFolder {
  std::string path;
  std::unique_ptr<Folder> folder;
};

// `path` is a step folder (by its name, or because it has a manifest) or a root, of which the
// newest step is taken. NotFound when it is neither, or a root without steps.
absl::StatusOr<StepFolder> OpenCheckpoint(FileSystem* files, const std::string& path);

// "master", "adam_m", "adam_v", "buffer"; "?" for an unknown kind.
absl::string_view ObjectKindName(ObjectKind kind);
// "master/layers.3.moe.router".
std::string ObjectLabel(ObjectKind kind, absl::string_view name);
// The tensor's name in a shard file: the label, with "@<offset,...>" when the box is a part.
std::string ShardTensorName(const StoredObject& object, const Box& box);

}  // namespace moesaic
