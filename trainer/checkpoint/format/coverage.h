// The coverage proof: a checkpoint holds every object of a job, each tiled exactly once by its
// shards. It is made against the catalog, so an object that nobody reported is caught too.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "proto/checkpoint.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/box.h"

namespace moesaic {

struct ExpectedObject {
  ObjectKind kind = MASTER;
  std::string name;
  ElementKind element = ELEMENT_F32;
  std::vector<uint64_t> shape;
};

// What a complete checkpoint of this job holds: the master of every parameter, and, unless
// `weights_only`, the state of the optimizer of `spec` (AdamW: two moments; SGD: none).
std::vector<ExpectedObject> ExpectedObjects(const ParameterCatalog& catalog, const JobSpec& spec,
                                            bool weights_only);

// Every way in which `objects` differ from what is expected: objects that are missing, not expected
// or of another shape or element kind, and the first hole or overlap of each, with its box.
std::vector<std::string> FindCoverageProblems(
    std::span<const ExpectedObject> expected,
    const google::protobuf::RepeatedPtrField<StoredObject>& objects);

// OK, or FailedPrecondition with the first few problems.
absl::Status ProveCoverage(std::span<const ExpectedObject> expected,
                           const google::protobuf::RepeatedPtrField<StoredObject>& objects);

// OK when the boxes, which must be valid in `shape`, tile it exactly once; otherwise
// FailedPrecondition with a box that none or several of them cover. ResourceExhausted when the
// boxes cut each other into so many parts that the proof would take too long.
absl::Status ProveTiling(Shape shape, std::vector<const Box*> boxes);

}  // namespace moesaic
