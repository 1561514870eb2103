// LoadPlan: which stored bytes make up what a rank wants, whatever the layouts at save and at load.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"
#include "trainer/catalog/parameter_catalog.h"

namespace moesaic {

// A part of an object that is wanted.
struct LoadTarget {
  ObjectKind kind = MASTER;
  std::string name;
  Box box;
};

// A stored piece of an object, in whatever holds it: a shard of a step folder, an object of a
// snapshot.
struct StoredPart {
  ObjectKind kind = MASTER;
  std::string name;
  ElementKind element = ELEMENT_F32;
  std::vector<uint64_t> shape;  // of the whole object
  Box box;
  uint64_t bytes = 0;
};

// Bytes [begin, end) of one part of one source, which is all that these targets need of it.
struct PartRead {
  int source = 0;
  int part = 0;
  uint64_t begin = 0;
  uint64_t end = 0;
  std::vector<int> targets;
};

// For each target the parts that make it up: of the first source, where that has them, else of the
// next. The sources hold one state (the same step of the same job), so that a target may be put
// together from several. Reads come by source and part. NotFound names an object that no source
// has; FailedPrecondition a target outside its object, or one that the sources do not cover.
absl::StatusOr<std::vector<PartRead>> PlanParts(
    std::span<const std::span<const StoredPart>> sources, std::span<const LoadTarget> targets);

// One stored shard, read whole (so that its checksum can be checked) and copied to the targets that
// it meets; RunCursor gives the runs of each.
struct ShardRead {
  std::string file;
  std::string label;  // of the object, for messages
  Shard shard;
  uint64_t element_bytes = 0;
  std::vector<int> targets;  // indices into the targets of the plan
};

struct LoadPlan {
  std::vector<ShardRead> reads;  // by file and place
  uint64_t bytes = 0;            // to be read
};

// The manifest must be a decoded one. NotFound names an object that is not in the checkpoint;
// FailedPrecondition a target outside its object, or not covered exactly once by the stored shards.
absl::StatusOr<LoadPlan> PlanLoad(const Manifest& manifest, std::span<const LoadTarget> targets);

// OK when a job may resume from the checkpoint. FailedPrecondition lists every identity field that
// differs (old -> new), or every object that is missing, not expected or of another shape; or says
// that the checkpoint holds parameters only. Nothing is skipped silently.
absl::Status CheckResumable(const Manifest& manifest, const JobSpec& spec,
                            const ParameterCatalog& catalog);

// OK when a new run may take its parameters from the checkpoint (train.init_from): it has the
// master of every parameter, in the right shape. Moments and the data position are not looked at.
absl::Status CheckInitFrom(const Manifest& manifest, const ParameterCatalog& catalog);

}  // namespace moesaic
