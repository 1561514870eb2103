#include "trainer/checkpoint/format/commit.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/log.h"
#include "proto/job_spec.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/coverage.h"
#include "trainer/checkpoint/format/durable_file.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr uint64_t kMaxTokenizerBytes = 1ull << 30;

struct StagingName {
  uint64_t step = 0;
  uint64_t generation = 0;
};

std::optional<StagingName> ParseStagingName(absl::string_view name) {
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '.');
  StagingName parsed;
  if (parts.size() != 3 || parts[0].substr(0, 5) != "step-" || parts[1].substr(0, 1) != "g" ||
      !absl::SimpleAtoi(parts[0].substr(5), &parsed.step) ||
      !absl::SimpleAtoi(parts[1].substr(1), &parsed.generation)) {
    return std::nullopt;
  }
  return parsed;
}

std::string Bytes(const JobHash& hash) { return std::string(hash.begin(), hash.end()); }

// Checks one report against the step that is to be committed.
absl::Status CheckReport(const ShardsPersisted& report, const CommitRequest& request,
                         const StagingName& staging) {
  if (!report.error().empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("rank ", report.rank(), " could not persist step ", staging.step, ": ",
                     report.error()));
  }
  if (report.job() != request.spec.name() || report.generation() != staging.generation ||
      report.step() != staging.step || report.state().step() != staging.step) {
    return absl::FailedPreconditionError(absl::StrFormat(
        "rank %d reports job %s, generation %d, step %d (state of step %d); wanted are job %s, "
        "generation %d, step %d",
        report.rank(), report.job(), report.generation(), report.step(), report.state().step(),
        request.spec.name(), staging.generation, staging.step));
  }
  return absl::OkStatus();
}

// Joins what the ranks wrote into the files and objects of one manifest.
class ReportMerger {
 public:
  explicit ReportMerger(Manifest* manifest) : manifest_(manifest) {}

  absl::Status Add(const ShardsPersisted& report) {
    const int first_file = manifest_->files_size();
    for (const StoredFile& file : report.files()) *manifest_->add_files() = file;
    for (const StoredObject& part : report.objects()) {
      StoredObject* object = nullptr;
      if (absl::Status joined = Join(report, part, &object); !joined.ok()) return joined;
      for (const Shard& shard : part.shards()) {
        if (shard.file() >= static_cast<uint32_t>(report.files_size())) {
          return absl::FailedPreconditionError(
              absl::StrCat("rank ", report.rank(), ": object ", object->name(),
                           " lies in file number ", shard.file(), ", which is not reported"));
        }
        Shard* added = object->add_shards();
        *added = shard;
        added->set_file(shard.file() + static_cast<uint32_t>(first_file));
      }
    }
    return absl::OkStatus();
  }

 private:
  absl::Status Join(const ShardsPersisted& report, const StoredObject& part,
                    StoredObject** object) {
    const auto [it, added] =
        objects_.try_emplace({part.kind(), part.name()}, manifest_->objects_size());
    if (added) {
      *object = manifest_->add_objects();
      **object = part;
      (*object)->clear_shards();
      return absl::OkStatus();
    }
    *object = manifest_->mutable_objects(it->second);
    if ((*object)->element() != part.element() || (*object)->step() != part.step() ||
        !std::ranges::equal((*object)->shape(), part.shape())) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", report.rank(), " reports another shape, element kind or step of ",
                       ObjectLabel(part.kind(), part.name()), " than the ranks before it"));
    }
    return absl::OkStatus();
  }

  Manifest* manifest_;
  std::map<std::pair<int, std::string>, int> objects_;
};

