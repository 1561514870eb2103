// CheckpointCatalog: what the coordinator knows of the checkpoints of its jobs, in SQLite, so that
// they can be listed without a look at the disk. An index and no more: the folders are right, and
// checkpoint_archive.h makes the catalog agree with them.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/checkpoint_service.pb.h"

struct sqlite3;

namespace moesaic {

// Thread-compatible.
class CheckpointCatalog {
 public:
  // Makes the file where it is missing, and anew where it is no catalog or is damaged: it can be
  // rebuilt. FailedPrecondition: another process has it open.
  static absl::StatusOr<std::unique_ptr<CheckpointCatalog>> Open(const std::string& path);
  ~CheckpointCatalog();
  CheckpointCatalog(const CheckpointCatalog&) = delete;
  CheckpointCatalog& operator=(const CheckpointCatalog&) = delete;

  // The job's entries are these, and no others.
  absl::Status Replace(const std::string& job, const std::vector<CheckpointEntry>& entries);
  // By step, then by path.
  absl::StatusOr<std::vector<CheckpointEntry>> List(const std::string& job) const;

 private:
  explicit CheckpointCatalog(sqlite3* db) : db_(db) {}
  static absl::StatusOr<std::unique_ptr<CheckpointCatalog>> OpenOnce(const std::string& path);
  absl::Status Execute(const char* sql) const;
  absl::Status Put(const std::string& job, const std::vector<CheckpointEntry>& entries) const;
  absl::Status Error() const;

  sqlite3* db_;
};

}  // namespace moesaic
