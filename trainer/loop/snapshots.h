// Snapshots: when this rank takes one, into which buffer, and what it holds. All ranks decide alike,
// because they decide from the control word that rank 0 spread with the step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/checkpoint.pb.h"
#include "proto/coordinator.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/loop/step_sums.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

// When snapshots are due. A pure function of the job and the step.
struct SnapshotSchedule {
  uint64_t every_steps = 0;
  uint64_t last_step = 0;

  bool Due(uint64_t step, const ControlWord& control) const {
    return step == last_step || control.stop || control.snapshot ||
           (every_steps > 0 && step % every_steps == 0 && !control.hold_snapshots);
  }
};

struct SnapshotterInputs {
  std::string job;
  uint64_t generation = 0;
  uint32_t rank = 0;
  std::string arena_path;  // "<path>.0" and "<path>.1" are the buffers
  const ParameterCatalog* catalog = nullptr;
  const ParameterStore* store = nullptr;
  std::vector<int> writers;  // by parameter: trainer/loop/write_plan.h
};

// Copies this rank's part of the state into shared memory. Two buffers, so one snapshot may be
// persisted while the next is taken; never more. Thread-compatible.
class Snapshotter {
 public:
  explicit Snapshotter(SnapshotterInputs inputs) : inputs_(std::move(inputs)) {}

  // Whether the snapshot taken last is neither committed nor given up, as `control` knows.
  bool InFlight(const Control& control) const;

  struct Taken {
    uint32_t buffer = 0;
    uint64_t bytes = 0;
  };
  // ResourceExhausted when shared memory is full. The buffer must be free: at most one snapshot is
  // in flight.
  absl::StatusOr<Taken> Take(const TrainingState& state);

 private:
  SnapshotterInputs inputs_;
  uint64_t last_step_ = 0;  // of the snapshot taken last; 0: none
  uint32_t next_buffer_ = 0;
};

}  // namespace moesaic