absl::Status MergeReports(const CommitRequest& request, const StagingName& staging,
                          Manifest* manifest) {
  std::vector<const ShardsPersisted*> by_rank(request.ranks);
  for (const ShardsPersisted& report : request.reports) {
    if (absl::Status valid = CheckReport(report, request, staging); !valid.ok()) return valid;
    if (report.rank() >= request.ranks || by_rank[report.rank()] != nullptr) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", report.rank(), " reported twice, or is none of ", request.ranks));
    }
    by_rank[report.rank()] = &report;
  }
  ReportMerger merger(manifest);
  for (uint32_t rank = 0; rank < request.ranks; ++rank) {
    if (by_rank[rank] == nullptr) {
      return absl::FailedPreconditionError(absl::StrCat("rank ", rank, " did not report"));
    }
    if (by_rank[rank]->state().SerializeAsString() != by_rank[0]->state().SerializeAsString()) {
      return absl::FailedPreconditionError(
          absl::StrCat("rank ", rank, " has another training state than rank 0: ",
                       by_rank[rank]->state().ShortDebugString(), " and ",
                       by_rank[0]->state().ShortDebugString()));
    }
    if (absl::Status added = merger.Add(*by_rank[rank]); !added.ok()) return added;
  }
  if (request.ranks > 0) *manifest->mutable_state() = by_rank[0]->state();
  return absl::OkStatus();
}

absl::StatusOr<Manifest> MakeManifest(const CommitRequest& request, const StagingName& staging) {
  Manifest manifest;
  if (absl::Status merged = MergeReports(request, staging, &manifest); !merged.ok()) return merged;
  absl::StatusOr<ParameterCatalog> catalog =
      ParameterCatalog::Build(request.spec, ExpertsAt(request.spec, manifest.state().step()));
  if (!catalog.ok()) return catalog.status();
  const std::vector<ExpectedObject> expected =
      ExpectedObjects(*catalog, request.spec, request.weights_only);
  if (absl::Status covered = ProveCoverage(expected, manifest.objects()); !covered.ok()) {
    return covered;
  }
  const JobHashes hashes = HashJob(request.spec);
  manifest.set_format_version(kManifestVersion);
  manifest.set_job(request.spec.name());
  manifest.set_generation(request.generation);
  *manifest.mutable_spec() = request.spec;
  manifest.set_identity_hash(Bytes(hashes.identity));
  manifest.set_trajectory_hash(Bytes(hashes.trajectory));
  manifest.set_catalog_hash(Bytes(catalog->Hash()));
  manifest.set_binary(request.binary);
  manifest.set_layout(request.layout);
  manifest.set_created_unix_ns(absl::ToUnixNanos(request.created));
  manifest.mutable_writers()->Assign(request.writers.begin(), request.writers.end());
  manifest.mutable_trajectory_changes()->Assign(request.trajectory_changes.begin(),
                                                request.trajectory_changes.end());
  manifest.set_weights_only(request.weights_only);
  return manifest;
}

}  // namespace

CheckpointRoot::CheckpointRoot(FileSystem* files, std::unique_ptr<Folder> root, const Clock* clock)
    : files_(files), root_(std::move(root)), clock_(clock) {}

absl::StatusOr<std::unique_ptr<CheckpointRoot>> CheckpointRoot::Open(FileSystem* files,
                                                                     const std::string& path,
                                                                     const Clock* clock) {
  absl::StatusOr<std::unique_ptr<Folder>> root = files->MakeFolders(path);
  if (!root.ok()) return root.status();
  return std::unique_ptr<CheckpointRoot>(new CheckpointRoot(files, *std::move(root), clock));
}

std::string CheckpointRoot::StepPath(uint64_t step) const {
  return absl::StrCat(path(), "/", StepFolderName(step));
}

absl::StatusOr<std::vector<uint64_t>> CheckpointRoot::Steps() const { return ListSteps(*root_); }

absl::StatusOr<std::string> CheckpointRoot::BeginStaging(uint64_t step, uint64_t generation) {
  absl::StatusOr<std::unique_ptr<Folder>> parent = OpenOrMakeFolder(root_.get(), kStagingFolder);
  if (!parent.ok()) return parent.status();
  const std::string name = absl::StrCat("step-", step, ".g", generation, ".", UniqueSuffix());
  if (absl::Status made = (*parent)->MakeFolder(name); !made.ok()) return made;
  return absl::StrCat(path(), "/", kStagingFolder, "/", name);
}

