#include "trainer/checkpoint/format/snapshot_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/confined_file.h"
#include "base/descriptor.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr char kComplete[9] = "MOEARENA";
constexpr char kWriting[9] = "MOEWRITE";
constexpr uint32_t kVersion = 2;
constexpr uint64_t kAlignment = 64;
// Objects begin at a multiple of this, so that an index which is a few bytes longer than the last
// one does not change the size of the file.
constexpr uint64_t kIndexAlignment = 4096;
constexpr uint64_t kMaxIndexBytes = 256ull << 20;

struct ArenaHeader {
  char magic[8];
  uint32_t version;
  uint32_t zero;
  uint64_t index_bytes;
  uint64_t index_hash;
};
static_assert(sizeof(ArenaHeader) == 32);

// While it hashes and copies, this much is read twice: it fits every cache.
constexpr uint64_t kCopyBlock = 64 << 10;

uint64_t Align(uint64_t offset, uint64_t alignment = kAlignment) {
  return (offset + alignment - 1) / alignment * alignment;
}

absl::Status SystemError(absl::string_view action, const std::string& path, int error) {
  const absl::StatusCode code =
      error == ENOSPC || error == ENOMEM || error == EDQUOT ? absl::StatusCode::kResourceExhausted
      : error == ENOENT                                     ? absl::StatusCode::kNotFound
                                                            : absl::StatusCode::kUnavailable;
  return absl::Status(code, absl::StrCat(action, " ", path, ": ", std::strerror(error)));
}

class Mapping {
 public:
  Mapping() = default;
  Mapping(Mapping&& other) noexcept : bytes_(std::exchange(other.bytes_, {})) {}
  Mapping& operator=(Mapping&& other) noexcept {
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Mapping() {
    if (!bytes_.empty()) munmap(bytes_.data(), bytes_.size());
  }

  static absl::StatusOr<Mapping> Of(int fd, const std::string& path, uint64_t size,
                                    int protection) {
    // Who writes touches every page: to map them in one go takes less than a fault for each.
    const int populate = (protection & PROT_WRITE) != 0 ? MAP_POPULATE : 0;
    void* at = mmap(nullptr, size, protection, MAP_SHARED | populate, fd, 0);
    if (at == MAP_FAILED) return SystemError("map", path, errno);
    Mapping mapping;
    mapping.bytes_ = {static_cast<std::byte*>(at), size};
    return mapping;
  }

  std::span<std::byte> bytes() const { return bytes_; }

 private:
  std::span<std::byte> bytes_;
};

// Gives every object its place; returns the size of the file.
absl::StatusOr<uint64_t> LayOut(SnapshotIndex* index) {
  for (ArenaObject& object : *index->mutable_objects()) {
    const std::optional<uint64_t> bytes =
        CheckedBytes(object.element(), AsShape(object.box().length()));
    absl::Status valid = ValidateBox(object.box(), AsShape(object.shape()));
    if (!valid.ok() || !bytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("snapshot: ", ObjectLabel(object.kind(), object.name()), ": ",
                       valid.ok() ? "unknown element kind" : valid.message()));
    }
    if (SnapshotChunks(*bytes) > kMaxIndexBytes / sizeof(uint64_t)) {
      return absl::ResourceExhaustedError(
          absl::StrCat("snapshot: ", ObjectLabel(object.kind(), object.name()), ": ", *bytes,
                       " bytes are too many for one object"));
    }
    object.set_bytes(*bytes);
    object.mutable_chunk_xxh3()->Resize(static_cast<int>(SnapshotChunks(*bytes)), 0);
    // The largest value, so that the length of the index does not depend on the real ones.
    object.set_offset(UINT64_MAX);
  }
  uint64_t next = Align(sizeof(ArenaHeader) + index->ByteSizeLong(), kIndexAlignment);
  for (ArenaObject& object : *index->mutable_objects()) {
    object.set_offset(next);
    next = Align(next + object.bytes());
  }
  return next;
}

// An existing file of the right size is used again, so that its pages need not be cleared. One of
// another size is replaced and not cut, because a reader may still have it mapped.
absl::StatusOr<Mapping> MapForWriting(const std::string& path, uint64_t size) {
  constexpr int kFlags = O_RDWR | O_NOFOLLOW | O_CLOEXEC;
  {
    Descriptor old(open(path.c_str(), kFlags));
    struct stat info {};
    if (old.get() >= 0 && fstat(old.get(), &info) == 0 && S_ISREG(info.st_mode) &&
        static_cast<uint64_t>(info.st_size) == size) {
      return Mapping::Of(old.get(), path, size, PROT_READ | PROT_WRITE);
    }
  }
  if (unlink(path.c_str()) != 0 && errno != ENOENT) return SystemError("remove", path, errno);
  Descriptor fd(open(path.c_str(), kFlags | O_CREAT | O_EXCL, 0600));
  if (fd.get() < 0) return SystemError("create", path, errno);
  // Reserves the room now: a hole would be a bus error at the first write to a full tmpfs.
  const int error = posix_fallocate(fd.get(), 0, static_cast<off_t>(size));
  absl::StatusOr<Mapping> mapping =
      error != 0 ? SystemError(absl::StrCat("reserve ", size, " bytes for"), path, error)
                 : Mapping::Of(fd.get(), path, size, PROT_READ | PROT_WRITE);
  if (!mapping.ok()) unlink(path.c_str());
  return mapping;
}

