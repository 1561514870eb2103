#include "scheduler/service/checkpoint_catalog.h"

#include <fmt/format.h>
#include <sqlite3.h>

#include <filesystem>
#include <optional>
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
    " step INTEGER NOT NULL, generation INTEGER NOT NULL, created_unix_ns INTEGER NOT NULL,"
    " bytes INTEGER NOT NULL, reused_bytes INTEGER NOT NULL, pinned INTEGER NOT NULL, loss REAL,"
    " validation_loss REAL, verified_unix_ns INTEGER NOT NULL, quarantined TEXT NOT NULL);"
    "CREATE INDEX IF NOT EXISTS of_job ON checkpoints(job, step);"
    "COMMIT;"
    "SELECT path, job, step, generation, created_unix_ns, bytes, reused_bytes, pinned, loss,"
    " validation_loss, verified_unix_ns, quarantined FROM checkpoints LIMIT 1;";

constexpr char kInsert[] =
    "INSERT OR REPLACE INTO checkpoints VALUES(?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)";

constexpr char kSelect[] =
    "SELECT path, job, step, generation, created_unix_ns, bytes, reused_bytes, pinned, loss,"
    " validation_loss, verified_unix_ns, quarantined FROM checkpoints WHERE job = ?1"
    " ORDER BY step, path";

void BindText(sqlite3_stmt* statement, int index, const std::string& text) {
  sqlite3_bind_text(statement, index, text.data(), static_cast<int>(text.size()), SQLITE_STATIC);
}

void BindNumber(sqlite3_stmt* statement, int index, uint64_t number) {
  sqlite3_bind_int64(statement, index, static_cast<int64_t>(number));
}

void BindReal(sqlite3_stmt* statement, int index, std::optional<double> value) {
  if (value) {
    sqlite3_bind_double(statement, index, *value);
  } else {
    sqlite3_bind_null(statement, index);
  }
}

std::string TextOf(sqlite3_stmt* statement, int column) {
  return std::string(reinterpret_cast<const char*>(sqlite3_column_text(statement, column)),
                     sqlite3_column_bytes(statement, column));
}

uint64_t NumberOf(sqlite3_stmt* statement, int column) {
  return static_cast<uint64_t>(sqlite3_column_int64(statement, column));
}

CheckpointEntry EntryOf(sqlite3_stmt* row) {
  CheckpointEntry entry;
  entry.set_path(TextOf(row, 0));
  entry.set_job(TextOf(row, 1));
  entry.set_step(NumberOf(row, 2));
  entry.set_generation(NumberOf(row, 3));
  entry.set_created_unix_ns(sqlite3_column_int64(row, 4));
  entry.set_bytes(NumberOf(row, 5));
  entry.set_reused_bytes(NumberOf(row, 6));
  entry.set_pinned(NumberOf(row, 7) != 0);
  if (sqlite3_column_type(row, 8) != SQLITE_NULL) entry.set_loss(sqlite3_column_double(row, 8));
  if (sqlite3_column_type(row, 9) != SQLITE_NULL) {
    entry.set_validation_loss(sqlite3_column_double(row, 9));
  }
  entry.set_verified_unix_ns(sqlite3_column_int64(row, 10));
  entry.set_quarantined(TextOf(row, 11));
  return entry;
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
    BindText(raw, 1, entry.path());
    BindText(raw, 2, job);
    BindNumber(raw, 3, entry.step());
    BindNumber(raw, 4, entry.generation());
    sqlite3_bind_int64(raw, 5, entry.created_unix_ns());
    BindNumber(raw, 6, entry.bytes());
    BindNumber(raw, 7, entry.reused_bytes());
    BindNumber(raw, 8, entry.pinned() ? 1 : 0);
    BindReal(raw, 9, entry.has_loss() ? std::optional(entry.loss()) : std::nullopt);
    BindReal(raw, 10, entry.has_validation_loss() ? std::optional(entry.validation_loss())
                                                  : std::nullopt);
    sqlite3_bind_int64(raw, 11, entry.verified_unix_ns());
    BindText(raw, 12, entry.quarantined());
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
  while ((code = sqlite3_step(raw)) == SQLITE_ROW) entries.push_back(EntryOf(raw));
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
