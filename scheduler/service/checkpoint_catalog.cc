#include "scheduler/service/checkpoint_catalog.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <filesystem>
#include <utility>

#include "base/log.h"

namespace moesaic {
namespace {

struct Finalize {
  void operator()(sqlite3_stmt* statement) const { sqlite3_finalize(statement); }
};
using Statement = std::unique_ptr<sqlite3_stmt, Finalize>;

constexpr char kSetUp[] =
    "PRAGMA locking_mode=EXCLUSIVE;"
    "PRAGMA journal_mode=WAL;"
    "PRAGMA synchronous=NORMAL;"
    "BEGIN IMMEDIATE;"
    "CREATE TABLE IF NOT EXISTS checkpoints(path TEXT PRIMARY KEY, job TEXT NOT NULL,"
    " step INTEGER NOT NULL, entry BLOB NOT NULL);"
    "CREATE INDEX IF NOT EXISTS of_job ON checkpoints(job, step);"
    "COMMIT;"
    "SELECT path, job, step, entry FROM checkpoints LIMIT 1;";

constexpr char kInsert[] = "INSERT OR REPLACE INTO checkpoints VALUES(?1, ?2, ?3, ?4)";

constexpr char kSelect[] = "SELECT entry FROM checkpoints WHERE job = ?1 ORDER BY step, path";

void BindText(sqlite3_stmt* statement, int index, const std::string& text) {
  sqlite3_bind_text(statement, index, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
}

}  // namespace

absl::StatusOr<std::unique_ptr<CheckpointCatalog>> CheckpointCatalog::Open(
    const std::string& path) {
  absl::StatusOr<std::unique_ptr<CheckpointCatalog>> catalog = OpenOnce(path);
  if (catalog.ok() || absl::IsFailedPrecondition(catalog.status())) return catalog;
  LogWarning("{}; it is made anew from the checkpoint folders",
             std::string(catalog.status().message()));
  std::error_code ignored;
  for (const char* suffix : {"", "-wal", "-shm"}) std::filesystem::remove(path + suffix, ignored);
  return OpenOnce(path);
}

absl::StatusOr<std::unique_ptr<CheckpointCatalog>> CheckpointCatalog::OpenOnce(
    const std::string& path) {
  sqlite3* db = nullptr;
  const int code =
      sqlite3_open_v2(path.c_str(), &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, nullptr);
  std::unique_ptr<CheckpointCatalog> catalog(new CheckpointCatalog(db));
  if (code != SQLITE_OK) return catalog->Error();
  const absl::Status set_up = catalog->Execute(kSetUp);
  if (sqlite3_errcode(db) == SQLITE_BUSY) {
    return absl::FailedPreconditionError(fmt::format("another coordinator uses {}", path));
  }
  if (!set_up.ok()) return set_up;
  return catalog;
}

CheckpointCatalog::~CheckpointCatalog() { sqlite3_close(db_); }

absl::Status CheckpointCatalog::Replace(const std::string& job,
                                        const std::vector<CheckpointEntry>& entries) {
  absl::Status status = Execute("BEGIN IMMEDIATE");
  if (!status.ok()) return status;
  status = Put(job, entries);
  if (status.ok()) return Execute("COMMIT");
  Execute("ROLLBACK").IgnoreError();
  return status;
}

absl::Status CheckpointCatalog::Put(const std::string& job,
                                    const std::vector<CheckpointEntry>& entries) const {
  sqlite3_stmt* raw = nullptr;
  if (sqlite3_prepare_v2(db_, "DELETE FROM checkpoints WHERE job = ?1", -1, &raw, nullptr) !=
      SQLITE_OK) {
    return Error();
  }
  const Statement erase(raw);
  BindText(raw, 1, job);
  if (sqlite3_step(raw) != SQLITE_DONE) return Error();
  if (sqlite3_prepare_v2(db_, kInsert, -1, &raw, nullptr) != SQLITE_OK) return Error();
  const Statement insert(raw);
  for (const CheckpointEntry& entry : entries) {
    const std::string bytes = entry.SerializeAsString();
    BindText(raw, 1, entry.path());
    BindText(raw, 2, job);
    sqlite3_bind_int64(raw, 3, static_cast<int64_t>(entry.step()));
    sqlite3_bind_blob(raw, 4, bytes.data(), static_cast<int>(bytes.size()), SQLITE_STATIC);
    if (sqlite3_step(raw) != SQLITE_DONE) return Error();
    sqlite3_reset(raw);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<CheckpointEntry>> CheckpointCatalog::List(
    const std::string& job) const {
  sqlite3_stmt* raw = nullptr;
  if (sqlite3_prepare_v2(db_, kSelect, -1, &raw, nullptr) != SQLITE_OK) return Error();
  const Statement select(raw);
  BindText(raw, 1, job);
  std::vector<CheckpointEntry> entries;
  int code = SQLITE_DONE;
  while ((code = sqlite3_step(raw)) == SQLITE_ROW) {
    CheckpointEntry entry;
    // One that cannot be read is left out: it will be made anew from its folder.
    if (entry.ParseFromArray(sqlite3_column_blob(raw, 0), sqlite3_column_bytes(raw, 0))) {
      entries.push_back(std::move(entry));
    }
  }
  if (code != SQLITE_DONE) return Error();
  return entries;
}

absl::Status CheckpointCatalog::Execute(const char* sql) const {
  return sqlite3_exec(db_, sql, nullptr, nullptr, nullptr) == SQLITE_OK ? absl::OkStatus()
                                                                        : Error();
}

absl::Status CheckpointCatalog::Error() const {
  const char* path = db_ == nullptr ? nullptr : sqlite3_db_filename(db_, "main");
  return absl::InternalError(fmt::format("the catalog of checkpoints {}: {}",
                                         path == nullptr ? "" : path, sqlite3_errmsg(db_)));
}

}  // namespace moesaic
