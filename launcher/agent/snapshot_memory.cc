#include "launcher/agent/snapshot_memory.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <system_error>
#include <utility>

#include "absl/strings/match.h"
#include "scheduler/client/random_token.h"
#include "trainer/checkpoint/object_source.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

constexpr char kCopies[] = "copies";
constexpr char kUnfinished[] = ".tmp";
constexpr char kFree[] = ".free";
// Streams from one peer at a time.
constexpr int kStreams = 4;

std::vector<std::string> FilesIn(const std::string& folder) {
  std::vector<std::string> files;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_regular_file(error) && !entry.is_symlink(error)) {
      files.push_back(entry.path().string());
    }
  }
  std::ranges::sort(files);
  return files;
}

HeldSnapshot Describe(const SnapshotIndex& index, const std::string& path, bool copy) {
  HeldSnapshot held;
  held.set_job(index.job());
  held.set_generation(index.generation());
  held.set_step(index.state().step());
  held.set_rank(index.rank());
  held.set_ranks(index.ranks());
  held.set_path(path);
  held.set_copy(copy);
  if (index.rank() == 0) *held.mutable_state() = index.state();
  return held;
}

bool IsNoSnapshot(const std::string& path) {
  return absl::EndsWith(path, kUnfinished) || absl::EndsWith(path, kFree);
}

// Those of one folder that are whole and of this job.
std::vector<HeldSnapshot> HeldIn(const std::string& folder, const std::string& job, bool copy) {
  std::vector<HeldSnapshot> held;
  for (const std::string& path : FilesIn(folder)) {
    if (IsNoSnapshot(path)) continue;
    const auto reader = SnapshotReader::Open(path);
    if (reader.ok() && (*reader)->index().job() == job) {
      held.push_back(Describe((*reader)->index(), path, copy));
    }
  }
  return held;
}

bool IsPlainName(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find('/') == std::string::npos;
}

bool Same(const SnapshotIndex& index, const SnapshotRef& wanted) {
  return index.job() == wanted.job() && index.generation() == wanted.generation() &&
         index.rank() == wanted.rank() && index.state().step() == wanted.step();
}

std::string RankName(uint64_t generation, uint32_t rank) {
  return fmt::format("g{}-r{}", generation, rank);
}

std::string CopyName(uint64_t generation, uint32_t rank, uint64_t step) {
  return fmt::format("{}-s{}", RankName(generation, rank), step);
}

absl::StatusOr<std::shared_ptr<const SnapshotReader>> OpenHeld(const std::string& folder,
                                                               const SnapshotRef& wanted) {
  const std::string own = folder + "/" + RankName(wanted.generation(), wanted.rank());
  const std::string copy = fmt::format(
      "{}/{}/{}", folder, kCopies, CopyName(wanted.generation(), wanted.rank(), wanted.step()));
  for (const std::string& path : {own + ".0", own + ".1", copy}) {
    auto reader = SnapshotReader::Open(path);
    if (reader.ok() && Same((*reader)->index(), wanted)) return *std::move(reader);
  }
  return absl::NotFoundError(fmt::format("no snapshot of rank {} at step {} of generation {} of {}",
                                         wanted.rank(), wanted.step(), wanted.generation(),
                                         wanted.job()));
}

absl::Status CheckRange(const SnapshotIndex& index, const ReadSnapshotRequest::Range& range) {
  const bool there = range.object() < static_cast<uint32_t>(index.objects_size());
  const uint64_t bytes = there ? index.objects(static_cast<int>(range.object())).bytes() : 0;
  if (there && range.begin() <= bytes && range.bytes() <= bytes - range.begin() &&
      range.begin() % kSnapshotChunk == 0 &&
      (range.bytes() % kSnapshotChunk == 0 || range.begin() + range.bytes() == bytes)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      fmt::format("{} bytes from {} on are not whole chunks of object {}", range.bytes(),
                  range.begin(), range.object()));
}

// Copies an object, each chunk straight to its place, where it is checked.
absl::Status FetchObject(SnapshotPeer* peer, const SnapshotRef& snapshot,
                         const SnapshotIndex& index, int i, SnapshotWriter* writer) {
  const ArenaObject& object = index.objects(i);
  ReadSnapshotRequest request;
  *request.mutable_snapshot() = snapshot;
  request.add_ranges()->set_object(static_cast<uint32_t>(i));
  request.mutable_ranges(0)->set_bytes(object.bytes());
  uint64_t at = 0;
  const absl::Status read = peer->Read(request, [&](std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      if (at == object.bytes()) return absl::DataLossError("more bytes came than were asked for");
      const uint64_t chunk = at / kSnapshotChunk;
      const std::span<std::byte> place = writer->Place(i, chunk);
      const auto rest = place.subspan(at % kSnapshotChunk);
      const auto taken = bytes.first(std::min(rest.size(), bytes.size()));
      std::memcpy(rest.data(), taken.data(), taken.size());
      at += taken.size();
      bytes = bytes.subspan(taken.size());
      if (taken.size() < rest.size()) continue;
      if (absl::Status right = CheckChunk(object, chunk, place); !right.ok()) return right;
      writer->NoteChecksum(i, chunk, object.chunk_xxh3(static_cast<int>(chunk)));
    }
    return absl::OkStatus();
  });
  if (!read.ok()) return read;
  return at == object.bytes() ? absl::OkStatus() : absl::DataLossError("the bytes end too early");
}

}  // namespace

