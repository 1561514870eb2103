#include "launcher/verbs/log_tail.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "scheduler/state/cluster_state.h"

namespace moesaic {
namespace {

constexpr auto kRetry = std::chrono::milliseconds(300);
// A line that is longer is shown in parts.
constexpr size_t kMaxLine = 1 << 20;

}  // namespace

absl::Status LogTail::Run() {
  generation_ = options_.generation;
  // A coordinator that answers now and goes away later is waited for.
  const absl::Status reached = GetJob(client_, options_.job).status();
  if (!reached.ok()) return reached;
  bool troubled = false;
  while (true) {
    const uint64_t before = offset_;
    absl::Status ended = ReadStream();
    troubled = troubled && offset_ == before;
    absl::StatusOr<bool> more = false;
    if (options_.follow) {
      more = More(ended);
      if (absl::IsUnavailable(more.status())) {
        if (!std::exchange(troubled, true)) on_trouble_(more.status());
        more = true;
      }
      if (!more.ok()) ended = more.status();
    }
    if (!more.ok() || !*more) {
      FlushLine();
      return ended;
    }
    std::this_thread::sleep_for(kRetry);
  }
}

absl::Status LogTail::ReadStream() {
  grpc::ClientContext context;
  context.set_wait_for_ready(options_.follow);  // over a restart of the coordinator
  ReadLogRequest request;
  request.set_job(options_.job);
  request.set_generation(generation_);
  if (options_.rank) {
    request.set_rank(*options_.rank);
  } else {
    request.set_mpirun(true);
  }
  request.set_offset(offset_);
  request.set_follow(options_.follow);
  const auto stream = client_->stub().ReadLog(&context, request);
  LogBytes piece;
  while (stream->Read(&piece)) Take(piece);
  return client_->Explain(stream->Finish());
}

absl::StatusOr<bool> LogTail::More(const absl::Status& ended) {
  if (!ended.ok() && !absl::IsUnavailable(ended) && !absl::IsNotFound(ended)) return ended;
  const absl::StatusOr<JobStatus> status = GetJob(client_, options_.job);
  if (!status.ok()) return status.status();
  if (absl::IsUnavailable(ended)) return true;
  const bool fixed = options_.generation != 0;
  if (!fixed && generation_ != 0 && status->generation() > generation_) {
    FlushLine();
    ++generation_;
    offset_ = 0;
    return true;
  }
  // A generation that never wrote a log is passed over. What was written up to the end of the job
  // is there by the first read after it.
  const bool over = fixed || (HasEnded(status->state()) && std::exchange(read_after_end_, true));
  if (over && !ended.ok()) return ended;
  return !over;
}

void LogTail::Take(const LogBytes& piece) {
  generation_ = piece.generation();
  offset_ = piece.offset() + piece.data().size();
  partial_ += piece.data();
  size_t begin = 0;
  for (size_t end; (end = partial_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    on_line_(generation_, absl::string_view(partial_).substr(begin, end - begin));
  }
  partial_.erase(0, begin);
  if (partial_.size() > kMaxLine) FlushLine();
}

void LogTail::FlushLine() {
  if (!partial_.empty()) on_line_(generation_, partial_);
  partial_.clear();
}

}  // namespace moesaic
