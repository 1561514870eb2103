#include "scheduler/service/store.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <utility>

namespace moesaic {
namespace {

struct Finalize {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;

constexpr char kSetUp[] =
    "PRAGMA locking_mode=EXCLUSIVE;"
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=FULL;"
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS jobs(name TEXT PRIMARY KEY, generation INTEGER NOT NULL,"
    " record BLOB NOT NULL);"
    "COMMIT;";

constexpr char kInsert[] =
    "INSERT INTO jobs(name, generation, record) VALUES(?1, ?2, ?3)"
    " ON CONFLICT(name) DO UPDATE SET generation = ?2, record = ?3";

}  // namespace

absl::StatusOr<std::unique_ptr<Store>> Store::Open(const std::string& path) {
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  std::unique_ptr<Store> store(new Store(db));
  if (code != SQLITE_OK) return store->Error(("opening " + path).c_str());
  const absl::Status set_up = store->Execute(kSetUp);
  if (sqlite3_errcode(db) == SQLITE_BUSY) {
    return absl::FailedPreconditionError(fmt::format("another coordinator uses {}", path));
  }
  if (!set_up.ok()) return set_up;
  return store;
}

Store::~Store() { sqlite3_close(db_); }

absl::Status Store::Write(const std::vector<JobRecord>& records) {
  if (records.empty()) return absl::OkStatus();
  absl::Status status = Execute("BEGIN IMMEDIATE");
  if (!status.ok()) return status;
  for (const JobRecord& record : records) {
    sqlite3_stmt* raw = nullptr;
    if (sqlite3_prepare_v2(db_, kInsert, -1, &raw, nullptr) != SQLITE_OK) return Error("preparing");
    const Statement statement(raw);
    const std::string& name = record.status().job();
    const std::string bytes = record.SerializeAsString();
    sqlite3_bind_text(raw, 1, name.data(), static_cast<int>(name.size()), SQLITE_STATIC);
    sqlite3_bind_int64(raw, 2, static_cast<int64_t>(record.status().generation()));
    sqlite3_bind_blob(raw, 3, bytes.data(), static_cast<int>(bytes.size()), SQLITE_STATIC);
    if (sqlite3_step(raw) != SQLITE_DONE) {
      status = Error(("writing job " + name).c_str());
      Execute("ROLLBACK").IgnoreError();
      return status;
    }
  }
  return Execute("COMMIT");
}

absl::StatusOr<std::vector<JobRecord>> Store::ReadAll() const {
  sqlite3_stmt* raw = nullptr;
  if (sqlite3_prepare_v2(db_, "SELECT name, record FROM jobs ORDER BY name", -1, &raw, nullptr) !=
      SQLITE_OK) {
    return Error("reading the jobs");
  }
  const Statement statement(raw);
  std::vector<JobRecord> records;
  int code = SQLITE_ROW;
  while ((code = sqlite3_step(raw)) == SQLITE_ROW) {
    JobRecord record;
    if (!record.ParseFromArray(sqlite3_column_blob(raw, 1), sqlite3_column_bytes(raw, 1))) {
      return absl::DataLossError(
          fmt::format("the record of job {} is damaged",
                      reinterpret_cast<const char*>(sqlite3_column_text(raw, 0))));
    }
    records.push_back(std::move(record));
  }
  if (code != SQLITE_DONE) return Error("reading the jobs");
  return records;
}

absl::Status Store::Execute(const char* sql) const {
  return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus()
                                                                        : Error("writing");
}

absl::Status Store::Error(const char* doing) const {
  const char* path = db_ == nullptr ? nullptr : sqlite3_db_filename(db_, "main");
  return absl::InternalError(fmt::format("the coordinator's store {}: {}: {}",
                                         path == nullptr ? "" : path, doing, sqlite3_errmsg(db_)));
}

}  // namespace moesaic