std::vector<HeldSnapshot> SnapshotMemory::Held() const {
  std::vector<HeldSnapshot> held;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(options_.folder, error)) {
    if (!entry.is_directory(error) || entry.is_symlink(error)) continue;
    const std::string job = entry.path().filename().string();
    const std::string folder = entry.path().string();
    for (const bool copy : {false, true}) {
      for (HeldSnapshot& snapshot : HeldIn(copy ? folder + "/" + kCopies : folder, job, copy)) {
        held.push_back(std::move(snapshot));
      }
    }
  }
  return held;
}

void SnapshotMemory::Admit(const std::string& job, uint64_t generation, const std::string& token) {
  MutexLock lock(&mutex_);
  tokens_[{job, generation}] = token;
}

void SnapshotMemory::Forget(const std::string& job) {
  {
    MutexLock lock(&mutex_);
    std::erase_if(tokens_, [&](const auto& entry) { return entry.first.first == job; });
  }
  Close(job);
}

absl::Status SnapshotMemory::CheckCaller(const SnapshotRef& snapshot) const {
  if (!IsPlainName(snapshot.job())) return absl::InvalidArgumentError("not the name of a job");
  MutexLock lock(&mutex_);
  const auto found = tokens_.find({snapshot.job(), snapshot.asking_generation()});
  if (found != tokens_.end() && SameToken(found->second, snapshot.token())) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      fmt::format("stale generation: {} of job {} may not read here", snapshot.asking_generation(),
                  snapshot.job()));
}

absl::StatusOr<std::shared_ptr<const SnapshotReader>> SnapshotMemory::Reader(
    const SnapshotRef& wanted) const {
  if (absl::Status known = CheckCaller(wanted); !known.ok()) return known;
  const Name name(wanted.job(), wanted.generation(), wanted.rank(), wanted.step());
  MutexLock lock(&mutex_);
  const auto found = open_.find(name);
  if (found != open_.end()) {
    if (found->second->Stands()) return found->second;
    open_.erase(found);
  }
  auto reader = OpenHeld(JobFolder(wanted.job()), wanted);
  if (reader.ok()) open_[name] = *reader;
  return reader;
}

void SnapshotMemory::Close(const std::string& job) const {
  MutexLock lock(&mutex_);
  std::erase_if(open_, [&](const auto& entry) { return std::get<0>(entry.first) == job; });
}

absl::StatusOr<SnapshotIndex> SnapshotMemory::Index(const SnapshotRef& snapshot) const {
  const auto reader = Reader(snapshot);
  if (!reader.ok()) return reader.status();
  return (*reader)->index();
}

absl::StatusOr<SnapshotRead> SnapshotMemory::Read(const ReadSnapshotRequest& request) const {
  auto reader = Reader(request.snapshot());
  if (!reader.ok()) return reader.status();
  for (const ReadSnapshotRequest::Range& range : request.ranges()) {
    if (absl::Status valid = CheckRange((*reader)->index(), range); !valid.ok()) return valid;
  }
  return SnapshotRead(*std::move(reader), request);
}

std::optional<SnapshotPiece> SnapshotRead::Next() {
  while (range_ < ranges_.size() && given_ == ranges_[range_].bytes()) {
    ++range_;
    given_ = 0;
  }
  if (range_ == ranges_.size()) return std::nullopt;
  const ReadSnapshotRequest::Range& range = ranges_[range_];
  const auto bytes = reader_->Chunk(static_cast<int>(range.object()),
                                    (range.begin() + given_) / kSnapshotChunk);
  given_ += bytes.size();
  return SnapshotPiece{reader_, bytes};
}

absl::Status SnapshotMemory::CheckRoom(uint64_t bytes) const {
  struct statvfs info {};
  if (statvfs(options_.folder.c_str(), &info) != 0) {
    return absl::UnavailableError(fmt::format("{}: {}", options_.folder, strerror(errno)));
  }
  const uint64_t free = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
  if (free >= options_.reserve_bytes && bytes <= free - options_.reserve_bytes) {
    return absl::OkStatus();
  }
  return absl::ResourceExhaustedError(
      fmt::format("a copy of {} bytes does not fit: {} has {} free, of which {} stay free", bytes,
                  options_.folder, free, options_.reserve_bytes));
}

