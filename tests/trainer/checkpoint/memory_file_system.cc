#include "tests/trainer/checkpoint/memory_file_system.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace moesaic {

struct MemoryFileSystem::Node {
  bool is_folder = false;
  std::string content, durable_content;
  std::map<std::string, std::shared_ptr<Node>> names, durable_names;
};

namespace {

using Node = MemoryFileSystem::Node;
using Disk = MemoryFileSystem::Disk;
using Process = MemoryFileSystem::Process;

// One name of a folder gets another meaning; null: it goes.
struct NameChange {
  std::shared_ptr<Node> folder;
  std::string name;
  std::shared_ptr<Node> node;

  bool SameName(const NameChange& other) const {
    return folder == other.folder && name == other.name;
  }
};

// Changes that are stable together or not at all.
using Record = std::vector<NameChange>;

}  // namespace

struct MemoryFileSystem::Disk {
  std::shared_ptr<Node> root = std::make_shared<Node>();
  std::vector<Record> journal;  // not yet stable, in order
  bool links = true;

  // Changes the cache.
  void Change(Record record) {
    for (const NameChange& change : record) {
      if (change.node == nullptr) {
        change.folder->names.erase(change.name);
      } else {
        change.folder->names[change.name] = change.node;
      }
    }
    journal.push_back(std::move(record));
  }

  // Makes stable the records that are wanted and those that they build on.
  void Settle(std::vector<bool> wanted) {
    for (size_t i = journal.size(); i-- > 0;) {
      if (!wanted[i]) continue;
      for (size_t earlier = 0; earlier < i; ++earlier) {
        wanted[earlier] = wanted[earlier] || Touch(journal[earlier], journal[i]);
      }
    }
    std::vector<Record> left;
    for (size_t i = 0; i < journal.size(); ++i) {
      if (!wanted[i]) {
        left.push_back(std::move(journal[i]));
        continue;
      }
      for (const NameChange& change : journal[i]) {
        if (change.node == nullptr) {
          change.folder->durable_names.erase(change.name);
        } else {
          change.folder->durable_names[change.name] = change.node;
        }
      }
    }
    journal = std::move(left);
  }

  static bool Touch(const Record& a, const Record& b) {
    return std::ranges::any_of(a, [&](const NameChange& change) {
      return std::ranges::any_of(
          b, [&](const NameChange& other) { return change.SameName(other); });
    });
  }

  void SyncFolder(const std::shared_ptr<Node>& folder) {
    std::vector<bool> wanted;
    for (const Record& record : journal) {
      wanted.push_back(std::ranges::count(record, folder, &NameChange::folder) > 0);
    }
    Settle(std::move(wanted));
  }
};

struct MemoryFileSystem::Process {
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
  // Whether the call just counted is the one to be cut or failed, and not a later one.
  bool IsFirstToFail() const { return calls - 1 == stop_at || calls - 1 == fail_at; }
};

namespace {

struct World {
  std::shared_ptr<Disk> disk;
  std::shared_ptr<Process> process;
};

class MemoryWritableFile : public WritableFile {
 public:
  MemoryWritableFile(World world, std::shared_ptr<Node> node)
      : world_(std::move(world)), node_(std::move(node)) {}

  absl::Status Append(std::span<const std::byte> bytes) override {
    const absl::Status status = world_.process->Count();
    size_t size = bytes.size();
    if (!status.ok()) size = world_.process->IsFirstToFail() ? size / 2 : 0;
    node_->content.append(reinterpret_cast<const char*>(bytes.data()), size);
    return status;
  }

  absl::Status Sync() override {
    const absl::Status status = world_.process->Count();
    if (status.ok()) node_->durable_content = node_->content;
    return status;
  }

 private:
  World world_;
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
  MemoryFolder(World world, std::shared_ptr<Node> node, std::string path)
      : world_(std::move(world)), node_(std::move(node)), path_(std::move(path)) {}

  const std::string& path() const override { return path_; }

  absl::StatusOr<std::unique_ptr<Folder>> OpenFolder(const std::string& name) const override {
    absl::StatusOr<std::shared_ptr<Node>> node = Find(name, true);
    if (!node.ok()) return node.status();
    return std::make_unique<MemoryFolder>(world_, *node, Path(name));
  }

  absl::Status MakeFolder(const std::string& name) override { return Add(name, true).status(); }

