#include "tests/trainer/checkpoint/memory_file_system.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace moesaic {

struct MemoryFileSystem::Node {
  bool is_folder = false;
  std::string content, durable_content;
  std::map<std::string, std::shared_ptr<Node>> names, durable_names;
};

struct MemoryFileSystem::State {
  std::shared_ptr<Node> root = std::make_shared<Node>();
  int64_t calls = 0;
  int64_t stop_at = -1;
  int64_t fail_at = -1;
  absl::Status failure;

  // Counts a call; not OK when it must fail.
  absl::Status Count() {
    const int64_t call = calls++;
    if (stop_at >= 0 && call >= stop_at) return absl::UnavailableError("the power is gone");
    return call == fail_at ? failure : absl::OkStatus();
  }
};

namespace {

using Node = MemoryFileSystem::Node;
using State = MemoryFileSystem::State;

class MemoryWritableFile : public WritableFile {
 public:
  MemoryWritableFile(std::shared_ptr<State> state, std::shared_ptr<Node> node)
      : state_(std::move(state)), node_(std::move(node)) {}

  absl::Status Append(std::span<const std::byte> bytes) override {
    const absl::Status status = state_->Count();
    if (absl::IsUnavailable(status)) return status;
    const size_t size = status.ok() ? bytes.size() : bytes.size() / 2;
    node_->content.append(reinterpret_cast<const char*>(bytes.data()), size);
    return status;
  }

  absl::Status Sync() override {
    const absl::Status status = state_->Count();
    if (status.ok()) node_->durable_content = node_->content;
    return status;
  }

 private:
  std::shared_ptr<State> state_;
  std::shared_ptr<Node> node_;
};

class MemoryReadableFile : public ReadableFile {
 public:
  explicit MemoryReadableFile(std::shared_ptr<Node> node) : node_(std::move(node)) {}
  uint64_t size() const override { return node_->content.size(); }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> bytes) const override {
    if (offset > size() || bytes.size() > size() - offset) {
      return absl::OutOfRangeError("the file ends before");
    }
    std::memcpy(bytes.data(), node_->content.data() + offset, bytes.size());
    return absl::OkStatus();
  }

 private:
  std::shared_ptr<Node> node_;
};

class MemoryFolder : public Folder {
 public:
  MemoryFolder(std::shared_ptr<State> state, std::shared_ptr<Node> node, std::string path)
      : state_(std::move(state)), node_(std::move(node)), path_(std::move(path)) {}

  const std::string& path() const override { return path_; }

  absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& name) const override {
    absl::StatusOr<std::shared_ptr<Node>> node = Find(name, true);
    if (!node.ok()) return node.status();
    return std::make_unique<MemoryFolder>(state_, *node, Path(name));
  }

  absl::Status MakeFolder(const std::string& name) override {
    absl::StatusOr<std::shared_ptr<Node>> node = Add(name);
    if (!node.ok()) return node.status();
    (*node)->is_folder = true;
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& name) override {
    absl::StatusOr<std::shared_ptr<Node>> node = Add(name);
    if (!node.ok()) return node.status();
    return std::make_unique<MemoryWritableFile>(state_, *node);
  }

  absl::StatusOr<std::unique_ptr<ReadableFile>> Open(const std::string& name) const override {
    absl::StatusOr<std::shared_ptr<Node>> node = Find(name, false);
    if (!node.ok()) return node.status();
    return std::make_unique<MemoryReadableFile>(*node);
  }

  absl::StatusOr<std::vector<FolderEntry>> List() const override {
    std::vector<FolderEntry> entries;
    for (const auto& [name, node] : node_->names) {
      entries.push_back({name, node->is_folder ? EntryKind::kFolder : EntryKind::kFile});
    }
    return entries;
  }

  absl::Status Rename(const std::string& name, Folder* to, const std::string& new_name) override {
    if (absl::Status valid = ValidateName(new_name); !valid.ok()) return valid;
    if (absl::Status counted = state_->Count(); !counted.ok()) return counted;
    auto& names = static_cast<MemoryFolder*>(to)->node_->names;
    const auto found = node_->names.find(name);
    if (found == node_->names.end()) return absl::NotFoundError(Path(name));
    if (names.contains(new_name)) return absl::AlreadyExistsError(new_name);
    std::shared_ptr<Node> node = found->second;
    node_->names.erase(found);
    names[new_name] = std::move(node);
    return absl::OkStatus();
  }

  absl::Status RemoveFile(const std::string& name) override { return Unlink(name, false); }
  absl::Status RemoveFolder(const std::string& name) override { return Unlink(name, true); }

  absl::Status Sync() override {
    const absl::Status status = state_->Count();
    if (status.ok()) node_->durable_names = node_->names;
    return status;
  }

 private:
  std::string Path(absl::string_view name) const { return absl::StrCat(path_, "/", name); }

  absl::StatusOr<std::shared_ptr<Node>> Find(const std::string& name, bool folder) const {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    const auto found = node_->names.find(name);
    if (found == node_->names.end()) return absl::NotFoundError(absl::StrCat(Path(name), ": none"));
    if (found->second->is_folder != folder) return absl::FailedPreconditionError(Path(name));
    return found->second;
  }

  absl::StatusOr<std::shared_ptr<Node>> Add(const std::string& name) {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    if (absl::Status counted = state_->Count(); !counted.ok()) return counted;
    if (node_->names.contains(name)) return absl::AlreadyExistsError(Path(name));
    return node_->names[name] = std::make_shared<Node>();
  }

  absl::Status Unlink(const std::string& name, bool folder) {
    absl::StatusOr<std::shared_ptr<Node>> node = Find(name, folder);
    if (!node.ok()) return node.status();
    if (absl::Status counted = state_->Count(); !counted.ok()) return counted;
    if (!(*node)->names.empty()) return absl::AlreadyExistsError(Path(name));
    node_->names.erase(name);
    return absl::OkStatus();
  }

  std::shared_ptr<State> state_;
  std::shared_ptr<Node> node_;
  std::string path_;
};

