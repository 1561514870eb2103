// How a step leaves a checkpoint root: by a rename into .trash or .quarantine, so that a name
// step-N never stands for a part of a step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

inline constexpr char kStagingFolder[] = ".staging";
inline constexpr char kTrash[] = ".trash";
inline constexpr char kQuarantine[] = ".quarantine";

// 16 hexadecimal digits that have not been used before.
std::string UniqueSuffix();

// Moves a step to .trash, durably, and then deletes it. FailedPrecondition when it is pinned (also
// when it becomes so meanwhile: then it is moved back); NotFound when it is not there.
absl::Status DeleteStep(Folder* root, uint64_t step);

// Moves a step to .quarantine as "step-000001234.<unique>", durably, with a record
// "step-000001234.<unique>.json" of the reason beside it. Nothing in the step is changed. Its pin,
// if it has one, is noted there and taken away: the number may be used again. Returns the new path.
absl::StatusOr<std::string> QuarantineStep(Folder* root, uint64_t step, absl::string_view reason,
                                           absl::Time now);

struct QuarantinedStep {
  uint64_t step = 0;
  std::string path;
  std::string reason;  // empty when its record is missing or damaged, and so are the others
  absl::Time when = absl::InfinitePast();
  bool was_pinned = false;
};

// By step, then by name.
absl::StatusOr<std::vector<QuarantinedStep>> ListQuarantined(const Folder& root);

}  // namespace moesaic
