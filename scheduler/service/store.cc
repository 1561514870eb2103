#include "scheduler/service/store.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <utility>

namespace moesaic {
namespace {

// How often old events are looked for, in events.
constexpr uint64_t kTrimEvery = 1024;

constexpr char kSetUp[] =
    "PRAGMA locking_mode=EXCLUSIVE;"
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=FULL;"
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS jobs(name TEXT PRIMARY KEY, generation INTEGER NOT NULL,"
    " record BLOB NOT NULL);"
    "CREATE TABLE IF NOT EXISTS nodes(name TEXT PRIMARY KEY, record BLOB NOT NULL);"
    "CREATE TABLE IF NOT EXISTS events(job TEXT NOT NULL, sequence INTEGER NOT NULL,"
    " event BLOB NOT NULL, PRIMARY KEY(job, sequence)) WITHOUT ROWID;"
    "COMMIT;";

// By Store::Sql.
constexpr const char* kStatements[] = {
    ("INSERT INTO jobs(name, record, generation) VALUES(?1, ?2, ?3)"
     " ON CONFLICT(name) DO UPDATE SET generation = ?3, record = ?2"),
    "INSERT INTO nodes(name, record) VALUES(?1, ?2) ON CONFLICT(name) DO UPDATE SET record = ?2",
    "INSERT OR REPLACE INTO events(job, sequence, event) VALUES(?1, ?2, ?3)",
    "DELETE FROM events WHERE job = ?1 AND sequence <= ?2",
    "SELECT record, name FROM jobs ORDER BY name",
    "SELECT record, name FROM nodes ORDER BY name",
    "SELECT job, MAX(sequence) FROM events GROUP BY job",
    "SELECT event, sequence FROM events WHERE job = ?1 AND sequence > ?2 "
    "ORDER BY sequence LIMIT ?3",
};

void BindText(sqlite3_stmt* statement, int index, const std::string& text) {
  sqlite3_bind_text(statement, index, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
}

void BindBlob(sqlite3_stmt* statement, int index, const std::string& bytes) {
  sqlite3_bind_blob(statement, index, bytes.data(), static_cast<int>(bytes.size()), SQLITE_STATIC);
}

std::string TextOf(sqlite3_stmt* statement, int column) {
  return std::string(reinterpret_cast<const char*>(sqlite3_column_text(statement, column)),
                     sqlite3_column_bytes(statement, column));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path) {
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  std::unique_ptr<Store> store(new Store(db));
  if (code != SQLITE_OK) return store->Error("opening " + path);
  const absl::Status set_up = store->Execute(kSetUp);
  if (sqlite3_errcode(db) == SQLITE_BUSY) {
    return absl::FailedPreconditionError(fmt::format("another coordinator uses {}", path));
  }
  if (!set_up.ok()) return set_up;
  return store;
}

Store::~Store() {
  for (sqlite3_stmt* statement : prepared_) sqlite3_finalize(statement);
  sqlite3_close(db_);
}

// ---- Writing.

absl::Status Store::Write(const StoreChanges& changes) {
  const bool records = !changes.jobs.empty() || !changes.nodes.empty();
  if (!records && changes.events.empty()) return absl::OkStatus();
  absl::Status status =
      Execute(records ? "PRAGMA synchronous=FULL; BEGIN IMMEDIATE"
                      : "PRAGMA synchronous=NORMAL; BEGIN IMMEDIATE");
  if (!status.ok()) return status;
  status = Put(changes);
  if (status.ok()) return Execute("COMMIT");
  Execute("ROLLBACK").IgnoreError();
  return status;
}

absl::Status Store::Put(const StoreChanges& changes) {
  for (const JobRecord& record : changes.jobs) {
    const absl::StatusOr<sqlite3_stmt*> statement = Prepared(kPutJob);
    if (!statement.ok()) return statement.status();
    sqlite3_bind_int64(*statement, 3, static_cast<int64_t>(record.status().generation()));
    const absl::Status put =
        PutRecord(kPutJob, record.status().job(), record.SerializeAsString());
    if (!put.ok()) return put;
  }
  for (const NodeRecord& record : changes.nodes) {
    const absl::Status put = PutRecord(kPutNode, record.node(), record.SerializeAsString());
    if (!put.ok()) return put;
  }
  for (const StoredEvent& stored : changes.events) {
    if (const absl::Status put = PutEvent(stored); !put.ok()) return put;
  }
  return absl::OkStatus();
}

absl::Status Store::PutRecord(Sql sql, const std::string& name, const std::string& record) {
  const absl::StatusOr<sqlite3_stmt*> statement = Prepared(sql);
  if (!statement.ok()) return statement.status();
  BindText(*statement, 1, name);
  BindBlob(*statement, 2, record);
  return Run(*statement);
}

absl::Status Store::PutEvent(const StoredEvent& stored) {
  const absl::StatusOr<sqlite3_stmt*> insert = Prepared(kPutEvent);
  if (!insert.ok()) return insert.status();
  const uint64_t sequence = stored.event.sequence();
  const std::string bytes = stored.event.SerializeAsString();
  BindText(*insert, 1, stored.job);
  sqlite3_bind_int64(*insert, 2, static_cast<int64_t>(sequence));
  BindBlob(*insert, 3, bytes);
  const absl::Status inserted = Run(*insert);
  if (!inserted.ok() || sequence % kTrimEvery != 0 || sequence <= kKeptEvents) return inserted;
  const absl::StatusOr<sqlite3_stmt*> trim = Prepared(kTrimEvents);
  if (!trim.ok()) return trim.status();
  BindText(*trim, 1, stored.job);
  sqlite3_bind_int64(*trim, 2, static_cast<int64_t>(sequence - kKeptEvents));
  return Run(*trim);
}

// ---- Reading.

template <typename Record>
absl::StatusOr<std::vector<Record>> Store::ReadRecords(sqlite3_stmt* statement) {
  std::vector<Record> records;
  absl::Status status;
  int code = SQLITE_DONE;
  while (status.ok() && (code = sqlite3_step(statement)) == SQLITE_ROW) {
    Record& record = records.emplace_back();
    if (!record.ParseFromArray(sqlite3_column_blob(statement, 0),
                               sqlite3_column_bytes(statement, 0))) {
      status = absl::DataLossError(fmt::format("the record of {} is damaged",
                                               TextOf(statement, 1)));
    }
  }
  if (status.ok() && code != SQLITE_DONE) status = Error("reading");
  sqlite3_reset(statement);
  if (!status.ok()) return status;
  return records;
}

absl::StatusOr<std::vector<JobRecord>> Store::ReadJobs() {
  const absl::StatusOr<sqlite3_stmt*> statement = Prepared(kJobs);
  if (!statement.ok()) return statement.status();
  return ReadRecords<JobRecord>(*statement);
}

absl::StatusOr<std::vector<NodeRecord>> Store::ReadNodes() {
  const absl::StatusOr<sqlite3_stmt*> statement = Prepared(kNodes);
  if (!statement.ok()) return statement.status();
  return ReadRecords<NodeRecord>(*statement);
}

absl::StatusOr<std::map<std::string, uint64_t>> Store::LastSequences() {
  const absl::StatusOr<sqlite3_stmt*> statement = Prepared(kSequences);
  if (!statement.ok()) return statement.status();
  std::map<std::string, uint64_t> last;
  int code = SQLITE_DONE;
  while ((code = sqlite3_step(*statement)) == SQLITE_ROW) {
    last[TextOf(*statement, 0)] = static_cast<uint64_t>(sqlite3_column_int64(*statement, 1));
  }
  const absl::Status status = code == SQLITE_DONE ? absl::OkStatus() : Error("reading");
  sqlite3_reset(*statement);
  if (!status.ok()) return status;
  return last;
}

absl::StatusOr<std::vector<JobEvent>> Store::ReadEvents(const std::string& job, uint64_t after,
                                                        uint32_t limit) {
  const absl::StatusOr<sqlite3_stmt*> statement = Prepared(kEvents);
  if (!statement.ok()) return statement.status();
  BindText(*statement, 1, job);
  sqlite3_bind_int64(*statement, 2, static_cast<int64_t>(after));
  sqlite3_bind_int64(*statement, 3, limit);
  return ReadRecords<JobEvent>(*statement);
}

// ---- SQLite.

absl::Status Store::Execute(const char* sql) {
  return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus()
                                                                        : Error("writing");
}

absl::StatusOr<sqlite3_stmt*> Store::Prepared(Sql sql) {
  sqlite3_stmt*& statement = prepared_[sql];
  if (statement == nullptr &&
      sqlite3_prepare_v2(db_, kStatements[sql], -1, &statement, nullptr) != SQLITE_OK) {
    return Error("preparing");
  }
  return statement;
}

absl::Status Store::Run(sqlite3_stmt* statement) {
  const absl::Status status =
      sqlite3_step(statement) == SQLITE_DONE ? absl::OkStatus() : Error("writing");
  sqlite3_reset(statement);
  return status;
}

absl::Status Store::Error(const std::string& doing) const {
  const char* path = db_ == nullptr ? nullptr : sqlite3_db_filename(db_, "main");
  return absl::InternalError(fmt::format("the coordinator's store {}: {}: {}",
                                         path == nullptr ? "" : path, doing, sqlite3_errmsg(db_)));
}

}  // namespace moesaic
