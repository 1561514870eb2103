// The in-process communicator: ranks are threads of one process, messages are copies. It obeys the
// whole contract of Communicator, so that tests of everything above run without MPI and under
// ThreadSanitizer.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/time/time.h"
#include "parallel/comm/communicator.h"

namespace moesaic {

struct InProcessOptions {
  // A call that waits longer throws CommunicatorError naming the ranks that have not entered.
  absl::Duration deadline = absl::Seconds(30);
  // Told of every call of every rank, on the ranks' threads; may be null. Must outlive the group.
  OperationObserver* observer = nullptr;
};

// Communicators of `size` ranks; element r is rank r's, to be used by one thread. A failure on one
// rank (deadline, ranks in different calls, sizes that do not fit) ends all communicators made from
// it.
std::vector<std::unique_ptr<Communicator>> MakeInProcessGroup(int size,
                                                              InProcessOptions options = {});

// Runs body(communicator) on `size` threads, joins them, and rethrows the exception that came first
// (a thrown rank makes the others' pending calls throw CommunicatorError).
void RunRanks(int size, const std::function<void(Communicator&)>& body,
              InProcessOptions options = {});

}  // namespace moesaic