  absl::StatusOr<std::unique_ptr<WritableFile>> Create(const std::string& name) override {
    absl::StatusOr<std::shared_ptr<Node>> node = Add(name, false);
    if (!node.ok()) return node.status();
    return std::make_unique<MemoryWritableFile>(world_, *node);
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
    if (absl::Status counted = world_.process->Count(); !counted.ok()) return counted;
    const std::shared_ptr<Node>& target = static_cast<MemoryFolder*>(to)->node_;
    const auto found = node_->names.find(name);
    if (found == node_->names.end()) return absl::NotFoundError(Path(name));
    if (target->names.contains(new_name)) return absl::AlreadyExistsError(new_name);
    world_.disk->Change({{target, new_name, found->second}, {node_, name, nullptr}});
    return absl::OkStatus();
  }

  absl::Status Link(const std::string& name, Folder* to,
                    const std::string& new_name) const override {
    if (absl::Status valid = ValidateName(new_name); !valid.ok()) return valid;
    if (absl::Status counted = world_.process->Count(); !counted.ok()) return counted;
    if (!world_.disk->links) return absl::UnimplementedError("there are no links here");
    absl::StatusOr<std::shared_ptr<Node>> node = Find(name, false);
    if (!node.ok()) return node.status();
    const std::shared_ptr<Node>& target = static_cast<MemoryFolder*>(to)->node_;
    if (target->names.contains(new_name)) return absl::AlreadyExistsError(new_name);
    world_.disk->Change({{target, new_name, *node}});
    return absl::OkStatus();
  }

  absl::Status RemoveFile(const std::string& name) override { return Unlink(name, false); }
  absl::Status RemoveFolder(const std::string& name) override { return Unlink(name, true); }

