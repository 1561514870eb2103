#include "trainer/checkpoint/format/set_aside.h"

#include <map>
#include <memory>
#include <optional>
#include <random>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/log.h"
#include "trainer/checkpoint/format/durable_file.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/pins.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

constexpr uint64_t kMaxRecordBytes = 1 << 20;
constexpr char kRecordSuffix[] = ".json";

struct MovedStep {
  std::unique_ptr<Folder> to;
  std::string name;
};

absl::StatusOr<MovedStep> MoveStep(Folder* root, uint64_t step, const std::string& folder) {
  absl::StatusOr<std::unique_ptr<Folder>> to = OpenOrMakeFolder(root, folder);
  if (!to.ok()) return to.status();
  const std::string name = absl::StrCat(StepFolderName(step), ".", UniqueSuffix());
  absl::Status moved = root->Rename(StepFolderName(step), to->get(), name);
  // The new place first: a step that is in neither folder after a power cut would be lost.
  if (moved.ok()) moved = (*to)->Sync();
  if (moved.ok()) moved = root->Sync();
  if (!moved.ok()) return moved;
  return MovedStep{*std::move(to), name};
}

absl::StatusOr<bool> IsPinned(const Folder& root, uint64_t step) {
  absl::StatusOr<std::map<uint64_t, std::string>> pins = ListPins(root);
  if (!pins.ok()) return pins.status();
  return pins->contains(step);
}

absl::Status Pinned(uint64_t step) {
  return absl::FailedPreconditionError(
      absl::StrCat("the checkpoint of step ", step, " is pinned"));
}

// Nothing when there is no record, or not one of ours.
std::optional<Json> ReadRecord(const Folder& quarantine, const std::string& name) {
  const absl::StatusOr<std::string> text =
      ReadWholeFile(quarantine, absl::StrCat(name, kRecordSuffix), kMaxRecordBytes);
  if (!text.ok()) return std::nullopt;
  Json record = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object() || !record["reason"].is_string() || !record["when"].is_string() ||
      !record["was_pinned"].is_boolean()) {
    return std::nullopt;
  }
  return record;
}

}  // namespace

std::string UniqueSuffix() {
  std::random_device random;
  return absl::StrFormat("%08x%08x", random(), random());
}

absl::Status DeleteStep(Folder* root, uint64_t step) {
  const absl::StatusOr<bool> pinned = IsPinned(*root, step);
  if (!pinned.ok()) return pinned.status();
  if (*pinned) return Pinned(step);
  absl::StatusOr<MovedStep> moved = MoveStep(root, step, kTrash);
  if (!moved.ok()) return moved.status();
  // ListPins knows the steps that are there; this one is not, so its pin is looked for by name.
  absl::StatusOr<std::unique_ptr<Folder>> pins = root->OpenFolder(kPins);
  if (pins.ok() && (*pins)->Open(StepFolderName(step)).ok()) {
    absl::Status back = moved->to->Rename(moved->name, root, StepFolderName(step));
    if (back.ok()) back = root->Sync();
    return back.ok() ? Pinned(step) : back;
  }
  return RemoveTree(moved->to.get(), moved->name);
}

absl::StatusOr<std::string> QuarantineStep(Folder* root, uint64_t step, absl::string_view reason,
                                           absl::Time now) {
  const absl::StatusOr<bool> pinned = IsPinned(*root, step);
  if (!pinned.ok()) return pinned.status();
  absl::StatusOr<MovedStep> moved = MoveStep(root, step, kQuarantine);
  if (!moved.ok()) return moved.status();
  const std::string path = absl::StrCat(moved->to->path(), "/", moved->name);
  const Json record = {{"step", step},
                       {"when", absl::FormatTime(absl::RFC3339_sec, now, absl::UTCTimeZone())},
                       {"reason", std::string(reason)},
                       {"was_pinned", *pinned}};
  const std::string text = record.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  absl::Status recorded =
      WriteDurableFile(moved->to.get(), absl::StrCat(moved->name, kRecordSuffix), text).status();
  if (recorded.ok()) recorded = moved->to->Sync();
  if (recorded.ok()) recorded = UnpinStep(root, step);
  // The move is what counts, and it is done.
  if (!recorded.ok()) {
    LogWarning("{}: its record is not written: {}", path, std::string(recorded.message()));
  }
  return path;
}

absl::StatusOr<std::vector<QuarantinedStep>> ListQuarantined(const Folder& root) {
  std::vector<QuarantinedStep> list;
  absl::StatusOr<std::unique_ptr<Folder>> folder = root.OpenFolder(kQuarantine);
  if (absl::IsNotFound(folder.status())) return list;
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::vector<FolderEntry>> entries = (*folder)->List();
  if (!entries.ok()) return entries.status();
  for (const FolderEntry& entry : *entries) {
    if (entry.kind != EntryKind::kFolder) continue;
    const std::optional<uint64_t> step =
        ParseStepFolderName(absl::string_view(entry.name).substr(0, entry.name.find('.')));
    if (!step) continue;
    QuarantinedStep& quarantined = list.emplace_back();
    quarantined.step = *step;
    quarantined.path = absl::StrCat((*folder)->path(), "/", entry.name);
    const std::optional<Json> record = ReadRecord(**folder, entry.name);
    if (!record) continue;
    quarantined.reason = (*record)["reason"].get<std::string>();
    quarantined.was_pinned = (*record)["was_pinned"].get<bool>();
    std::string error;
    absl::ParseTime(absl::RFC3339_sec, (*record)["when"].get<std::string>(), &quarantined.when,
                    &error);
  }
  return list;
}

}  // namespace moesaic
