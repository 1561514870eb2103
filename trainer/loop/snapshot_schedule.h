// When snapshots are due: a pure function of the job, the step and the control word that rank 0
// spread with it, so that all ranks decide alike.
#pragma once

#include <cstdint>

#include "trainer/loop/step_sums.h"

namespace moesaic {

struct SnapshotSchedule {
  uint64_t every_steps = 0;  // to disk; 0: only at the end and on request
  uint64_t memory_every_steps = 0;  // to the agents' memory; 0: only what goes to disk
  uint64_t last_step = 0;    // of the job

  // One on the schedule is left out while both buffers are in use; one that was asked for, and the
  // last, wait for a buffer instead.
  bool Due(uint64_t step, const ControlWord& control) const {
    const bool scheduled = (every_steps > 0 && step % every_steps == 0) ||
                           (memory_every_steps > 0 && step % memory_every_steps == 0);
    return step == last_step || control.stop || control.snapshot ||
           (scheduled && !control.hold_snapshots);
  }
};

}  // namespace moesaic