class ArenaWriter : public SnapshotWriter {
 public:
  explicit ArenaWriter(std::string path) : path_(std::move(path)) {}

  const SnapshotIndex& index() const override { return index_; }

  absl::Status Begin(SnapshotIndex index) override {
    Clear();
    const absl::StatusOr<uint64_t> size = LayOut(&index);
    if (!size.ok()) return size.status();
    if (mapping_.bytes().size() != *size) {
      mapping_ = Mapping();  // its room may be needed
      absl::StatusOr<Mapping> mapping = MapForWriting(path_, *size);
      if (!mapping.ok()) return mapping.status();
      mapping_ = *std::move(mapping);
      Clear();
    }
    index_ = std::move(index);
    return absl::OkStatus();
  }

  void Clear() override {
    if (!mapping_.bytes().empty()) Mark(kWriting);
  }

  void CopyChunk(int i, uint64_t chunk, std::span<const std::byte> bytes) override {
    std::byte* to = Place(i, chunk).data();
    Xxh3ShortStream hash;
    for (uint64_t at = 0; at < bytes.size(); at += kCopyBlock) {
      const auto block = bytes.subspan(at, std::min<uint64_t>(kCopyBlock, bytes.size() - at));
      hash.Update(block);
      std::memcpy(to + at, block.data(), block.size());
    }
    NoteChecksum(i, chunk, hash.Digest());
  }

  std::span<std::byte> Place(int i, uint64_t chunk) override {
    const ArenaObject& object = index_.objects(i);
    const uint64_t at = chunk * kSnapshotChunk;
    return mapping_.bytes().subspan(object.offset() + at,
                                    std::min(kSnapshotChunk, object.bytes() - at));
  }

  void NoteChecksum(int i, uint64_t chunk, uint64_t xxh3) override {
    index_.mutable_objects(i)->set_chunk_xxh3(static_cast<int>(chunk), xxh3);
  }

  absl::Status Finish() override {
    const std::string index = index_.SerializeAsString();
    const std::span<std::byte> place = mapping_.bytes().subspan(sizeof(ArenaHeader), index.size());
    std::memcpy(place.data(), index.data(), index.size());
    header()->version = kVersion;
    header()->zero = 0;
    header()->index_bytes = index.size();
    header()->index_hash = Xxh3Short(place);
    // The magic goes last: whoever sees it sees all that was written before it.
    Mark(kComplete);
    return absl::OkStatus();
  }

 private:
  ArenaHeader* header() { return reinterpret_cast<ArenaHeader*>(mapping_.bytes().data()); }
  void Mark(const char* text) {
    uint64_t magic = 0;
    std::memcpy(&magic, text, sizeof(magic));
    __atomic_store_n(reinterpret_cast<uint64_t*>(header()), magic, __ATOMIC_SEQ_CST);
  }

  const std::string path_;
  Mapping mapping_;
  SnapshotIndex index_;
};

struct CheckedIndex {
  SnapshotIndex index;
  uint64_t hash = 0;
};

class ArenaReader : public SnapshotReader {
 public:
  ArenaReader(Mapping mapping, CheckedIndex checked)
      : mapping_(std::move(mapping)),
        index_(std::move(checked.index)),
        index_hash_(checked.hash) {}

  const SnapshotIndex& index() const override { return index_; }

