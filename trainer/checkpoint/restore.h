// Restore: reads parts of objects into memory, whatever the layout at save, out of a step folder or
// out of snapshots in memory, or some of each.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"
#include "trainer/checkpoint/object_source.h"

namespace moesaic {

// The part `box` of an fp32 object goes to `destination`, row-major: as many floats as the box has
// elements. Destinations must not overlap.
struct RestoreTarget {
  ObjectKind kind = MASTER;
  std::string name;
  Box box;
  std::span<float> destination;
};

// A source that turned out bad, and what was used instead.
struct BadSource {
  int source = 0;
  absl::Status status;
};

struct RestoreSummary {
  std::vector<uint64_t> bytes;  // delivered and right, by source
  std::vector<BadSource> bad;   // in the order in which they were found
};

// From the sources in their order: each part of an object from the first that has it. All hold the
// same step. Reads on `threads` threads only the bytes that a target needs, as far as checksums
// allow (ObjectSource::Read), and all of them are checked before OK is returned; on an error the
// destinations hold anything. A source that fails is used no more, and what it had is read from the
// next that has it. The caller has checked that the sources fit the job.
//
// Errors: NotFound and FailedPrecondition as PlanParts, when no source failed. Otherwise there is
// no other source for something: the error of the last of the sources that failed, which for a step
// folder is DataLoss naming file and object.
absl::StatusOr<RestoreSummary> RestoreObjects(std::span<const ObjectSource* const> sources,
                                              std::span<const RestoreTarget> targets, int threads);

// From a step folder alone. `manifest` is that of `step` (format/manifest.h).
absl::Status RestoreObjects(const Folder& step, const Manifest& manifest,
                            std::span<const RestoreTarget> targets, int threads);

}  // namespace moesaic
