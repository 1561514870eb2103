#include "trainer/loop/metrics.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

using Json = nlohmann::ordered_json;

Json Number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

absl::Status IoError(const std::string& path, const char* action, int error) {
  return absl::UnavailableError(
      absl::StrCat("[metrics] cannot ", action, " ", path, ": ", std::strerror(error)));
}

// Whether the file is empty or its last byte is a newline.
bool EndsWithNewline(int fd) {
  struct stat info;
  char last = '\n';
  if (fstat(fd, &info) != 0 || info.st_size == 0) return true;
  return pread(fd, &last, 1, info.st_size - 1) != 1 || last == '\n';
}

}  // namespace

std::string MetricsLine(const StepMetrics& metrics) {
  Json line;
  line["step"] = metrics.step();
  line["generation"] = metrics.generation();
  line["loss"] = Number(metrics.loss());
  line["aux_loss"] = Number(metrics.aux_loss());
  line["grad_norm"] = Number(metrics.grad_norm());
  line["lr"] = Number(metrics.lr());
  line["tokens"] = metrics.tokens();
  line["seconds"] = Number(metrics.seconds());
  line["tokens_per_second"] = Number(metrics.tokens_per_second());
  Json loads = Json::array();
  for (const double load : metrics.expert_load_max_over_mean()) loads.push_back(Number(load));
  line["expert_load_max_over_mean"] = std::move(loads);
  if (metrics.has_validation_loss()) line["validation_loss"] = Number(metrics.validation_loss());
  if (metrics.has_snapshot_seconds()) line["snapshot_seconds"] = metrics.snapshot_seconds();
  if (metrics.skipped()) line["skipped"] = true;
  return line.dump();
}

absl::StatusOr<std::unique_ptr<MetricsFile>> MetricsFile::Open(const std::string& run_dir) {
  std::error_code error;
  std::filesystem::create_directories(run_dir, error);
  if (error) return IoError(run_dir, "create", error.value());
  const std::string path = absl::StrCat(run_dir, "/metrics.jsonl");
  const int fd = open(path.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return IoError(path, "open", errno);
  std::unique_ptr<MetricsFile> file(new MetricsFile(fd, path));
  if (!EndsWithNewline(fd) && write(fd, "\n", 1) != 1) return IoError(path, "write", errno);
  return file;
}

MetricsFile::~MetricsFile() { close(fd_); }

absl::Status MetricsFile::Append(const StepMetrics& metrics) {
  const std::string line = MetricsLine(metrics) + "\n";
  const ssize_t written = write(fd_, line.data(), line.size());
  if (written < 0) return IoError(path_, "write", errno);
  if (static_cast<size_t>(written) != line.size()) return IoError(path_, "write all of", ENOSPC);
  return absl::OkStatus();
}

}  // namespace moesaic
