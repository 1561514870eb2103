// What a chaos run does to a job, and when. Pure: the same text and seed give the same faults.
//
//   job: tiny
//   seed: 7
//   recover_within: 30s
//   faults:
//     - {at: step 40, target: rank 1, fault: kill}
//     - {at: 30s, target: node n2, fault: "stop:5s"}
//   random: {every: 20s, until: 5m, targets: [rank, node], faults: [kill, segv, "slow:3x:10s"]}
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

// Whom a fault hits. Without a number or name: one that is chosen by the seed when its time comes.
struct ChaosTarget {
  enum Kind { kRank, kNode, kCoordinator, kCheckpoint };
  Kind kind = kRank;
  std::optional<uint32_t> rank;
  std::string node;
};

// One of `step` and `time` counts.
struct ChaosMoment {
  std::optional<uint64_t> step;  // once so many steps are done
  absl::Duration time;           // after the start of the chaos run
};

struct PlannedFault {
  ChaosMoment at;
  ChaosTarget target;
  Fault fault;
  std::string text;  // as written: "kill of rank 1"
};

struct ChaosSchedule {
  std::string job;
  uint64_t seed = 0;
  // Training must go on this long after a fault (and after the end of one that lasts).
  absl::Duration recover_within = absl::Seconds(60);
  std::vector<PlannedFault> faults;

  // Faults at exponentially distributed times.
  struct Random {
    absl::Duration every;  // mean
    absl::Duration until;
    std::vector<ChaosTarget> targets;
    std::vector<std::string> faults;
  };
  std::optional<Random> random;
};

// InvalidArgument: "chaos.yaml:3:5: ...". `name` is what messages call the text.
absl::StatusOr<ChaosSchedule> ParseChaosSchedule(const std::string& name, const std::string& text);

// "kill", "segv", "exit7", "hang_collective", "stop:5s", "slow:3x:10s", "drop_net:5s",
// "disk_full:10s", "corrupt_shard".
absl::StatusOr<Fault> ParseFault(absl::string_view text);

// All faults of a schedule, the random ones drawn from its seed: those at a time in its order, then
// those at a step in theirs. A fault and a target that do not fit each other are never drawn.
std::vector<PlannedFault> FaultsOf(const ChaosSchedule& schedule);

// Whether such a fault can hit such a target.
bool Fits(const Fault& fault, ChaosTarget::Kind target);

}  // namespace moesaic
