#include "launcher/verbs/byte_progress.h"

#include <fmt/format.h>

#include <array>
#include <utility>

namespace moesaic {
namespace {

std::string ShortTime(double seconds) {
  const auto whole = static_cast<int64_t>(seconds + 0.5);
  if (whole < 60) return fmt::format("{}s", whole);
  if (whole < 3600) return fmt::format("{}m{:02}s", whole / 60, whole % 60);
  return fmt::format("{}h{:02}m", whole / 3600, whole / 60 % 60);
}

absl::Duration Interval(bool terminal) {
  return terminal ? absl::Milliseconds(200) : absl::Seconds(10);
}

constexpr char kClearLine[] = "\r\x1b[K";

}  // namespace

std::string BytesForPeople(int64_t bytes) {
  constexpr std::array<const char*, 6> kUnits = {"B", "kB", "MB", "GB", "TB", "PB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 999.5 && unit + 1 < kUnits.size()) {
    value /= 1000;
    ++unit;
  }
  return unit == 0 || value >= 9.95 ? fmt::format("{:.0f} {}", value, kUnits[unit])
                                    : fmt::format("{:.1f} {}", value, kUnits[unit]);
}

ByteProgress::ByteProgress(std::string what, bool terminal, std::ostream& out, const Clock& clock)
    : what_(std::move(what)),
      terminal_(terminal),
      out_(out),
      clock_(clock),
      start_(clock.Now()),
      next_(start_ + Interval(terminal)) {}

ByteProgress::~ByteProgress() {
  if (terminal_) out_ << kClearLine << std::flush;
}

void ByteProgress::Update(int64_t done, int64_t total) {
  const absl::Time now = clock_.Now();
  if (now < next_ || total == 0) return;
  next_ = now + Interval(terminal_);
  const double rate = static_cast<double>(done) / absl::ToDoubleSeconds(now - start_);
  const std::string left =
      rate > 0 ? ShortTime(static_cast<double>(total - done) / rate) : std::string("?");
  const std::string line =
      fmt::format("{} {} of {} ({}%), {:.1f} MB/s, {} left", what_, BytesForPeople(done),
                  BytesForPeople(total), done * 100 / total, rate / 1e6, left);
  if (terminal_) {
    out_ << kClearLine << line << std::flush;
  } else {
    out_ << line << std::endl;
  }
}

}  // namespace moesaic
