#include "launcher/agent/snapshot_memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "launcher/agent/peer_service.h"
#include "tests/base/scratch_folder.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t kFloats = 700000;  // three chunks

// Another agent's memory, without a network between.
class DirectPeer : public SnapshotPeer {
 public:
  explicit DirectPeer(const SnapshotMemory* memory) : memory_(memory) {}
  absl::StatusOr<SnapshotIndex> Index(const SnapshotRef& snapshot) override {
    return memory_->Index(snapshot);
  }
  absl::Status Read(const ReadSnapshotRequest& request, const Sink& sink) override {
    absl::StatusOr<SnapshotRead> read = memory_->Read(request);
    if (!read.ok()) return read.status();
    while (const std::optional<SnapshotPiece> piece = read->Next()) {
      if (dies_after-- == 0) return absl::UnavailableError("the host is away");
      EXPECT_LE(piece->bytes.size(), kSnapshotChunk);
      // As a network may cut it.
      for (const auto part : {piece->bytes.first(1), piece->bytes.subspan(1)}) {
        if (absl::Status taken = sink(part); !taken.ok()) return taken;
      }
    }
    return absl::OkStatus();
  }

  std::atomic<int> dies_after = -1;  // pieces

 private:
  const SnapshotMemory* const memory_;
};

class SnapshotMemoryTest : public ::testing::Test {
 protected:
  SnapshotMemoryTest() {
    for (const char* agent : {"a", "b"}) {
      std::filesystem::create_directories(root_ + "/" + agent + "/j");
    }
    a_.Admit("j", 3, "secret");
  }

  // Rank `rank` of generation 3, on agent a.
  std::string Write(uint32_t rank, uint64_t step, int buffer, bool finish = true) const {
    SnapshotIndex index;
    index.set_job("j");
    index.set_generation(3);
    index.set_rank(rank);
    index.set_ranks(2);
    index.mutable_state()->set_step(step);
    for (const char* name : {"u", "w"}) {
      ArenaObject* object = index.add_objects();
      object->set_kind(MASTER);
      object->set_name(name);
      object->set_element(ELEMENT_F32);
      object->add_shape(kFloats);
      object->mutable_box()->add_offset(0);
      object->mutable_box()->add_length(kFloats);
    }
    const std::string path =
        root_ + "/a/j/g3-r" + std::to_string(rank) + "." + std::to_string(buffer);
    auto writer = *SnapshotWriter::Create(path, index);
    std::vector<float> values(kFloats);
    for (int i = 0; i < 2; ++i) {
      for (size_t at = 0; at < values.size(); ++at) {
        values[at] = static_cast<float>(at * (i + 1) + step);
      }
      writer->CopyObject(i, std::as_bytes(std::span(values)));
    }
    if (finish) {
      EXPECT_TRUE(writer->Finish().ok());
    }
    return path;
  }

  static ReplicateSnapshot Request(uint64_t step, std::vector<uint32_t> ranks = {0, 1}) {
    ReplicateSnapshot request;
    request.set_job("j");
    request.set_generation(3);
    request.set_step(step);
    request.set_from("a");
    request.set_token("secret");
    request.mutable_ranks()->Assign(ranks.begin(), ranks.end());
    return request;
  }
  static SnapshotRef Ref(uint64_t step, const std::string& token = "secret") {
    SnapshotRef ref;
    ref.set_job("j");
    ref.set_generation(3);
    ref.set_step(step);
    ref.set_asking_generation(3);
    ref.set_token(token);
    return ref;
  }
  static std::vector<std::string> Names(const SnapshotMemory& memory) {
    std::vector<std::string> names;
    for (const HeldSnapshot& held : memory.Held()) {
      names.push_back(std::filesystem::path(held.path()).filename().string());
    }
    return names;
  }
  static std::string Content(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }

  const ScratchFolder scratch_;
  const std::string root_ = scratch_.path();
  SnapshotMemory a_{{.folder = root_ + "/a"}};
  SnapshotMemory b_{{.folder = root_ + "/b"}};
  std::shared_ptr<DirectPeer> peer_ = std::make_shared<DirectPeer>(&a_);
};