std::shared_ptr<Node> CopyTree(const Node& node) {
  auto copy = std::make_shared<Node>();
  copy->is_folder = node.is_folder;
  copy->content = copy->durable_content = node.content;
  for (const auto& [name, child] : node.names) copy->names[name] = CopyTree(*child);
  copy->durable_names = copy->names;
  return copy;
}

void Lose(Node* node, PowerCut cut) {
  if (cut == PowerCut::kLoseAll) node->names = node->durable_names;
  if (cut != PowerCut::kLoseNothing) node->content = node->durable_content;
  node->durable_names = node->names;
  node->durable_content = node->content;
  for (auto& [name, child] : node->names) Lose(child.get(), cut);
}

}  // namespace

MemoryFileSystem::MemoryFileSystem() : state_(std::make_shared<State>()) {
  state_->root->is_folder = true;
}
MemoryFileSystem::~MemoryFileSystem() = default;

absl::StatusOr<std::unique_ptr<Folder>> MemoryFileSystem::OpenFolder(const std::string& path) {
  std::unique_ptr<Folder> folder = std::make_unique<MemoryFolder>(state_, state_->root, "");
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    absl::StatusOr<std::unique_ptr<Folder>> next = folder->OpenFolder(std::string(part));
    if (!next.ok()) return next.status();
    folder = *std::move(next);
  }
  return folder;
}

absl::StatusOr<std::unique_ptr<Folder>> MemoryFileSystem::MakeFolders(const std::string& path) {
  std::unique_ptr<Folder> folder = std::make_unique<MemoryFolder>(state_, state_->root, "");
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    absl::StatusOr<std::unique_ptr<Folder>> next =
        OpenOrMakeFolder(folder.get(), std::string(part));
    if (!next.ok()) return next.status();
    if (absl::Status synced = folder->Sync(); !synced.ok()) return synced;
    folder = *std::move(next);
  }
  return folder;
}

MemoryFileSystem MemoryFileSystem::Copy() const {
  MemoryFileSystem copy;
  copy.state_->root = CopyTree(*state_->root);
  return copy;
}

int64_t MemoryFileSystem::calls() const { return state_->calls; }
void MemoryFileSystem::StopAt(int64_t call) { state_->stop_at = call; }
void MemoryFileSystem::FailAt(int64_t call, absl::Status status) {
  state_->fail_at = call;
  state_->failure = std::move(status);
}

void MemoryFileSystem::Restart(PowerCut cut) {
  state_->stop_at = state_->fail_at = -1;
  Lose(state_->root.get(), cut);
}

namespace {

Node* Walk(State* state, const std::string& path) {
  Node* node = state->root.get();
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    node = node->names.at(std::string(part)).get();
  }
  return node;
}

std::pair<std::string, std::string> SplitPath(const std::string& path) {
  const size_t slash = path.rfind('/');
  return {path.substr(0, slash), path.substr(slash + 1)};
}

}  // namespace

std::string MemoryFileSystem::Read(const std::string& path) {
  return Walk(state_.get(), path)->content;
}

void MemoryFileSystem::Write(const std::string& path, std::string content) {
  const auto [folder, name] = SplitPath(path);
  std::shared_ptr<Node>& node = Walk(state_.get(), folder)->names[name];
  if (node == nullptr) node = std::make_shared<Node>();
  node->content = node->durable_content = std::move(content);
}

void MemoryFileSystem::Remove(const std::string& path) {
  const auto [folder, name] = SplitPath(path);
  Walk(state_.get(), folder)->names.erase(name);
}

std::vector<std::string> MemoryFileSystem::List(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, node] : Walk(state_.get(), path)->names) names.push_back(name);
  return names;
}

}  // namespace moesaic
