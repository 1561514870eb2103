// What every kind of communicator must do. Each case is the body of one rank; answers are closed
// formulas of ranks and positions.
#pragma once

#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "parallel/comm/communicator.h"

namespace moesaic {

struct CommunicatorCase {
  std::string name;
  // Runs on every rank of `group`, of any size from 1 on. Uses GoogleTest expectations.
  std::function<void(Communicator& group)> body;
};

inline void PrintTo(const CommunicatorCase& one, std::ostream* out) { *out << one.name; }

std::vector<CommunicatorCase> CommunicatorCases();

// Keeps every stamp. Thread-safe.
class RecordingObserver : public OperationObserver {
 public:
  void Entered(const OperationStamp& stamp) override;
  void Left() override;

  std::vector<OperationStamp> stamps() const;
  // Calls entered and not left.
  int depth() const;

 private:
  mutable Mutex mu_;
  std::vector<OperationStamp> stamps_ ABSL_GUARDED_BY(mu_);
  int depth_ ABSL_GUARDED_BY(mu_) = 0;
};

// The body of one rank: every call is stamped with its name, group, bytes and number.
void ExpectStamps(Communicator& group, const RecordingObserver& observer);

}  // namespace moesaic
