// The communicator over MPI (Open MPI 4.1, MPI_THREAD_MULTIPLE). Blocking calls poll: where ranks
// outnumber cores, start them with `--mca mpi_yield_when_idle 1`.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "parallel/comm/communicator.h"

namespace moesaic {

// MPI of this process: MPI_Init_thread at creation, MPI_Finalize at destruction (once a process).
// Destroy every communicator first.
class MpiRuntime {
 public:
  // FailedPrecondition when MPI gives no MPI_THREAD_MULTIPLE. `observer` may be null; it must
  // outlive the runtime and is told of every call of every communicator.
  static absl::StatusOr<std::unique_ptr<MpiRuntime>> Create(OperationObserver* observer);
  ~MpiRuntime();

  int rank() const;
  int size() const;
  // Collective over all ranks of the job; a communicator of its own at each call.
  std::unique_ptr<Communicator> World();

 private:
  explicit MpiRuntime(OperationObserver* observer) : observer_(observer) {}
  OperationObserver* observer_;
};

}  // namespace moesaic
