// Writes event files as a run does that failed after step 4, went back to step 2 and ended with
// step 6. Usage: write_event_files RUN_DIR
#include <cstdio>

#include "trainer/metrics/tensorboard_file.h"

namespace moesaic {
namespace {

class MovingClock : public Clock {
 public:
  absl::Time Now() const override { return now_ += absl::Seconds(1); }

 private:
  mutable absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
};

int WriteEvents(const std::string& run_dir) {
  MovingClock clock;
  struct {
    uint64_t generation, first, last;
  } const parts[] = {{1, 1, 4}, {2, 3, 6}};
  for (const auto& part : parts) {
    auto file = TensorBoardFile::Open({run_dir, part.generation, part.first, &clock});
    for (uint64_t step = part.first; file.ok() && step <= part.last; ++step) {
      StepRecord record;
      record.step.set_step(step);
      record.step.set_loss(static_cast<double>(step) + 0.25 * static_cast<double>(part.generation));
      if (absl::Status status = (*file)->Append(record); !status.ok()) file = status;
    }
    if (file.ok()) continue;
    std::fprintf(stderr, "%s\n", file.status().ToString().c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) { return argc == 2 ? moesaic::WriteEvents(argv[1]) : 2; }
