// Lane: one background thread with a communicator of its own, on which collectives run in the order
// they were submitted, beside the computing thread. The reduction lane carries gradient buckets, so
// that a bucket never stands before an all-to-all. Needs MPI_THREAD_MULTIPLE over MPI.
#pragma once

#include <functional>
#include <future>
#include <memory>

#include "parallel/comm/communicator.h"

namespace moesaic {

// Thread-safe. The destructor finishes what was submitted.
class Lane {
 public:
  explicit Lane(std::unique_ptr<Communicator> communicator);
  ~Lane();

  // Runs `work` on the lane's thread after all earlier ones. The future carries its exception.
  std::future<void> Submit(std::function<void(Communicator&)> work);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moesaic