absl::StatusOr<CommittedStep> CheckpointRoot::Commit(const CommitRequest& request) {
  const std::string name = request.staging.substr(request.staging.rfind('/') + 1);
  const std::optional<StagingName> staging = ParseStagingName(name);
  if (!staging || staging->generation != request.generation) {
    return absl::FailedPreconditionError(absl::StrCat(
        "staging folder ", name, " is not one of generation ", request.generation));
  }
  absl::StatusOr<Manifest> manifest = MakeManifest(request, *staging);
  if (!manifest.ok()) return manifest.status();

  absl::StatusOr<std::unique_ptr<Folder>> parent = root_->OpenFolder(kStagingFolder);
  if (!parent.ok()) return parent.status();
  absl::StatusOr<std::unique_ptr<Folder>> folder = (*parent)->OpenFolder(name);
  if (!folder.ok()) return folder.status();
  if (!request.tokenizer.empty()) {
    absl::Status copied = CopyTokenizer(request.tokenizer, folder->get(), &*manifest);
    if (!copied.ok()) return copied;
  }
  absl::StatusOr<StoredFile> written =
      WriteDurableFile(folder->get(), kManifestName, EncodeManifest(*manifest));
  if (!written.ok()) return written.status();
  if (absl::Status synced = (*folder)->Sync(); !synced.ok()) return synced;
  absl::Status verified = VerifyStatus(**folder, VerifyStep(**folder, VerifyDepth::kStructure));
  if (!verified.ok()) return verified;
  return Publish(name, *manifest);
}

absl::Status CheckpointRoot::CopyTokenizer(const std::string& path, Folder* staging,
                                           Manifest* manifest) {
  const size_t slash = path.rfind('/');
  absl::StatusOr<std::unique_ptr<Folder>> folder = files_->OpenFolder(
      slash == std::string::npos ? "." : path.substr(0, slash + 1));
  if (!folder.ok()) return folder.status();
  absl::StatusOr<std::string> content =
      ReadWholeFile(**folder, path.substr(slash + 1), kMaxTokenizerBytes);
  if (!content.ok()) return content.status();
  absl::StatusOr<StoredFile> stored = WriteDurableFile(staging, kTokenizerName, *content);
  if (!stored.ok()) return stored.status();
  *manifest->add_files() = *std::move(stored);
  return absl::OkStatus();
}

absl::StatusOr<CommittedStep> CheckpointRoot::Publish(const std::string& name,
                                                      const Manifest& manifest) {
  CommittedStep committed;
  committed.step = manifest.state().step();
  committed.path = StepPath(committed.step);
  for (const StoredFile& file : manifest.files()) {
    committed.bytes += file.bytes();
    if (file.has_written_at_step()) committed.reused_bytes += file.bytes();
  }

  absl::StatusOr<bool> there = IsThere(manifest);
  if (!there.ok()) return there.status();
  absl::StatusOr<std::unique_ptr<Folder>> parent = root_->OpenFolder(kStagingFolder);
  if (!parent.ok()) return parent.status();
  if (*there) {
    committed.was_there = true;
    if (absl::Status removed = RemoveTree(parent->get(), name); !removed.ok()) return removed;
  } else {
    absl::Status renamed = (*parent)->Rename(name, root_.get(), StepFolderName(committed.step));
    if (!renamed.ok()) return renamed;
  }
  if (absl::Status synced = root_->Sync(); !synced.ok()) return synced;
  return committed;
}

namespace {

// Where the experts lay may differ between two generations that saved the same step.
bool IsSameTraining(TrainingState a, TrainingState b) {
  a.clear_placement();
  b.clear_placement();
  return a.SerializeAsString() == b.SerializeAsString();
}

}  // namespace

