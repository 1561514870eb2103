// Any bytes as what an agent gets from others: commands of its coordinator, calls of peers and
// workers (AgentService), and a peer's answers while its snapshots are copied. The input is a kind,
// one byte, and a message.
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/foreign_text.h"
#include "launcher/agent/command_check.h"
#include "launcher/agent/orted_command.h"
#include "launcher/agent/snapshot_memory.h"
#include "tests/base/scratch_folder.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {
namespace {

constexpr uint64_t kFloats = 64;
constexpr char kFolder[] = "/dev/shm/agent";

void Require(bool holds) {
  if (!holds) std::abort();
}

template <typename Message, typename Take>
void Parse(const std::string& bytes, const Take& take) {
  Message message;
  if (message.ParseFromString(bytes)) take(message);
}

// An agent's folder with one snapshot: rank 0 of generation 3 of job "j", at step 5.
class Memory {
 public:
  Memory() {
    std::filesystem::create_directory(dir_ + "/j");
    SnapshotIndex index;
    index.set_job("j");
    index.set_generation(3);
    index.set_ranks(1);
    index.mutable_state()->set_step(5);
    ArenaObject* object = index.add_objects();
    object->set_kind(MASTER);
    object->set_name("u");
    object->set_element(ELEMENT_F32);
    object->add_shape(kFloats);
    object->mutable_box()->add_offset(0);
    object->mutable_box()->add_length(kFloats);
    auto writer = *SnapshotWriter::Create(dir_ + "/j/g3-r0.0", index);
    const std::vector<float> values(kFloats, 1.5f);
    writer->CopyObject(0, std::as_bytes(std::span(values)));
    Require(writer->Finish().ok());
    memory_ = std::make_unique<SnapshotMemory>(SnapshotMemoryOptions{dir_, 0});
    memory_->Admit("j", 3, "token");
  }

  SnapshotMemory* get() { return memory_.get(); }
  void RemoveCopies() { std::filesystem::remove_all(dir_ + "/j/copies"); }

 private:
  const ScratchFolder scratch_;
  const std::string dir_ = scratch_.path();
  std::unique_ptr<SnapshotMemory> memory_;
};

// A peer that says whatever the input says.
class AnyPeer : public SnapshotPeer {
 public:
  explicit AnyPeer(SnapshotIndex index) : index_(std::move(index)) {}
  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef&) override { return index_; }
  absl::Status Read(const ReadSnapshotRequest& request, const Sink& sink) override {
    for (const ReadSnapshotRequest::Range& range : request.ranges()) {
      const std::vector<std::byte> piece(std::min<uint64_t>(range.bytes(), 4096));
      if (const absl::Status taken = sink(piece); !taken.ok()) return taken;
    }
    return absl::OkStatus();
  }

 private:
  const SnapshotIndex index_;
};

SnapshotRef Known(SnapshotRef ref) {
  if (ref.job().empty()) ref.set_job("j");
  if (ref.generation() == 0) ref.set_generation(3);
  if (ref.step() == 0) ref.set_step(5);
  if (ref.asking_generation() == 0) ref.set_asking_generation(3);
  if (ref.token().empty()) ref.set_token("token");
  return ref;
}

void Command(const AgentCommand& command) {
  if (!CheckCommand(command, kFolder).ok()) return;
  if (command.has_start()) Require(IsName(command.start().job()));
  for (const RankArena& arena : command.persist().arenas()) {
    const absl::StatusOr<std::string> below =
        ArenaBelow(kFolder, command.persist().job(), arena.path());
    Require(below.ok() && below->find("..") == std::string::npos && below->front() != '/');
  }
}

void RunDaemon(const RunDaemonRequest& request) {
  const std::vector<std::string> words(request.arguments().begin(), request.arguments().end());
  const absl::StatusOr<std::vector<std::string>> read = ReadRemoteCommand(words);
  for (const auto& given : {absl::StatusOr<std::vector<std::string>>(words), read}) {
    if (!given.ok()) continue;
    const absl::StatusOr<std::vector<std::string>> checked = CheckOrtedCommand(*given);
    Require(!checked.ok() || checked->front() == "orted");
  }
}

void Read(Memory* memory, ReadSnapshotRequest request) {
  *request.mutable_snapshot() = Known(request.snapshot());
  uint64_t asked = 0;
  for (const ReadSnapshotRequest::Range& range : request.ranges()) asked += range.bytes();
  uint64_t given = 0;
  auto read = memory->get()->Read(request);
  if (!read.ok()) return;
  while (const auto piece = read->Next()) given += piece->bytes.size();
  Require(given == asked);
}

void Replicate(Memory* memory, SnapshotIndex index) {
  ReplicateSnapshot request;
  request.set_job("j");
  request.set_generation(3);
  request.set_step(5);
  request.set_from("peer");
  request.set_token("token");
  request.add_ranks(0);
  if (index.job().empty()) index.set_job("j");
  if (index.generation() == 0) index.set_generation(3);
  if (index.ranks() == 0) index.set_ranks(1);
  if (index.state().step() == 0) index.mutable_state()->set_step(5);
  memory->get()->Replicate(request, std::make_shared<AnyPeer>(std::move(index))).IgnoreError();
  memory->RemoveCopies();
}

}  // namespace
}  // namespace moesaic

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace moesaic;
  static Memory memory;
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0: Parse<AgentCommand>(bytes, Command); break;
    case 1: Parse<RunDaemonRequest>(bytes, RunDaemon); break;
    case 2:
      Parse<SnapshotRef>(
          bytes, [](const SnapshotRef& ref) { memory.get()->Index(Known(ref)).IgnoreError(); });
      break;
    case 3:
      Parse<ReadSnapshotRequest>(
          bytes, [](const ReadSnapshotRequest& request) { Read(&memory, request); });
      break;
    default:
      Parse<SnapshotIndex>(bytes,
                           [](const SnapshotIndex& index) { Replicate(&memory, index); });
  }
  return 0;
}
