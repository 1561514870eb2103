#include "trainer/checkpoint/format/load_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job_spec.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/coverage.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

// Place of an element of the common part within `box`, row-major: of its first, or of its last.
uint64_t PlaceIn(const Box& box, const Box& common, bool last) {
  uint64_t place = 0;
  for (int dim = 0; dim < box.length_size(); ++dim) {
    place = place * box.length(dim) + common.offset(dim) - box.offset(dim) +
            (last ? common.length(dim) - 1 : 0);
  }
  return place;
}

Box CountedFrom(const Box& origin, Box box) {
  for (int dim = 0; dim < box.offset_size(); ++dim) {
    box.set_offset(dim, box.offset(dim) - origin.offset(dim));
  }
  return box;
}

// The parts of one object, in the order of the sources that have them.
using PartsByObject =
    absl::flat_hash_map<std::pair<int, absl::string_view>, std::vector<std::pair<int, int>>>;

struct ChosenPart {
  int source = 0;
  int part = 0;
  Box common;  // with the target
};

class PartPlanner {
 public:
  explicit PartPlanner(std::span<const std::span<const StoredPart>> sources) : sources_(sources) {
    for (size_t source = 0; source < sources.size(); ++source) {
      for (size_t part = 0; part < sources[source].size(); ++part) {
        const StoredPart& stored = sources[source][part];
        parts_[{stored.kind, stored.name}].push_back(
            {static_cast<int>(source), static_cast<int>(part)});
      }
    }
  }

  absl::Status Add(int target, const LoadTarget& wanted) {
    const auto found = parts_.find({wanted.kind, wanted.name});
    if (found == parts_.end()) return absl::NotFoundError("no source has it");
    absl::StatusOr<std::vector<ChosenPart>> chosen = Choose(wanted.box, found->second);
    if (!chosen.ok()) return chosen.status();
    for (const ChosenPart& choice : *chosen) {
      const StoredPart& part = At(choice.source, choice.part);
      const uint64_t element = ElementBytes(part.element);
      const uint64_t begin = PlaceIn(part.box, choice.common, false) * element;
      const uint64_t end = (PlaceIn(part.box, choice.common, true) + 1) * element;
      PartRead& read = reads_[{choice.source, choice.part}];
      read.begin = read.targets.empty() ? begin : std::min(read.begin, begin);
      read.end = std::max(read.end, end);
      read.targets.push_back(target);
    }
    return absl::OkStatus();
  }

  std::vector<PartRead> Take() && {
    std::vector<PartRead> reads;
    for (auto& [place, read] : reads_) {
      std::tie(read.source, read.part) = place;
      reads.push_back(std::move(read));
    }
    return reads;
  }

 private:
  const StoredPart& At(int source, int part) const {
    return sources_[static_cast<size_t>(source)][static_cast<size_t>(part)];
  }

  // A part that meets what was chosen before is left out: a later source holds the same once more.
  // Within one source parts that overlap are an error of its maker, and the proof finds them.
  absl::StatusOr<std::vector<ChosenPart>> Choose(
      const Box& target, const std::vector<std::pair<int, int>>& candidates) const {
    std::vector<ChosenPart> chosen;
    std::vector<Box> boxes;
    for (const auto& [source, part] : candidates) {
      const StoredPart& stored = At(source, part);
      absl::Status valid = ValidateBox(target, AsSpan(stored.shape));
      if (!valid.ok()) return absl::FailedPreconditionError(valid.message());
      std::optional<Box> common = Intersect(stored.box, target);
      if (!common) continue;
      const auto taken = [&, source = source](const ChosenPart& other) {
        return other.source < source && Intersect(other.common, *common).has_value();
      };
      if (std::ranges::any_of(chosen, taken)) continue;
      boxes.push_back(CountedFrom(target, *common));
      chosen.push_back({source, part, *std::move(common)});
    }
    std::vector<const Box*> pieces;
    for (const Box& box : boxes) pieces.push_back(&box);
    absl::Status tiled = ProveTiling(AsShape(target.length()), std::move(pieces));
    if (tiled.ok()) return chosen;
    return absl::FailedPreconditionError(absl::StrCat(
        "box ", DescribeBox(target), ", counted from its start: ", tiled.message()));
  }

