#include "trainer/checkpoint/restore.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/tasks.h"

namespace moesaic {
namespace {

// Copies the common part of one stored part and one target, as the part's bytes come by.
class TargetCopy {
 public:
  TargetCopy(const Box& part, const RestoreTarget& target)
      : cursor_(part, target.box), destination_(target.destination) {
    more_ = cursor_.Next(&run_);
  }

  // The part's elements from `first` on; pieces come in order and begin at or before the next
  // element that is wanted.
  void Take(uint64_t first, std::span<const std::byte> piece) {
    const uint64_t end = first + piece.size() / sizeof(float);
    while (more_ && run_.source < end) {
      const uint64_t count = std::min(run_.count, end - run_.source);
      std::memcpy(destination_.data() + run_.target,
                  piece.data() + (run_.source - first) * sizeof(float), count * sizeof(float));
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

class Restore {
 public:
  Restore(std::span<const ObjectSource* const> sources, std::span<const RestoreTarget> targets,
          int threads)
      : sources_(sources), targets_(targets), threads_(threads), usable_(sources.size(), true) {
    summary_.bytes.resize(sources.size());
  }

  absl::StatusOr<RestoreSummary> Run() {
    std::vector<int> wanted(targets_.size());
    std::iota(wanted.begin(), wanted.end(), 0);
    while (!wanted.empty()) {
      absl::StatusOr<std::vector<PartRead>> reads = Plan(wanted);
      if (!reads.ok()) return reads.status();
      wanted = ReadAll(*reads);
    }
    return std::move(summary_);
  }

 private:
  // Indices of sources and targets are those of the whole restore.
  absl::StatusOr<std::vector<PartRead>> Plan(const std::vector<int>& wanted) const {
    std::vector<std::span<const StoredPart>> parts;
    for (size_t s = 0; s < sources_.size(); ++s) {
      parts.push_back(usable_[s] ? sources_[s]->parts() : std::span<const StoredPart>());
    }
    std::vector<LoadTarget> loads;
    for (int t : wanted) loads.push_back({At(t).kind, At(t).name, At(t).box});
    absl::StatusOr<std::vector<PartRead>> reads = PlanParts(parts, loads);
    if (!reads.ok()) return Refuse(reads.status());
    for (PartRead& read : *reads) {
      for (int& t : read.targets) {
        t = wanted[static_cast<size_t>(t)];
        absl::Status fits = CheckTarget(PartOf(read), At(t));
        if (!fits.ok()) return fits;
      }
    }
    return reads;
  }

  // What is to be said when the sources that are left do not do.
  absl::Status Refuse(const absl::Status& refusal) const {
    if (summary_.bad.empty()) return refusal;
    const auto last = std::ranges::max_element(summary_.bad, {}, &BadSource::source);
    return last->status;
  }

  static absl::Status CheckTarget(const StoredPart& part, const RestoreTarget& target) {
    const std::optional<uint64_t> elements = CheckedElements(AsShape(target.box.length()));
    if (part.element == ELEMENT_F32 && elements == target.destination.size()) {
      return absl::OkStatus();
    }
    return absl::FailedPreconditionError(
        absl::StrCat("object ", ObjectLabel(target.kind, target.name), " ",
                     DescribeBox(target.box), " has elements of ", ElementBytes(part.element),
                     " bytes and goes to ", target.destination.size(), " floats"));
  }

  // Returns the targets that are not whole: a source failed.
  std::vector<int> ReadAll(const std::vector<PartRead>& reads) {
    std::vector<absl::Status> results(reads.size());
    std::vector<std::atomic<bool>> failed(sources_.size());
    // A failure ends the reads of its source only: what others deliver need not be read again.
    RunTasks(static_cast<int>(reads.size()), threads_, [&](int i) {
      const PartRead& read = reads[static_cast<size_t>(i)];
      std::atomic<bool>& source_failed = failed[static_cast<size_t>(read.source)];
      absl::Status& result = results[static_cast<size_t>(i)];
      result = source_failed ? absl::CancelledError("its source has failed") : ReadPart(read);
      if (!result.ok()) source_failed = true;
      return absl::OkStatus();
    }).IgnoreError();
    std::vector<int> missing;
    for (size_t i = 0; i < reads.size(); ++i) {
      const auto source = static_cast<size_t>(reads[i].source);
      if (results[i].ok()) {
        summary_.bytes[source] += reads[i].end - reads[i].begin;
        continue;
      }
      if (!absl::IsCancelled(results[i]) && usable_[source]) {
        summary_.bad.push_back({reads[i].source, results[i]});
      }
      usable_[source] = false;
      missing.insert(missing.end(), reads[i].targets.begin(), reads[i].targets.end());
    }
    std::ranges::sort(missing);
    missing.erase(std::unique(missing.begin(), missing.end()), missing.end());
    return missing;
  }

  absl::Status ReadPart(const PartRead& read) const {
    std::vector<TargetCopy> copies;
    for (int t : read.targets) copies.emplace_back(PartOf(read).box, At(t));
    return sources_[static_cast<size_t>(read.source)]->Read(
        read.part, read.begin, read.end, [&](uint64_t begin, std::span<const std::byte> piece) {
          for (TargetCopy& copy : copies) copy.Take(begin / sizeof(float), piece);
        });
  }

  const StoredPart& PartOf(const PartRead& read) const {
    return sources_[static_cast<size_t>(read.source)]->parts()[static_cast<size_t>(read.part)];
  }
  const RestoreTarget& At(int target) const { return targets_[static_cast<size_t>(target)]; }

  const std::span<const ObjectSource* const> sources_;
  const std::span<const RestoreTarget> targets_;
  const int threads_;
  std::vector<bool> usable_;
  RestoreSummary summary_;
};

}  // namespace

absl::StatusOr<RestoreSummary> RestoreObjects(std::span<const ObjectSource* const> sources,
                                              std::span<const RestoreTarget> targets, int threads) {
  return Restore(sources, targets, threads).Run();
}

absl::Status RestoreObjects(const Folder& step, const Manifest& manifest,
                            std::span<const RestoreTarget> targets, int threads) {
  const std::unique_ptr<ObjectSource> source = StepFolderSource(step, manifest);
  const ObjectSource* const only = source.get();
  return RestoreObjects({&only, 1}, targets, threads).status();
}

}  // namespace moesaic