  absl::Status Sync() override {
    const absl::Status status = world_.process->Count();
    if (status.ok()) world_.disk->SyncFolder(node_);
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

  absl::StatusOr<std::shared_ptr<Node>> Add(const std::string& name, bool folder) {
    if (absl::Status valid = ValidateName(name); !valid.ok()) return valid;
    if (absl::Status counted = world_.process->Count(); !counted.ok()) return counted;
    if (node_->names.contains(name)) return absl::AlreadyExistsError(Path(name));
    auto node = std::make_shared<Node>();
    node->is_folder = folder;
    world_.disk->Change({{node_, name, node}});
    return node;
  }

  absl::Status Unlink(const std::string& name, bool folder) {
    absl::StatusOr<std::shared_ptr<Node>> node = Find(name, folder);
    if (!node.ok()) return node.status();
    if (absl::Status counted = world_.process->Count(); !counted.ok()) return counted;
    if (!(*node)->names.empty()) return absl::AlreadyExistsError(Path(name));
    world_.disk->Change({{node_, name, nullptr}});
    return absl::OkStatus();
  }

  World world_;
  std::shared_ptr<Node> node_;
  std::string path_;
};

using Copies = std::map<const Node*, std::shared_ptr<Node>>;

std::shared_ptr<Node> CopyTree(const Node& node, Copies* copies) {
  std::shared_ptr<Node>& known = (*copies)[&node];
  if (known != nullptr) return known;
  const auto copy = known = std::make_shared<Node>();
  copy->is_folder = node.is_folder;
  copy->content = copy->durable_content = node.content;
  for (const auto& [name, child] : node.names) copy->names[name] = CopyTree(*child, copies);
  copy->durable_names = copy->names;
  return copy;
}

// What a file has after a power cut that left a part of what was not synced.
std::string SomeOf(const Node& file, std::mt19937* random) {
  if (file.content == file.durable_content) return file.content;
  const size_t kept = file.durable_content.size();
  std::string some = file.content.substr(0, kept + (*random)() % (file.content.size() - kept + 1));
  if ((*random)() % 2 == 0) {
    std::fill(some.begin() + static_cast<ptrdiff_t>(kept), some.end(), '\0');
  }
  return some;
}

// Every node that can be reached by what the cache holds.
void VisitAll(Node* node, std::set<Node*>* seen, const std::function<void(Node*)>& visit) {
  if (!seen->insert(node).second) return;
  visit(node);
  for (auto& [name, child] : node->names) VisitAll(child.get(), seen, visit);
}

void VisitAll(Node* node, const std::function<void(Node*)>& visit) {
  std::set<Node*> seen;
  VisitAll(node, &seen, visit);
}

}  // namespace

MemoryFileSystem::MemoryFileSystem()
    : MemoryFileSystem(std::make_shared<Disk>(), std::make_shared<Process>()) {
  disk_->root->is_folder = true;
}
MemoryFileSystem::MemoryFileSystem(std::shared_ptr<Disk> disk, std::shared_ptr<Process> process)
    : disk_(std::move(disk)), process_(std::move(process)) {}
MemoryFileSystem::~MemoryFileSystem() = default;

absl::StatusOr<std::unique_ptr<Folder>> MemoryFileSystem::OpenFolder(const std::string& path) {
  std::unique_ptr<Folder> folder =
      std::make_unique<MemoryFolder>(World{disk_, process_}, disk_->root, "");
  for (absl::string_view part : absl::StrSplit(path, '/', absl::SkipEmpty())) {
    absl::StatusOr<std::unique_ptr<Folder>> next = folder->OpenFolder(std::string(part));
    if (!next.ok()) return next.status();
    folder = *std::move(next);
  }
  return folder;
}

absl::StatusOr<std::unique_ptr<Folder>> MemoryFileSystem::MakeFolders(const std::string& path) {
  std::unique_ptr<Folder> folder =
      std::make_unique<MemoryFolder>(World{disk_, process_}, disk_->root, "");
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
  Copies copies;
  copy.disk_->root = CopyTree(*disk_->root, &copies);
  copy.disk_->links = disk_->links;
  return copy;
}

MemoryFileSystem MemoryFileSystem::OtherProcess() const {
  return MemoryFileSystem(disk_, std::make_shared<Process>());
}

int64_t MemoryFileSystem::calls() const { return process_->calls; }
void MemoryFileSystem::StopAt(int64_t call) { process_->stop_at = call; }
void MemoryFileSystem::FailAt(int64_t call, absl::Status status) {
  process_->fail_at = call;
  process_->failure = std::move(status);
}
bool MemoryFileSystem::Reached() const {
  return (process_->stop_at >= 0 && process_->calls > process_->stop_at) ||
         (process_->fail_at >= 0 && process_->calls > process_->fail_at);
}
void MemoryFileSystem::RefuseLinks() { disk_->links = false; }

void MemoryFileSystem::Restart(PowerCut cut, uint32_t seed) {
  process_->stop_at = process_->fail_at = -1;
  if (cut == PowerCut::kLoseNothing) return;
  std::mt19937 random(seed);
  std::vector<bool> survives(disk_->journal.size(), cut == PowerCut::kLoseContent);
  if (cut == PowerCut::kLoseSome) {
    for (size_t i = 0; i < survives.size(); ++i) survives[i] = random() % 2 == 0;
  }
  disk_->Settle(std::move(survives));
  disk_->journal.clear();
  VisitAll(disk_->root.get(), [&](Node* node) {
    node->content = cut == PowerCut::kLoseSome ? SomeOf(*node, &random) : node->durable_content;
    node->durable_content = node->content;
    node->names = node->durable_names;
  });
}

namespace {

Node* Walk(Disk* disk, const std::string& path) {
  Node* node = disk->root.get();
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
  return Walk(disk_.get(), path)->content;
}

void MemoryFileSystem::Write(const std::string& path, std::string content) {
  const auto [folder, name] = SplitPath(path);
  Node* parent = Walk(disk_.get(), folder);
  std::shared_ptr<Node>& node = parent->names[name];
  if (node == nullptr) node = parent->durable_names[name] = std::make_shared<Node>();
  node->content = node->durable_content = std::move(content);
}

void MemoryFileSystem::Remove(const std::string& path) {
  const auto [folder, name] = SplitPath(path);
  Walk(disk_.get(), folder)->names.erase(name);
  Walk(disk_.get(), folder)->durable_names.erase(name);
}

std::vector<std::string> MemoryFileSystem::List(const std::string& path) {
  std::vector<std::string> names;
  for (const auto& [name, node] : Walk(disk_.get(), path)->names) names.push_back(name);
  return names;
}

uint64_t MemoryFileSystem::BytesOnDisk(const std::string& path) {
  uint64_t bytes = 0;
  VisitAll(Walk(disk_.get(), path), [&](Node* node) { bytes += node->content.size(); });
  return bytes;
}

}  // namespace moesaic
