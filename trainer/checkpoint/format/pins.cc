#include "trainer/checkpoint/format/pins.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/durable_file.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

absl::Status IgnoreNotFound(const absl::Status& status) {
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::Status CheckIsThere(const Folder& root, uint64_t step) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = root.OpenFolder(StepFolderName(step));
  if (absl::IsNotFound(folder.status())) {
    return absl::NotFoundError(
        absl::StrCat("there is no checkpoint of step ", step, " in ", root.path()));
  }
  return folder.status();
}

absl::Status WritePin(Folder* pins, const std::string& name, absl::string_view note) {
  // What an attempt that was killed left behind.
  absl::Status removed = IgnoreNotFound(pins->RemoveFile(absl::StrCat(name, ".tmp")));
  if (!removed.ok()) return removed;
  absl::Status written = WriteDurableFile(pins, name, note).status();
  if (!written.ok() && !absl::IsAlreadyExists(written)) return written;
  return pins->Sync();
}

// The folder of pins, or null when there is none.
absl::StatusOr<std::unique_ptr<Folder>> OpenPins(const Folder& root) {
  absl::StatusOr<std::unique_ptr<Folder>> pins = root.OpenFolder(kPins);
  if (absl::IsNotFound(pins.status())) return std::unique_ptr<Folder>();
  return pins;
}

absl::StatusOr<std::vector<uint64_t>> PinnedSteps(const Folder& pins) {
  absl::StatusOr<std::vector<FolderEntry>> entries = pins.List();
  if (!entries.ok()) return entries.status();
  std::vector<uint64_t> steps;
  for (const FolderEntry& entry : *entries) {
    const std::optional<uint64_t> step = ParseStepFolderName(entry.name);
    if (step) steps.push_back(*step);
  }
  return steps;
}

}  // namespace

absl::Status PinStep(Folder* root, uint64_t step, absl::string_view note) {
  if (note.size() > kMaxPinNote) {
    return absl::InvalidArgumentError(absl::StrCat("the note of a pin has at most ", kMaxPinNote,
                                                   " bytes, not ", note.size()));
  }
  if (absl::Status there = CheckIsThere(*root, step); !there.ok()) return there;
  absl::StatusOr<std::unique_ptr<Folder>> pins = OpenOrMakeFolder(root, kPins);
  if (!pins.ok()) return pins.status();
  if (absl::Status synced = root->Sync(); !synced.ok()) return synced;
  absl::Status written = WritePin(pins->get(), StepFolderName(step), note);
  if (!written.ok()) return written;
  // Retention may have taken the step before it could see the pin; then the pin is of nothing.
  absl::Status there = CheckIsThere(*root, step);
  if (absl::IsNotFound(there)) UnpinStep(root, step).IgnoreError();
  return there;
}

absl::Status UnpinStep(Folder* root, uint64_t step) {
  absl::StatusOr<std::unique_ptr<Folder>> pins = OpenPins(*root);
  if (!pins.ok()) return pins.status();
  if (*pins == nullptr) return absl::OkStatus();
  absl::Status removed = IgnoreNotFound((*pins)->RemoveFile(StepFolderName(step)));
  return removed.ok() ? (*pins)->Sync() : removed;
}

absl::StatusOr<std::map<uint64_t, std::string>> ListPins(const Folder& root) {
  std::map<uint64_t, std::string> notes;
  absl::StatusOr<std::unique_ptr<Folder>> pins = OpenPins(root);
  if (!pins.ok()) return pins.status();
  if (*pins == nullptr) return notes;
  absl::StatusOr<std::vector<uint64_t>> pinned = PinnedSteps(**pins);
  if (!pinned.ok()) return pinned.status();
  absl::StatusOr<std::vector<uint64_t>> there = ListSteps(root);
  if (!there.ok()) return there.status();
  for (uint64_t step : *pinned) {
    if (!std::ranges::binary_search(*there, step)) continue;
    // The file's being there is the pin; its text is for people only.
    notes[step] = ReadWholeFile(**pins, StepFolderName(step), kMaxPinNote).value_or("");
  }
  return notes;
}

absl::Status SweepPins(Folder* root) {
  absl::StatusOr<std::unique_ptr<Folder>> pins = OpenPins(*root);
  if (!pins.ok()) return pins.status();
  if (*pins == nullptr) return absl::OkStatus();
  absl::StatusOr<std::vector<uint64_t>> pinned = PinnedSteps(**pins);
  if (!pinned.ok()) return pinned.status();
  absl::StatusOr<std::vector<uint64_t>> there = ListSteps(*root);
  if (!there.ok()) return there.status();
  for (uint64_t step : *pinned) {
    if (std::ranges::binary_search(*there, step)) continue;
    if (absl::Status removed = UnpinStep(root, step); !removed.ok()) return removed;
  }
  return absl::OkStatus();
}

}  // namespace moesaic