  static Shape AsSpan(const std::vector<uint64_t>& shape) { return {shape.data(), shape.size()}; }

  const std::span<const std::span<const StoredPart>> sources_;
  PartsByObject parts_;
  std::map<std::pair<int, int>, PartRead> reads_;
};

std::vector<StoredPart> PartsOf(const Manifest& manifest, std::vector<ShardRead>* shards) {
  std::vector<StoredPart> parts;
  for (const StoredObject& object : manifest.objects()) {
    for (const Shard& shard : object.shards()) {
      parts.push_back({object.kind(), object.name(), object.element(),
                       {object.shape().begin(), object.shape().end()}, shard.box(),
                       shard.bytes()});
      shards->push_back({manifest.files(static_cast<int>(shard.file())).name(),
                         ObjectLabel(object.kind(), object.name()), shard,
                         ElementBytes(object.element()), {}});
    }
  }
  return parts;
}

}  // namespace

absl::StatusOr<std::vector<PartRead>> PlanParts(
    std::span<const std::span<const StoredPart>> sources, std::span<const LoadTarget> targets) {
  PartPlanner planner(sources);
  for (size_t t = 0; t < targets.size(); ++t) {
    absl::Status added = planner.Add(static_cast<int>(t), targets[t]);
    if (!added.ok()) {
      return absl::Status(added.code(),
                          absl::StrCat("object ", ObjectLabel(targets[t].kind, targets[t].name),
                                       ": ", added.message()));
    }
  }
  return std::move(planner).Take();
}

absl::StatusOr<LoadPlan> PlanLoad(const Manifest& manifest, std::span<const LoadTarget> targets) {
  std::vector<ShardRead> shards;
  const std::vector<StoredPart> parts = PartsOf(manifest, &shards);
  const std::span<const StoredPart> source = parts;
  absl::StatusOr<std::vector<PartRead>> reads = PlanParts({&source, 1}, targets);
  if (!reads.ok()) {
    return absl::Status(reads.status().code(),
                        absl::StrCat("checkpoint of step ", manifest.state().step(), ": ",
                                     reads.status().message()));
  }
  LoadPlan plan;
  for (PartRead& read : *reads) {
    ShardRead& shard = shards[static_cast<size_t>(read.part)];
    shard.targets = std::move(read.targets);
    plan.bytes += shard.shard.bytes();
    plan.reads.push_back(std::move(shard));
  }
  std::ranges::sort(plan.reads, [](const ShardRead& a, const ShardRead& b) {
    return std::tuple(a.shard.file(), a.shard.begin()) <
           std::tuple(b.shard.file(), b.shard.begin());
  });
  return plan;
}

absl::Status CheckResumable(const Manifest& manifest, const JobSpec& spec,
                            const ParameterCatalog& catalog) {
  const uint64_t step = manifest.state().step();
  if (manifest.weights_only()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the checkpoint of step ", step,
                     " holds parameters only: start a new run from it with train.init_from"));
  }
  const std::vector<std::string> changes = DescribeChanges(manifest.spec(), spec, IDENTITY);
  if (!changes.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the checkpoint of step ", step, " is of another model: ", absl::StrJoin(changes, "; "),
        ". Restore these values, or give the job another checkpoint.dir"));
  }
  absl::Status covered = ProveCoverage(ExpectedObjects(catalog, spec, false), manifest.objects());
  if (!covered.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the job cannot resume from step ", step, ": ", covered.message()));
  }
  return absl::OkStatus();
}

absl::Status CheckInitFrom(const Manifest& manifest, const ParameterCatalog& catalog) {
  google::protobuf::RepeatedPtrField<StoredObject> masters;
  for (const StoredObject& object : manifest.objects()) {
    if (object.kind() == MASTER) *masters.Add() = object;
  }
  absl::Status covered =
      ProveCoverage(ExpectedObjects(catalog, manifest.spec(), /*weights_only=*/true), masters);
  if (!covered.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("the parameters of this job are not those of the checkpoint of job ",
                     manifest.job(), ": ", covered.message()));
  }
  return absl::OkStatus();
}

}  // namespace moesaic
