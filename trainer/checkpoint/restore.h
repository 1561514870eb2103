// Restore: reads parts of objects out of a step folder into memory, whatever the layout at save.
#pragma once

#include <span>
#include <string>

#include "absl/status/status.h"
#include "proto/checkpoint.pb.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

// The part `box` of an fp32 object goes to `destination`, row-major: as many floats as the box has
// elements. Destinations must not overlap.
struct RestoreTarget {
  ObjectKind kind = MASTER;
  std::string name;
  Box box;
  std::span<float> destination;
};

// Every shard that a target needs is read once and whole, and checked before OK is returned; on an
// error the destinations hold anything. `manifest` is that of `step` (format/manifest.h), and the
// caller has checked that it fits the job (format/load_plan.h). Errors: DataLoss names file and
// object of bytes that are missing or damaged; NotFound and FailedPrecondition as PlanLoad;
// Unavailable when the system cannot read.
absl::Status RestoreObjects(const Folder& step, const Manifest& manifest,
                            std::span<const RestoreTarget> targets, int threads);

}  // namespace moesaic