TEST_F(SnapshotMemoryTest, HoldsWhatIsWholeAndNothingElse) {
  Write(0, 10, 0);
  Write(1, 10, 1);
  Write(1, 20, 0, /*finish=*/false);
  std::ofstream(root_ + "/a/j/g3-r5.0") << "MOEARENA and then rubbish";
  EXPECT_THAT(Names(a_), ElementsAre("g3-r0.0", "g3-r1.1"));
  const std::vector<HeldSnapshot> held = a_.Held();
  EXPECT_EQ(held[0].step(), 10u);
  EXPECT_EQ(held[0].ranks(), 2u);
  EXPECT_EQ(held[0].state().step(), 10u);
  EXPECT_FALSE(held[1].has_state());
  EXPECT_FALSE(held[1].copy());
}

TEST_F(SnapshotMemoryTest, ACopyHasTheSameBytesAndOlderOnesGoWhenTold) {
  for (uint64_t step : {10, 20}) {
    for (uint32_t rank : {0u, 1u}) Write(rank, step, static_cast<int>(step / 10 - 1));
    const auto copies = b_.Replicate(Request(step), peer_);
    ASSERT_TRUE(copies.ok()) << copies.status();
    ASSERT_EQ(copies->size(), 2u);
    EXPECT_TRUE((*copies)[0].copy());
    EXPECT_EQ(Content((*copies)[1].path()),
              Content(root_ + "/a/j/g3-r1." + std::to_string(step / 10 - 1)));
  }
  EXPECT_THAT(Names(b_),
              ElementsAre("g3-r0-s10", "g3-r0-s20", "g3-r1-s10", "g3-r1-s20"));
  KeepSnapshots keep;
  keep.set_job("j");
  keep.add_kept()->set_generation(3);
  keep.mutable_kept(0)->set_step(20);
  b_.Keep(keep, 0);
  EXPECT_THAT(Names(b_), ElementsAre("g3-r0-s20", "g3-r1-s20"));
}

// Whatever goes wrong, what was there before is there still, whole, and nothing half-made is.
TEST_F(SnapshotMemoryTest, C1_AFailedCopyLeavesTheOldOneWhole) {
  Write(0, 10, 0);
  ASSERT_TRUE(b_.Replicate(Request(10, {0}), peer_).ok());
  const std::string old = Content(root_ + "/b/j/copies/g3-r0-s10");
  const std::string path = Write(0, 20, 1);
  for (int pieces : {0, 1, 3, 5}) {
    peer_->dies_after = pieces;
    EXPECT_TRUE(absl::IsUnavailable(b_.Replicate(Request(20, {0}), peer_).status())) << pieces;
    EXPECT_THAT(Names(b_), ElementsAre("g3-r0-s10"));
    EXPECT_EQ(Content(root_ + "/b/j/copies/g3-r0-s10"), old);
    EXPECT_FALSE(std::filesystem::exists(root_ + "/b/j/copies/g3-r0-s20.tmp"));
  }
  peer_->dies_after = -1;
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(-100, std::ios::end).put('x');
  file.close();
  const absl::Status damaged = b_.Replicate(Request(20, {0}), peer_).status();
  EXPECT_TRUE(absl::IsDataLoss(damaged)) << damaged;
  EXPECT_THAT(damaged.message(), HasSubstr("master/w"));
  EXPECT_THAT(Names(b_), ElementsAre("g3-r0-s10"));

  const SnapshotMemory full({.folder = root_ + "/b", .reserve_bytes = 1ull << 60});
  Write(0, 30, 1);
  const absl::Status refused = full.Replicate(Request(30, {0}), peer_).status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused));
  EXPECT_THAT(refused.message(), HasSubstr("does not fit"));
  EXPECT_THAT(Names(b_), ElementsAre("g3-r0-s10"));
}

