#include "trainer/checkpoint/restore.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

constexpr uint64_t kChunkElements = 1 << 20;

// Copies the common part of one shard and one target, as the shard's elements come by.
class TargetCopy {
 public:
  TargetCopy(const Box& shard, const RestoreTarget& target)
      : cursor_(shard, target.box), destination_(target.destination) {
    more_ = cursor_.Next(&run_);
  }

  // `chunk` holds the shard's elements from `first` on; chunks come in order.
  void Take(uint64_t first, std::span<const float> chunk) {
    const uint64_t end = first + chunk.size();
    while (more_ && run_.source < end) {
      const uint64_t count = std::min(run_.count, end - run_.source);
      std::memcpy(destination_.data() + run_.target, chunk.data() + (run_.source - first),
                  count * sizeof(float));
      run_.source += count;
      run_.target += count;
      run_.count -= count;
      if (run_.count == 0) more_ = cursor_.Next(&run_);
    }
  }

 private:
  RunCursor cursor_;
  std::span<float> destination_;
  ElementRun run_;
  bool more_ = false;
};

absl::Status ReadShard(const Folder& step, const ShardRead& read,
                       std::span<const RestoreTarget> targets) {
  absl::StatusOr<std::unique_ptr<ReadableFile>> file = step.Open(read.file);
  if (!file.ok()) return file.status();
  std::vector<TargetCopy> copies;
  for (int t : read.targets) copies.emplace_back(read.shard.box(), targets[static_cast<size_t>(t)]);
  const uint64_t elements = read.shard.bytes() / sizeof(float);
  std::vector<float> chunk;
  Xxh3Stream hash;
  for (uint64_t first = 0; first < elements; first += chunk.size()) {
    chunk.resize(std::min(kChunkElements, elements - first));
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span<float>(chunk));
    absl::Status got = (*file)->ReadAt(read.shard.begin() + first * sizeof(float), bytes);
    if (!got.ok()) return got;
    hash.Update(bytes);
    for (TargetCopy& copy : copies) copy.Take(first, chunk);
  }
  if (hash.Digest() != read.shard.xxh3()) {
    return absl::DataLossError("the bytes do not match their checksum");
  }
  return absl::OkStatus();
}

// Says which file and object; a file that is missing or short is damage.
absl::Status Explain(const absl::Status& status, const Folder& step, const ShardRead& read) {
  if (status.ok()) return status;
  const bool damage = absl::IsNotFound(status) || absl::IsOutOfRange(status);
  return absl::Status(damage ? absl::StatusCode::kDataLoss : status.code(),
                      absl::StrCat(step.path(), "/", read.file, ": object ", read.label, " ",
                                   DescribeBox(read.shard.box()), ": ", status.message()));
}

absl::Status CheckTarget(const RestoreTarget& target, const ShardRead& read) {
  const std::optional<uint64_t> elements = CheckedElements(AsShape(target.box.length()));
  if (read.element_bytes != sizeof(float) || elements != target.destination.size()) {
    return absl::FailedPreconditionError(
        absl::StrCat("object ", read.label, " ", DescribeBox(target.box), " has elements of ",
                     read.element_bytes, " bytes and goes to ", target.destination.size(),
                     " floats"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status RestoreObjects(const Folder& step, const Manifest& manifest,
                            std::span<const RestoreTarget> targets, int threads) {
  std::vector<LoadTarget> wanted;
  for (const RestoreTarget& target : targets) {
    wanted.push_back({target.kind, target.name, target.box});
  }
  absl::StatusOr<LoadPlan> plan = PlanLoad(manifest, wanted);
  if (!plan.ok()) return plan.status();
  for (const ShardRead& read : plan->reads) {
    for (int t : read.targets) {
      absl::Status fits = CheckTarget(targets[static_cast<size_t>(t)], read);
      if (!fits.ok()) return fits;
    }
  }
  return RunTasks(static_cast<int>(plan->reads.size()), threads, [&](int i) {
    const ShardRead& read = plan->reads[static_cast<size_t>(i)];
    return Explain(ReadShard(step, read, targets), step, read);
  });
}

}  // namespace moesaic
