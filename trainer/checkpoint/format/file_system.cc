#include "trainer/checkpoint/format/file_system.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace moesaic {

absl::Status ValidateName(absl::string_view name) {
  if (name.empty() || name == "." || name == ".." || name.size() > 255 ||
      name.find('/') != absl::string_view::npos || name.find('\0') != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" is not a plain file name; paths are not allowed here"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Folder>> OpenOrMakeFolder(Folder* parent, const std::string& name) {
  absl::Status made = parent->MakeFolder(name);
  if (!made.ok() && !absl::IsAlreadyExists(made)) return made;
  return parent->OpenFolder(name);
}

absl::StatusOr<std::unique_ptr<Folder>> OpenBelow(const Folder& root, absl::string_view path) {
  absl::string_view below = path;
  if (!absl::ConsumePrefix(&below, root.path()) || !absl::ConsumePrefix(&below, "/")) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not below ", root.path()));
  }
  std::unique_ptr<Folder> folder;
  const Folder* at = &root;
  for (const absl::string_view part : absl::StrSplit(below, '/')) {
    absl::StatusOr<std::unique_ptr<Folder>> next = at->OpenFolder(std::string(part));
    if (!next.ok()) return next.status();
    folder = *std::move(next);
    at = folder.get();
  }
  return folder;
}

absl::Status RemoveTree(Folder* parent, const std::string& name) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = parent->OpenFolder(name);
  if (absl::IsNotFound(folder.status())) return absl::OkStatus();
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::vector<FolderEntry>> entries = (*folder)->List();
  if (!entries.ok()) return entries.status();
  for (const FolderEntry& entry : *entries) {
    absl::Status removed = entry.kind == EntryKind::kFolder
                               ? RemoveTree(folder->get(), entry.name)
                               : (*folder)->RemoveFile(entry.name);
    if (!removed.ok() && !absl::IsNotFound(removed)) return removed;
  }
  absl::Status removed = parent->RemoveFolder(name);
  return absl::IsNotFound(removed) ? absl::OkStatus() : removed;
}

absl::StatusOr<std::string> ReadWholeFile(const Folder& folder, const std::string& name,
                                          uint64_t limit) {
  absl::StatusOr<std::unique_ptr<ReadableFile>> file = folder.Open(name);
  if (!file.ok()) return file.status();
  if ((*file)->size() > limit) {
    return absl::ResourceExhaustedError(absl::StrCat(folder.path(), "/", name, " has ",
                                                     (*file)->size(), " bytes; at most ", limit,
                                                     " are read"));
  }
  std::string content((*file)->size(), '\0');
  absl::Status read = (*file)->ReadAt(0, std::as_writable_bytes(std::span<char>(content)));
  if (!read.ok()) return read;
  return content;
}

}  // namespace moesaic
