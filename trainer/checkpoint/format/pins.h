// Pins: checkpoints that retention never takes. A pin is a small file beside the step folders,
// "<root>/.pins/step-000001234", so that it is durable, changes nothing in the step, and works
// without a coordinator.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

inline constexpr char kPins[] = ".pins";
inline constexpr uint64_t kMaxPinNote = 4096;

// Durable when it returns. `note` says why, for people. A step that is pinned keeps its first note.
// NotFound when the step is not there; InvalidArgument when the note is longer than kMaxPinNote.
absl::Status PinStep(Folder* root, uint64_t step, absl::string_view note);

// A step that is not pinned is no error.
absl::Status UnpinStep(Folder* root, uint64_t step);

// Step -> note, of the steps that are there.
absl::StatusOr<std::map<uint64_t, std::string>> ListPins(const Folder& root);

// Removes the pins of steps that are not there.
absl::Status SweepPins(Folder* root);

}  // namespace moesaic