absl::StatusOr<bool> CheckpointRoot::IsThere(const Manifest& manifest) {
  const uint64_t step = manifest.state().step();
  absl::StatusOr<std::unique_ptr<Folder>> folder = root_->OpenFolder(StepFolderName(step));
  if (absl::IsNotFound(folder.status())) return false;
  if (!folder.ok()) return folder.status();
  const VerifyReport report = VerifyStep(**folder, VerifyDepth::kStructure);
  absl::Status verified = VerifyStatus(**folder, report);
  if (report.unreadable) return verified;
  if (!verified.ok()) {
    absl::Status moved = Quarantine(step, verified.message());
    if (!moved.ok()) return moved;
    return false;
  }
  absl::StatusOr<Manifest> old = ReadManifest(**folder);
  if (!old.ok()) return old.status();
  if (!IsSameTraining(old->state(), manifest.state()) ||
      old->trajectory_hash() != manifest.trajectory_hash() ||
      old->identity_hash() != manifest.identity_hash()) {
    return absl::AlreadyExistsError(
        absl::StrCat(StepPath(step), " is there already, from another trajectory. Give the job "
                     "another checkpoint.dir, or resume from the newest step"));
  }
  return true;
}

absl::Status CheckpointRoot::Abort(const std::string& staging) {
  absl::StatusOr<std::unique_ptr<Folder>> parent = root_->OpenFolder(kStagingFolder);
  if (absl::IsNotFound(parent.status())) return absl::OkStatus();
  if (!parent.ok()) return parent.status();
  return RemoveTree(parent->get(), staging.substr(staging.rfind('/') + 1));
}

absl::StatusOr<std::vector<StepFacts>> CheckpointRoot::GatherFacts(const KeepSpec& keep) const {
  absl::StatusOr<std::vector<uint64_t>> steps = Steps();
  if (!steps.ok()) return steps.status();
  absl::StatusOr<std::map<uint64_t, std::string>> pins = Pins();
  if (!pins.ok()) return pins.status();
  std::vector<StepFacts> facts(steps->size());
  const bool manifests = keep.best() > 0 || keep.within() > 0;
  bool verified = false;
  for (size_t i = steps->size(); i-- > 0;) {
    facts[i].step = (*steps)[i];
    facts[i].pinned = pins->contains(facts[i].step);
    if (verified && !manifests) continue;
    absl::StatusOr<std::unique_ptr<Folder>> folder = root_->OpenFolder(StepFolderName((*steps)[i]));
    if (!folder.ok()) return folder.status();
    if (!verified) {
      const VerifyReport report = VerifyStep(**folder, VerifyDepth::kStructure);
      if (report.unreadable) return VerifyStatus(**folder, report);
      facts[i].damaged = !report.ok();
      verified = report.ok();
    }
    if (!manifests || facts[i].damaged) continue;
    absl::StatusOr<Manifest> manifest = ReadManifest(**folder);
    if (absl::IsDataLoss(manifest.status()) || absl::IsNotFound(manifest.status())) {
      facts[i].damaged = true;
      continue;
    }
    if (!manifest.ok()) return manifest.status();
    facts[i].metric = MetricOf(keep.best_by(), manifest->state());
    facts[i].created = absl::FromUnixNanos(manifest->created_unix_ns());
  }
  return facts;
}

absl::StatusOr<std::vector<uint64_t>> CheckpointRoot::Retain(const KeepSpec& keep) {
  absl::StatusOr<std::vector<StepFacts>> facts = GatherFacts(keep);
  if (!facts.ok()) return facts.status();
  std::vector<uint64_t> removed;
  for (const KeepDecision& decision : ChooseKept(keep, *facts, clock_->Now())) {
    if (decision.kept()) continue;
    absl::Status deleted = DeleteStep(root_.get(), decision.step);
    if (absl::IsFailedPrecondition(deleted)) continue;  // somebody pinned it just now
    if (!deleted.ok()) return deleted;
    removed.push_back(decision.step);
  }
  return removed;
}

