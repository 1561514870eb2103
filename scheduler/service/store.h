// Store: the coordinator's durable memory of jobs, nodes and events, in SQLite (write-ahead log).
// Checkpoints are not in it: their folders are the truth, and checkpoint_catalog.h is an index.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/coordinator.pb.h"
#include "proto/record.pb.h"

struct sqlite3;
struct sqlite3_stmt;

namespace moesaic {

// Of a job, kept for watchers that come late; older ones are dropped.
inline constexpr uint64_t kKeptEvents = 100000;

struct StoredEvent {
  std::string job;
  JobEvent event;
};

// What one decision leaves behind.
struct StoreChanges {
  std::vector<JobRecord> jobs;
  std::vector<NodeRecord> nodes;
  std::vector<StoredEvent> events;
};

// Thread-compatible.
class Store {
 public:
  // Makes the file where it is missing. FailedPrecondition: another process has it open.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // All of it, in one transaction. Records of jobs and nodes are on stable storage when it returns;
  // events alone survive the death of the process, not of the machine.
  absl::Status Write(const StoreChanges& changes);

  // DataLoss when a record cannot be read.
  absl::StatusOr<std::vector<JobRecord>> ReadJobs();
  absl::StatusOr<std::vector<NodeRecord>> ReadNodes();
  // The newest sequence number of each job that has events.
  absl::StatusOr<std::map<std::string, uint64_t>> LastSequences();
  // Up to `limit` events of a job with larger sequence numbers, in order.
  absl::StatusOr<std::vector<JobEvent>> ReadEvents(const std::string& job, uint64_t after,
                                                   uint32_t limit);

 private:
  // Each is prepared once.
  enum Sql { kPutJob, kPutNode, kPutEvent, kTrimEvents, kJobs, kNodes, kSequences, kEvents, kSqls };

  explicit Store(sqlite3* db) : db_(db) {}
  absl::Status Execute(const char* sql);
  absl::StatusOr<sqlite3_stmt*> Prepared(Sql sql);
  absl::Status Run(sqlite3_stmt* statement);
  absl::Status Put(const StoreChanges& changes);
  absl::Status PutRecord(Sql sql, const std::string& name, const std::string& record);
  absl::Status PutEvent(const StoredEvent& stored);
  template <typename Record>
  absl::StatusOr<std::vector<Record>> ReadRecords(sqlite3_stmt* statement);
  absl::Status Error(const std::string& doing) const;

  sqlite3* db_;
  sqlite3_stmt* prepared_[kSqls] = {};
};

}  // namespace moesaic
