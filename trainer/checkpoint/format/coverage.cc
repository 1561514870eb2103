#include "trainer/checkpoint/format/coverage.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr int64_t kMaxVisits = 1 << 24;  // of (region, box) pairs
constexpr size_t kMaxReported = 5;

bool Covers(const Box& box, const Box& region) {
  for (int i = 0; i < region.offset_size(); ++i) {
    if (box.offset(i) > region.offset(i) ||
        box.offset(i) + box.length(i) < region.offset(i) + region.length(i)) {
      return false;
    }
  }
  return true;
}

// Cuts a region at the edges of the boxes that meet it, until each part is covered by all its
// boxes.
class TilingProof {
 public:
  absl::Status Prove(const Box& region, const std::vector<const Box*>& boxes) {
    visits_ += static_cast<int64_t>(boxes.size()) + 1;
    if (visits_ > kMaxVisits) {
      return absl::ResourceExhaustedError("its shards cut each other into too many parts");
    }
    if (boxes.empty()) {
      return absl::FailedPreconditionError(absl::StrCat("no shard holds ", DescribeBox(region)));
    }
    const std::optional<Cut> cut = FindCut(region, boxes);
    if (!cut) {
      if (boxes.size() == 1) return absl::OkStatus();
      return absl::FailedPreconditionError(
          absl::StrCat(boxes.size(), " shards hold ", DescribeBox(region)));
    }
    Box low = region, high = region;
    low.set_length(cut->dim, cut->at - region.offset(cut->dim));
    high.set_offset(cut->dim, cut->at);
    high.set_length(cut->dim, region.length(cut->dim) - low.length(cut->dim));
    absl::Status proved = Prove(low, Meeting(low, boxes));
    return proved.ok() ? Prove(high, Meeting(high, boxes)) : proved;
  }

 private:
  struct Cut {
    int dim;
    uint64_t at;
  };

  // The median edge inside the region of the first dimension that has one, so that the parts halve.
  static std::optional<Cut> FindCut(const Box& region, const std::vector<const Box*>& boxes) {
    if (std::ranges::all_of(boxes, [&](const Box* box) { return Covers(*box, region); })) {
      return std::nullopt;
    }
    for (int dim = 0; dim < region.offset_size(); ++dim) {
      const uint64_t begin = region.offset(dim), end = begin + region.length(dim);
      std::vector<uint64_t> edges;
      for (const Box* box : boxes) {
        for (uint64_t edge : {box->offset(dim), box->offset(dim) + box->length(dim)}) {
          if (edge > begin && edge < end) edges.push_back(edge);
        }
      }
      if (edges.empty()) continue;
      const auto middle = edges.begin() + static_cast<std::ptrdiff_t>(edges.size() / 2);
      std::ranges::nth_element(edges, middle);
      return Cut{dim, *middle};
    }
    return std::nullopt;
  }

  static std::vector<const Box*> Meeting(const Box& region, const std::vector<const Box*>& boxes) {
    std::vector<const Box*> meeting;
    for (const Box* box : boxes) {
      if (Intersect(region, *box)) meeting.push_back(box);
    }
    return meeting;
  }

  int64_t visits_ = 0;
};

std::optional<std::string> FindObjectProblem(const ExpectedObject& expected,
                                             const StoredObject& object) {
  if (object.element() != expected.element ||
      !std::ranges::equal(AsShape(object.shape()), expected.shape)) {
    return absl::StrCat("is ", ElementName(object.element()), " ",
                        DescribeShape(AsShape(object.shape())), " and not ",
                        ElementName(expected.element), " ", DescribeShape(expected.shape));
  }
  std::vector<const Box*> boxes;
  for (const Shard& shard : object.shards()) {
    absl::Status valid = ValidateBox(shard.box(), expected.shape);
    if (!valid.ok()) return std::string(valid.message());
    boxes.push_back(&shard.box());
  }
  absl::Status tiled = ProveTiling(expected.shape, std::move(boxes));
  if (!tiled.ok()) return std::string(tiled.message());
  return std::nullopt;
}

}  // namespace

std::vector<ExpectedObject> ExpectedObjects(const ParameterCatalog& catalog, const JobSpec& spec,
                                            bool weights_only) {
  std::vector<ObjectKind> kinds = {MASTER};
  if (!weights_only && !spec.train().optimizer().has_sgd()) kinds = {MASTER, ADAM_M, ADAM_V};
  std::vector<ExpectedObject> expected;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    for (ObjectKind kind : kinds) {
      if (kind != MASTER && !parameter.learnt) continue;
      ExpectedObject object;
      object.kind = kind;
      object.name = parameter.name;
      object.shape.assign(parameter.shape.begin(), parameter.shape.end());
      expected.push_back(std::move(object));
    }
  }
  return expected;
}

std::vector<std::string> FindCoverageProblems(
    std::span<const ExpectedObject> expected,
    const google::protobuf::RepeatedPtrField<StoredObject>& objects) {
  std::vector<std::string> problems;
  absl::flat_hash_map<std::string, const StoredObject*> unused;
  for (const StoredObject& object : objects) {
    const std::string label = ObjectLabel(object.kind(), object.name());
    if (!unused.emplace(label, &object).second) {
      problems.push_back(absl::StrCat("object ", label, " comes twice"));
    }
  }
  for (const ExpectedObject& object : expected) {
    const std::string label = ObjectLabel(object.kind, object.name);
    const auto found = unused.find(label);
    if (found == unused.end()) {
      problems.push_back(absl::StrCat("object ", label, " is missing"));
      continue;
    }
    std::optional<std::string> problem = FindObjectProblem(object, *found->second);
    if (problem) problems.push_back(absl::StrCat("object ", label, ": ", *problem));
    unused.erase(found);
  }
  for (const StoredObject& object : objects) {
    const std::string label = ObjectLabel(object.kind(), object.name());
    if (unused.contains(label)) {
      problems.push_back(absl::StrCat("object ", label, " is not one of this job"));
    }
  }
  return problems;
}

absl::Status ProveCoverage(std::span<const ExpectedObject> expected,
                           const google::protobuf::RepeatedPtrField<StoredObject>& objects) {
  std::vector<std::string> problems = FindCoverageProblems(expected, objects);
  if (problems.empty()) return absl::OkStatus();
  const size_t more = problems.size() - std::min(problems.size(), kMaxReported);
  problems.resize(problems.size() - more);
  return absl::FailedPreconditionError(
      absl::StrCat("the checkpoint is not complete: ", absl::StrJoin(problems, "; "),
                   more > 0 ? absl::StrCat("; and ", more, " more") : ""));
}

absl::Status ProveTiling(Shape shape, std::vector<const Box*> boxes) {
  return TilingProof().Prove(WholeBox(shape), boxes);
}

}  // namespace moesaic
