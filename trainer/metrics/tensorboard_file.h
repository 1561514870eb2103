// TensorBoard event files (<run_dir>/tensorboard/events.out.tfevents.*), one a generation, written
// by rank 0: records of TFRecord framing that hold TensorBoardEvent messages.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/clock.h"
#include "proto/tensorboard.pb.h"
#include "trainer/metrics/metrics_file.h"

namespace moesaic {

// CRC-32C (Castagnoli), and as TFRecord stores it: rotated and offset, so that a checksum of bytes
// that hold checksums is a good one.
uint32_t Crc32c(absl::string_view bytes);
uint32_t MaskedCrc32c(absl::string_view bytes);

// length (8 bytes, little endian), its masked checksum, the bytes, theirs.
std::string TfRecord(absl::string_view bytes);

// What is plotted of a step, by tag: loss/*, optimizer/*, speed/*, routing/*, and
// routing_layers/<layer>/* where the loads are due.
TensorBoardSummary SummaryOf(const StepRecord& record);

// Thread-compatible.
class TensorBoardFile {
 public:
  struct Options {
    std::string run_dir;
    uint64_t generation = 0;
    // That will be appended: readers drop it and later ones of files before.
    uint64_t first_step = 0;
    const Clock* clock = nullptr;  // must outlive the file
  };
  // Begins a new file, making the folder. Unavailable, naming the path.
  static absl::StatusOr<std::unique_ptr<TensorBoardFile>> Open(const Options& options);

  absl::Status Append(const StepRecord& record);

 private:
  TensorBoardFile(AppendFile file, const Clock* clock) : file_(std::move(file)), clock_(*clock) {}
  absl::Status Write(TensorBoardEvent event);

  AppendFile file_;
  const Clock& clock_;
};

}  // namespace moesaic
