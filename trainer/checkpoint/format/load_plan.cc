#include "trainer/checkpoint/format/load_plan.h"

#include <algorithm>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "proto/job_spec.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/coverage.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

// The shards of an object that meet a target must tile it; returns their indices.
absl::StatusOr<std::vector<int>> ShardsOf(const StoredObject& object, const Box& target) {
  if (absl::Status valid = ValidateBox(target, AsShape(object.shape())); !valid.ok()) {
    return absl::FailedPreconditionError(valid.message());
  }
  std::vector<int> meeting;
  std::vector<Box> parts;
  for (int i = 0; i < object.shards_size(); ++i) {
    std::optional<Box> part = Intersect(object.shards(i).box(), target);
    if (!part) continue;
    for (int dim = 0; dim < part->offset_size(); ++dim) {
      part->set_offset(dim, part->offset(dim) - target.offset(dim));
    }
    meeting.push_back(i);
    parts.push_back(*std::move(part));
  }
  std::vector<const Box*> boxes;
  for (const Box& part : parts) boxes.push_back(&part);
  absl::Status tiled = ProveTiling(AsShape(target.length()), std::move(boxes));
  if (!tiled.ok()) {
    return absl::FailedPreconditionError(
        absl::StrCat("box ", DescribeBox(target), ", counted from its start: ", tiled.message()));
  }
  return meeting;
}

}  // namespace

absl::StatusOr<LoadPlan> PlanLoad(const Manifest& manifest, std::span<const LoadTarget> targets) {
  std::map<std::pair<int, absl::string_view>, const StoredObject*> objects;
  for (const StoredObject& object : manifest.objects()) {
    objects[{object.kind(), object.name()}] = &object;
  }
  std::map<const Shard*, ShardRead> reads;
  for (size_t t = 0; t < targets.size(); ++t) {
    const LoadTarget& target = targets[t];
    const std::string label = ObjectLabel(target.kind, target.name);
    const auto found = objects.find({target.kind, target.name});
    if (found == objects.end()) {
      return absl::NotFoundError(absl::StrCat("object ", label, " is not in the checkpoint of step ",
                                              manifest.state().step()));
    }
    const StoredObject& object = *found->second;
    absl::StatusOr<std::vector<int>> shards = ShardsOf(object, target.box);
    if (!shards.ok()) {
      return absl::FailedPreconditionError(
          absl::StrCat("object ", label, ": ", shards.status().message()));
    }
    for (int i : *shards) {
      ShardRead& read = reads[&object.shards(i)];
      if (read.targets.empty()) {
        read.file = manifest.files(static_cast<int>(object.shards(i).file())).name();
        read.label = label;
        read.shard = object.shards(i);
        read.element_bytes = ElementBytes(object.element());
      }
      read.targets.push_back(static_cast<int>(t));
    }
  }
  LoadPlan plan;
  for (auto& [shard, read] : reads) {
    plan.bytes += read.shard.bytes();
    plan.reads.push_back(std::move(read));
  }
  std::ranges::sort(plan.reads, [](const ShardRead& a, const ShardRead& b) {
    return std::tuple(a.shard.file(), a.shard.begin()) < std::tuple(b.shard.file(), b.shard.begin());
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
    return absl::FailedPreconditionError(absl::StrCat("the job cannot resume from step ", step, ": ",
                                                      covered.message()));
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