absl::StatusOr<HeldSnapshot> SnapshotMemory::CopyRank(
    const ReplicateSnapshot& request, uint32_t rank,
    const std::shared_ptr<SnapshotPeer>& peer) const {
  SnapshotRef ref;
  ref.set_job(request.job());
  ref.set_generation(request.generation());
  ref.set_step(request.step());
  ref.set_rank(rank);
  ref.set_asking_generation(request.generation());
  ref.set_token(request.token());
  absl::StatusOr<SnapshotIndex> index = FetchSnapshotIndex(peer.get(), ref);
  if (!index.ok()) return index.status();
  uint64_t bytes = index->ByteSizeLong();
  for (const ArenaObject& object : index->objects()) {
    if (object.bytes() > UINT64_MAX - bytes) return absl::DataLossError("its sizes overflow");
    bytes += object.bytes();
  }
  const std::string copies = JobFolder(request.job()) + "/" + kCopies + "/";
  const std::string path = copies + CopyName(request.generation(), rank, request.step());
  const std::string free = copies + RankName(request.generation(), rank) + kFree;
  std::error_code none;
  const uint64_t at_hand = std::filesystem::file_size(free, none);
  absl::Status fits = CheckRoom(none ? bytes : bytes - std::min(bytes, at_hand));
  if (!fits.ok()) return fits;
  if (!none) rename(free.c_str(), (path + kUnfinished).c_str());
  auto writer = SnapshotWriter::Create(path + kUnfinished, *index);
  if (!writer.ok()) return writer.status();
  absl::Status copied = RunTasks(index->objects_size(), kStreams, [&](int i) {
    return FetchObject(peer.get(), ref, *index, i, writer->get());
  });
  if (copied.ok()) copied = (*writer)->Finish();
  if (copied.ok() && rename((path + kUnfinished).c_str(), path.c_str()) != 0) {
    copied = absl::UnavailableError(fmt::format("rename {}: {}", path, strerror(errno)));
  }
  if (copied.ok()) return Describe(*index, path, true);
  unlink((path + kUnfinished).c_str());
  return copied;
}

absl::StatusOr<std::vector<HeldSnapshot>> SnapshotMemory::Replicate(
    const ReplicateSnapshot& request, std::shared_ptr<SnapshotPeer> peer) const {
  if (!IsPlainName(request.job())) return absl::InvalidArgumentError("not the name of a job");
  const std::string folder = JobFolder(request.job()) + "/" + kCopies;
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) return absl::UnavailableError(fmt::format("make {}: {}", folder, error.message()));
  std::vector<HeldSnapshot> copies;
  for (const uint32_t rank : request.ranks()) {
    absl::StatusOr<HeldSnapshot> copy = CopyRank(request, rank, peer);
    if (!copy.ok()) return copy.status();
    copies.push_back(*std::move(copy));
  }
  return copies;
}

void SnapshotMemory::Keep(const KeepSnapshots& keep, uint64_t running) const {
  if (!IsPlainName(keep.job())) return;
  const auto needed = [&](const SnapshotIndex& index) {
    return std::ranges::any_of(keep.kept(), [&](const KeepSnapshots::Kept& kept) {
      return kept.generation() == index.generation() && kept.step() == index.state().step();
    });
  };
  std::pair<uint64_t, uint64_t> newest;
  for (const KeepSnapshots::Kept& kept : keep.kept()) {
    newest = std::max(newest, std::pair(kept.generation(), kept.step()));
  }
  // Ranks may have made it since the list was: a command may come late.
  const auto is_newer = [&](const SnapshotIndex& index) {
    return std::pair(index.generation(), index.state().step()) > newest;
  };
  const std::string folder = JobFolder(keep.job());
  const std::string running_prefix = fmt::format("{}/g{}-r", folder, running);
  std::set<std::string> alive;  // ranks that have a copy which is kept
  std::vector<std::pair<std::string, std::string>> dropped;  // copies, and where their memory goes
  for (const std::string& from : {folder, folder + "/" + kCopies}) {
    for (const std::string& path : FilesIn(from)) {
      if (IsNoSnapshot(path) || absl::StartsWith(path, running_prefix)) continue;
      const auto reader = SnapshotReader::Open(path);
      const bool kept = reader.ok() && (needed((*reader)->index()) ||
                                        (from == folder && is_newer((*reader)->index())));
      if (from == folder || !reader.ok()) {
        if (!kept) unlink(path.c_str());  // not needed, or left half-written by a rank that died
        continue;
      }
      const SnapshotIndex& index = (*reader)->index();
      const std::string free = from + "/" + RankName(index.generation(), index.rank()) + kFree;
      if (kept) alive.insert(free);
      if (!kept) dropped.emplace_back(path, free);
    }
  }
  for (const auto& [path, free] : dropped) {
    if (!alive.contains(free) || rename(path.c_str(), free.c_str()) != 0) unlink(path.c_str());
  }
  for (const std::string& path : FilesIn(folder + "/" + kCopies)) {
    if (absl::EndsWith(path, kFree) && !alive.contains(path)) unlink(path.c_str());
  }
  Close(keep.job());
}

}  // namespace moesaic