absl::Status CheckpointRoot::Remove(uint64_t step, bool force) {
  absl::StatusOr<std::vector<uint64_t>> steps = Steps();
  if (!steps.ok()) return steps.status();
  if (!std::ranges::binary_search(*steps, step)) {
    return absl::NotFoundError(
        absl::StrCat("there is no checkpoint of step ", step, " in ", path()));
  }
  if (force) {
    if (absl::Status unpinned = Unpin(step); !unpinned.ok()) return unpinned;
    return DeleteStep(root_.get(), step);
  }
  const absl::Status deleted =
      steps->size() > 1 ? DeleteStep(root_.get(), step)
                        : absl::FailedPreconditionError(absl::StrCat(
                              "step ", step, " is the only checkpoint in ", path()));
  if (!absl::IsFailedPrecondition(deleted)) return deleted;
  return absl::FailedPreconditionError(
      absl::StrCat(deleted.message(), "; --force removes it all the same"));
}

absl::Status CheckpointRoot::Sweep(uint64_t live_generation) {
  if (absl::Status removed = RemoveTree(root_.get(), kTrash); !removed.ok()) return removed;
  if (absl::Status swept = SweepPins(root_.get()); !swept.ok()) return swept;
  absl::StatusOr<std::unique_ptr<Folder>> staging = root_->OpenFolder(kStagingFolder);
  if (absl::IsNotFound(staging.status())) return absl::OkStatus();
  if (!staging.ok()) return staging.status();
  absl::StatusOr<std::vector<FolderEntry>> entries = (*staging)->List();
  if (!entries.ok()) return entries.status();
  for (const FolderEntry& entry : *entries) {
    const std::optional<StagingName> name = ParseStagingName(entry.name);
    if (live_generation != 0 && name && name->generation == live_generation) continue;
    absl::Status removed = entry.kind == EntryKind::kFolder
                               ? RemoveTree(staging->get(), entry.name)
                               : (*staging)->RemoveFile(entry.name);
    if (!removed.ok()) return removed;
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<uint64_t>> CheckpointRoot::NewestVerified(
    const VerifyOptions& options) {
  absl::StatusOr<std::vector<uint64_t>> steps = Steps();
  if (!steps.ok()) return steps.status();
  for (auto step = steps->rbegin(); step != steps->rend(); ++step) {
    absl::StatusOr<std::unique_ptr<Folder>> folder = root_->OpenFolder(StepFolderName(*step));
    if (!folder.ok()) return folder.status();
    const VerifyReport report = VerifyStep(**folder, options);
    if (report.ok()) return std::optional<uint64_t>(*step);
    absl::Status verified = VerifyStatus(**folder, report);
    if (report.unreadable) return verified;
    absl::Status moved = Quarantine(*step, verified.message());
    if (!moved.ok()) return moved;
  }
  return std::optional<uint64_t>();
}

absl::Status CheckpointRoot::Quarantine(uint64_t step, absl::string_view reason) {
  absl::StatusOr<std::string> moved = QuarantineStep(root_.get(), step, reason, clock_->Now());
  if (!moved.ok()) return moved.status();
  LogError("checkpoint {} is set aside as {}: {}", StepFolderName(step), *moved,
           std::string(reason));
  return absl::OkStatus();
}

absl::Status CheckpointRoot::SetAsideAfter(std::optional<uint64_t> step) {
  const std::string reason =
      step ? absl::StrCat("training resumes from step ", *step, ", so it is of an older run")
           : "training starts anew, so it is of an older run";
  absl::StatusOr<std::vector<uint64_t>> steps = Steps();
  if (!steps.ok()) return steps.status();
  for (auto later = steps->rbegin(); later != steps->rend() && (!step || *later > *step); ++later) {
    if (absl::Status moved = Quarantine(*later, reason); !moved.ok()) return moved;
  }
  return absl::OkStatus();
}

}  // namespace moesaic