TEST_F(SnapshotMemoryTest, ACallerMustKnowTheTokenOfAGenerationThatRanHere) {
  Write(0, 10, 0);
  EXPECT_TRUE(a_.Index(Ref(10)).ok());
  EXPECT_TRUE(absl::IsNotFound(a_.Index(Ref(20)).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(a_.Index(Ref(10, "guess")).status()));
  SnapshotRef other = Ref(10);
  other.set_asking_generation(4);
  EXPECT_TRUE(absl::IsFailedPrecondition(a_.Index(other).status()));
  a_.Admit("j", 4, "next");
  other.set_token("next");
  EXPECT_TRUE(a_.Index(other).ok());
  other.set_job("../b/j");
  EXPECT_TRUE(absl::IsInvalidArgument(a_.Index(other).status()));
  a_.Forget("j");
  EXPECT_TRUE(absl::IsFailedPrecondition(a_.Index(Ref(10)).status()));
}

TEST_F(SnapshotMemoryTest, RangesAreCheckedAndExact) {
  Write(0, 10, 0);
  const auto read = [&](uint32_t object, uint64_t begin, uint64_t bytes, std::string* into) {
    ReadSnapshotRequest request;
    *request.mutable_snapshot() = Ref(10);
    auto* range = request.add_ranges();
    range->set_object(object);
    range->set_begin(begin);
    range->set_bytes(bytes);
    auto opened = a_.Read(request);
    if (!opened.ok()) return opened.status();
    while (const auto piece = opened->Next()) {
      into->append(reinterpret_cast<const char*>(piece->bytes.data()), piece->bytes.size());
    }
    return absl::OkStatus();
  };
  std::string got;
  const uint64_t begin = 2 * kSnapshotChunk;
  ASSERT_TRUE(read(1, begin, kFloats * 4 - begin, &got).ok());
  ASSERT_EQ(got.size(), kFloats * 4 - begin);
  for (uint64_t i = 0; i < got.size() / 4; ++i) {
    float value = 0;
    std::memcpy(&value, got.data() + i * 4, 4);
    ASSERT_EQ(value, static_cast<float>((begin / 4 + i) * 2 + 10));
  }
  for (const auto& [object, from, bytes] : std::vector<std::tuple<uint32_t, uint64_t, uint64_t>>{
           {2, 0, kSnapshotChunk},
           {0, kFloats * 4, 1},
           {0, kFloats * 4 + 1, 0},
           {0, 0, 8},
           {0, 8, kSnapshotChunk},
           {0, kSnapshotChunk, UINT64_MAX}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(read(object, from, bytes, &got)));
  }
}

TEST_F(SnapshotMemoryTest, C11_KeepsWhatIsAskedForAndTheBuffersOfWhatRuns) {
  Write(0, 10, 0);
  Write(0, 20, 1);
  ASSERT_TRUE(b_.Replicate(Request(10, {0}), peer_).ok());
  KeepSnapshots keep;
  keep.set_job("j");
  keep.add_kept()->set_generation(3);
  keep.mutable_kept(0)->set_step(20);
  a_.Keep(keep, /*running=*/3);
  EXPECT_THAT(Names(a_), ElementsAre("g3-r0.0", "g3-r0.1"));
  a_.Keep(keep, /*running=*/4);
  EXPECT_THAT(Names(a_), ElementsAre("g3-r0.1"));
  // The ranks stop at step 30; a list from before that comes late.
  Write(0, 30, 0);
  a_.Keep(keep, /*running=*/0);
  EXPECT_THAT(Names(a_), ElementsAre("g3-r0.0", "g3-r0.1"));
  keep.mutable_kept(0)->set_step(30);
  a_.Keep(keep, /*running=*/0);
  EXPECT_THAT(Names(a_), ElementsAre("g3-r0.0"));
  Write(1, 20, 0, /*finish=*/false);  // its rank died
  a_.Keep(keep, 0);
  EXPECT_FALSE(std::filesystem::exists(root_ + "/a/j/g3-r1.0"));
  b_.Keep(keep, 0);
  EXPECT_THAT(Names(b_), IsEmpty());
}

// A copy that is dropped leaves its memory for the next one, and for no longer than there is one.
TEST_F(SnapshotMemoryTest, C11_TheMemoryOfADroppedCopyIsUsedAgain) {
  const std::string copies = root_ + "/b/j/copies/";
  const auto keep = [&](std::vector<uint64_t> steps) {
    KeepSnapshots kept;
    kept.set_job("j");
    for (const uint64_t step : steps) {
      auto* entry = kept.add_kept();
      entry->set_generation(3);
      entry->set_step(step);
    }
    b_.Keep(kept, 0);
  };
  const auto files = [&] {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(copies)) {
      names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  };
  for (uint64_t step : {10, 20, 30}) {
    Write(0, step, static_cast<int>(step / 10 % 2));
    const auto copy = b_.Replicate(Request(step, {0}), peer_);
    ASSERT_TRUE(copy.ok()) << copy.status();
    EXPECT_EQ(Content((*copy)[0].path()),
              Content(root_ + "/a/j/g3-r0." + std::to_string(step / 10 % 2)));
    if (step == 10) continue;
    keep({step});
    EXPECT_THAT(files(), ElementsAre("g3-r0-s" + std::to_string(step), "g3-r0.free"));
    EXPECT_THAT(Names(b_), ElementsAre("g3-r0-s" + std::to_string(step)));
  }
  // No room for a third one: what is there is enough.
  const SnapshotMemory full({.folder = root_ + "/b", .reserve_bytes = 1ull << 60});
  EXPECT_TRUE(absl::IsResourceExhausted(full.Replicate(Request(30, {0}), peer_).status()));
  keep({});
  EXPECT_THAT(files(), IsEmpty());
}

TEST_F(SnapshotMemoryTest, AReaderIsOpenedOnceAndGoesWithItsSnapshot) {
  const std::string path = Write(0, 10, 0);
  const auto read = [&](uint64_t step) {
    ReadSnapshotRequest request;
    *request.mutable_snapshot() = Ref(step);
    request.add_ranges()->set_bytes(kSnapshotChunk);
    auto opened = a_.Read(request);
    return opened.ok() ? opened->Next()->from : nullptr;
  };
  const auto first = read(10);
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(read(10), first);
  Write(0, 20, 0);  // over it
  EXPECT_EQ(read(10), nullptr);
  const auto second = read(20);
  ASSERT_NE(second, nullptr);
  KeepSnapshots keep;
  keep.set_job("j");
  keep.add_kept()->set_generation(3);
  keep.mutable_kept(0)->set_step(30);
  a_.Keep(keep, 0);
  EXPECT_EQ(read(20), nullptr);
  EXPECT_EQ(second.use_count(), 1);  // nobody else has it mapped
}

// The bytes go straight from one memory to the other; what the peer refuses is its answer.
TEST_F(SnapshotMemoryTest, ACopyOverTheNetworkHasTheSameBytes) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "checksums take longer than the call's deadline";
#endif
  const auto service = PeerService::Start({}, nullptr, &a_);
  ASSERT_TRUE(service.ok()) << service.status();
  const std::shared_ptr<SnapshotPeer> peer =
      ConnectToSnapshotPeer((*service)->address(), std::nullopt);
  for (uint32_t rank : {0u, 1u}) Write(rank, 10, 0);
  const auto copies = b_.Replicate(Request(10), peer);
  ASSERT_TRUE(copies.ok()) << copies.status();
  EXPECT_EQ(Content((*copies)[1].path()), Content(root_ + "/a/j/g3-r1.0"));

  ReadSnapshotRequest request;
  *request.mutable_snapshot() = Ref(10);
  request.add_ranges()->set_bytes(kFloats * 4);
  int pieces = 0;
  const absl::Status stopped = peer->Read(request, [&](std::span<const std::byte>) {
    ++pieces;
    return absl::CancelledError("enough");
  });
  EXPECT_TRUE(absl::IsCancelled(stopped)) << stopped;
  EXPECT_EQ(pieces, 1);
  const auto ignore = [](std::span<const std::byte>) { return absl::OkStatus(); };
  request.mutable_ranges(0)->set_bytes(kFloats * 4 + 1);
  EXPECT_TRUE(absl::IsInvalidArgument(peer->Read(request, ignore)));
  *request.mutable_snapshot() = Ref(20);
  EXPECT_TRUE(absl::IsNotFound(peer->Read(request, ignore)));
  *request.mutable_snapshot() = Ref(10, "guess");
  EXPECT_TRUE(absl::IsFailedPrecondition(peer->Read(request, ignore)));
}

}  // namespace
}  // namespace moesaic