  absl::Status Read(int i, uint64_t begin, uint64_t end, const Sink& sink) const override {
    const ArenaObject& object = index_.objects(i);
    for (uint64_t at = begin / kSnapshotChunk * kSnapshotChunk; at < std::min(end, object.bytes());
         at += kSnapshotChunk) {
      const auto bytes = Chunk(i, at / kSnapshotChunk);
      absl::Status status = CheckChunk(object, at / kSnapshotChunk, bytes);
      if (status.ok()) status = sink(at, bytes);
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  std::span<const std::byte> Chunk(int i, uint64_t chunk) const override {
    const ArenaObject& object = index_.objects(i);
    const uint64_t at = chunk * kSnapshotChunk;
    return mapping_.bytes().subspan(object.offset() + at,
                                    std::min(kSnapshotChunk, object.bytes() - at));
  }

  bool Stands() const override {
    ArenaHeader now;
    std::memcpy(&now, mapping_.bytes().data(), sizeof(now));
    return std::memcmp(now.magic, kComplete, sizeof(now.magic)) == 0 &&
           now.index_hash == index_hash_;
  }

 private:
  Mapping mapping_;
  const SnapshotIndex index_;
  const uint64_t index_hash_;
};

// Objects must lie one after another, as the writer lays them out.
absl::Status CheckIndex(const SnapshotIndex& index, uint64_t index_bytes, uint64_t file_bytes) {
  uint64_t free = sizeof(ArenaHeader) + index_bytes;
  for (const ArenaObject& object : index.objects()) {
    const std::optional<uint64_t> bytes =
        CheckedBytes(object.element(), AsShape(object.box().length()));
    if (!ValidateBox(object.box(), AsShape(object.shape())).ok() || bytes != object.bytes() ||
        object.offset() % kAlignment != 0 || object.offset() < free ||
        object.offset() > file_bytes || object.bytes() > file_bytes - object.offset() ||
        static_cast<uint64_t>(object.chunk_xxh3_size()) != SnapshotChunks(object.bytes())) {
      return absl::DataLossError(
          absl::StrCat("object ", ObjectLabel(object.kind(), object.name()), " ",
                       DescribeBox(object.box()), " does not fit its place in the file"));
    }
    free = object.offset() + object.bytes();
  }
  return absl::OkStatus();
}

absl::StatusOr<CheckedIndex> ReadIndex(std::span<const std::byte> file) {
  if (file.size() < sizeof(ArenaHeader)) return absl::DataLossError("it is too short");
  ArenaHeader header;
  std::memcpy(&header, file.data(), sizeof(header));
  if (std::memcmp(header.magic, kComplete, sizeof(header.magic)) != 0) {
    return absl::DataLossError(std::memcmp(header.magic, kWriting, sizeof(header.magic)) == 0
                                   ? "it was not finished"
                                   : "it is no snapshot");
  }
  if (header.version != kVersion || header.zero != 0) {
    return absl::DataLossError(absl::StrCat("version ", header.version, " is not read here"));
  }
  if (header.index_bytes > kMaxIndexBytes ||
      header.index_bytes > file.size() - sizeof(ArenaHeader)) {
    return absl::DataLossError(absl::StrCat("an index of ", header.index_bytes,
                                            " bytes does not fit a file of ", file.size()));
  }
  // A copy: its owner may begin the next snapshot meanwhile.
  const auto place = file.subspan(sizeof(ArenaHeader), header.index_bytes);
  const std::string bytes(reinterpret_cast<const char*>(place.data()), place.size());
  CheckedIndex checked;
  checked.hash = Xxh3Short(std::as_bytes(std::span(bytes)));
  if (checked.hash != header.index_hash || !checked.index.ParseFromString(bytes)) {
    return absl::DataLossError("its index is damaged");
  }
  absl::Status valid = CheckIndex(checked.index, header.index_bytes, file.size());
  if (!valid.ok()) return valid;
  return checked;
}

}  // namespace

absl::Status CheckChunk(const ArenaObject& object, uint64_t chunk,
                        std::span<const std::byte> bytes) {
  if (Xxh3Short(bytes) == object.chunk_xxh3(static_cast<int>(chunk))) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("object ", ObjectLabel(object.kind(), object.name()), " ",
                                          DescribeBox(object.box()), ": the bytes from ",
                                          chunk * kSnapshotChunk,
                                          " on do not match their checksum"));
}

absl::Status CheckSnapshotIndex(const SnapshotIndex& index) {
  return CheckIndex(index, index.ByteSizeLong(), UINT64_MAX);
}

absl::StatusOr<std::unique_ptr<SnapshotWriter>> SnapshotWriter::Create(const std::string& path,
                                                                       SnapshotIndex index) {
  auto writer = std::make_unique<ArenaWriter>(path);
  if (absl::Status begun = writer->Begin(std::move(index)); !begun.ok()) return begun;
  return writer;
}

absl::StatusOr<std::unique_ptr<SnapshotReader>> SnapshotReader::Open(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return OpenBelow(".", path);
  return OpenBelow(slash == 0 ? "/" : path.substr(0, slash), path.substr(slash + 1));
}

absl::StatusOr<std::unique_ptr<SnapshotReader>> SnapshotReader::OpenBelow(const std::string& root,
                                                                          const std::string& file) {
  const absl::StatusOr<int> opened = OpenConfined(root, file);
  if (!opened.ok()) return opened.status();
  const Descriptor fd(*opened);
  const std::string path = absl::StrCat(root, "/", file);
  struct stat info {};
  if (fstat(fd.get(), &info) != 0) return SystemError("stat", path, errno);
  if (info.st_size < static_cast<off_t>(sizeof(ArenaHeader))) {
    return absl::DataLossError(absl::StrCat("snapshot ", path, ": it is too short"));
  }
  absl::StatusOr<Mapping> mapping =
      Mapping::Of(fd.get(), path, static_cast<uint64_t>(info.st_size), PROT_READ);
  if (!mapping.ok()) return mapping.status();
  absl::StatusOr<CheckedIndex> index = ReadIndex(mapping->bytes());
  if (!index.ok()) {
    return absl::Status(index.status().code(),
                        absl::StrCat("snapshot ", path, ": ", index.status().message()));
  }
  return std::make_unique<ArenaReader>(*std::move(mapping), *std::move(index));
}

}  // namespace moesaic
