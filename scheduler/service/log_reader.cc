#include "scheduler/service/log_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <span>
#include <utility>

#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr size_t kPieceBytes = 64 << 10;
constexpr size_t kMaxStreams = 1024;
// How often a log that is followed is looked at.
constexpr absl::Duration kPoll = absl::Milliseconds(100);

std::string LogName(const ReadLogRequest& request) {
  return request.mpirun() ? "mpirun.log" : fmt::format("rank-{}.log", request.rank());
}

bool IsOver(const JobStatus& status, uint64_t generation) {
  const bool live = status.state() == STARTING || status.state() == RUNNING ||
                    status.state() == DRAINING || status.state() == ABORTING;
  return status.generation() != generation || !live;
}

absl::StatusOr<std::unique_ptr<ReadableFile>> OpenLog(const std::string& run_dir,
                                                      uint64_t generation,
                                                      const std::string& name) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = FileSystem::System().OpenFolder(run_dir);
  for (const std::string& below : {std::string("logs"), fmt::format("generation-{}", generation)}) {
    if (folder.ok()) folder = (*folder)->OpenFolder(below);
  }
  if (!folder.ok()) return folder.status();
  return (*folder)->Open(name);
}

}  // namespace

// Only the reader's thread starts operations, so the stream lives until that thread has finished
// it.
class LogReader::Stream : public grpc::ServerWriteReactor<LogBytes> {
 public:
  Stream(LogReader* reader, ReadLogRequest wanted) : request(std::move(wanted)), reader_(reader) {}

  void OnWriteDone(bool ok) override {
    if (!ok) gone = true;
    writing = false;
    reader_->Woken();
  }
  void OnCancel() override {
    gone = true;
    reader_->Woken();
  }
  void OnDone() override { delete this; }

  ReadLogRequest request;  // generation and offset go on
  std::string run_dir;
  LogBytes piece;
  std::atomic<bool> writing{false};
  std::atomic<bool> gone{false};
  std::optional<absl::Status> ended;

 private:
  LogReader* const reader_;
};

LogReader::LogReader(CoordinatorCore* core) : core_(core), thread_([this] { Run(); }) {}

LogReader::~LogReader() {
  Shutdown();
  thread_.join();
}

void LogReader::Shutdown() {
  MutexLock lock(&mutex_);
  stopping_ = true;
  changed_.NotifyAll();
}

grpc::ServerWriteReactor<LogBytes>* LogReader::Open(const ReadLogRequest& request) {
  auto* stream = new Stream(this, request);
  absl::Status refused;
  {
    MutexLock lock(&mutex_);
    if (stopping_) refused = absl::UnavailableError("the coordinator is stopping");
    if (streams_.size() >= kMaxStreams) refused = absl::ResourceExhaustedError("too many readers");
    if (refused.ok()) {
      streams_.push_back(stream);
      woken_ = true;
      changed_.NotifyAll();
    }
  }
  if (!refused.ok()) stream->Finish(ToGrpc(refused));
  return stream;
}

void LogReader::Woken() {
  MutexLock lock(&mutex_);
  woken_ = true;
  changed_.NotifyAll();
}

void LogReader::Run() {
  bool stopping = false;
  while (true) {
    std::vector<Stream*> streams;
    {
      MutexLock lock(&mutex_);
      if (stopping && streams_.empty()) return;
      if (!woken_ && !stopping_ && streams_.empty()) {
        changed_.Wait(&mutex_);
      } else if (!woken_) {
        changed_.WaitFor(&mutex_, kPoll);
      }
      woken_ = false;
      stopping = stopping_;
      streams = streams_;
    }
    std::vector<Stream*> over;
    for (Stream* stream : streams) {
      if (stream->writing) continue;
      if (stopping) stream->ended = absl::UnavailableError("the coordinator is stopping");
      if (!stream->ended) Serve(stream, *core_);
      if (stream->ended) over.push_back(stream);
    }
    {
      MutexLock lock(&mutex_);
      for (Stream* stream : over) std::erase(streams_, stream);
    }
    for (Stream* stream : over) stream->Finish(ToGrpc(*stream->ended));
  }
}

void LogReader::Serve(Stream* stream, const CoordinatorCore& core) {
  if (stream->gone) {
    stream->ended = absl::CancelledError("the reader left");
    return;
  }
  absl::StatusOr<Piece> piece = Read(stream, core);
  if (!piece.ok()) {
    stream->ended = piece.status();
  } else if (!piece->data.empty()) {
    stream->piece.set_generation(stream->request.generation());
    stream->piece.set_offset(stream->request.offset());
    stream->request.set_offset(stream->request.offset() + piece->data.size());
    stream->piece.set_data(std::move(piece->data));
    stream->writing = true;
    stream->StartWrite(&stream->piece);
  } else if (piece->end) {
    stream->ended = absl::OkStatus();
  }
}

absl::StatusOr<LogReader::Piece> LogReader::Read(Stream* stream, const CoordinatorCore& core) {
  ReadLogRequest& request = stream->request;
  // Before the log: what is written when the generation is over is all of it.
  const absl::StatusOr<JobStatus> status = core.GetJob(request.job());
  if (!status.ok()) return status.status();
  if (request.generation() == 0) request.set_generation(status->generation());
  if (request.generation() == 0) {
    if (request.follow() && !HasEnded(status->state())) return Piece();
    return absl::NotFoundError(fmt::format("job {} has not run yet", request.job()));
  }
  if (stream->run_dir.empty()) {
    const absl::StatusOr<JobSpec> spec = core.GetSpec(request.job());
    if (!spec.ok()) return spec.status();
    stream->run_dir = spec->run().dir();
  }
  const bool over = !request.follow() || IsOver(*status, request.generation());
  const auto file = OpenLog(stream->run_dir, request.generation(), LogName(request));
  if (absl::IsNotFound(file.status())) {
    if (!over) return Piece();
    return absl::NotFoundError(fmt::format("generation {} of job {} has no {}",
                                           request.generation(), request.job(), LogName(request)));
  }
  if (!file.ok()) return file.status();
  const uint64_t size = (*file)->size();
  if (request.offset() >= size) return Piece{"", over};
  Piece piece;
  piece.data.resize(std::min<uint64_t>(kPieceBytes, size - request.offset()));
  const absl::Status read = (*file)->ReadAt(
      request.offset(), std::as_writable_bytes(std::span(piece.data.data(), piece.data.size())));
  if (!read.ok()) return read;
  return piece;
}

}  // namespace moesaic
