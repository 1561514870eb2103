// Store: the coordinator's durable memory of jobs, in SQLite (write-ahead log, synchronous=FULL).
// Checkpoints are not in it: their folders are scanned, so that nothing can disagree with the disk.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/record.pb.h"

struct sqlite3;

namespace moesaic {

// Thread-compatible.
class Store {
 public:
  // Makes the file where it is missing. FailedPrecondition: another process has it open.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // All records, in one transaction; durable when it returns.
  absl::Status Write(const std::vector<JobRecord>& records);
  // DataLoss when a record cannot be read.
  absl::StatusOr<std::vector<JobRecord>> ReadAll() const;

 private:
  explicit Store(sqlite3* db) : db_(db) {}
  absl::Status Execute(const char* sql) const;
  absl::Status Error(const char* doing) const;

  sqlite3* db_;
};

}  // namespace moesaic
