// Counts the bytes of all tensors that a thread makes: as a rank of a test is a thread, the memory
// of a rank.
#pragma once

#include <cstdint>

namespace moesaic {

// From its construction on, until it ends, tensors that this thread makes are counted, also those
// that other threads let go of. One a thread; must outlive these tensors.
class CountedMemory {
 public:
  CountedMemory();
  ~CountedMemory();
  CountedMemory(const CountedMemory&) = delete;
  CountedMemory& operator=(const CountedMemory&) = delete;

  int64_t bytes() const;  // that there are now
  int64_t most() const;   // that there were at once since the last ForgetMost
  void ForgetMost();

  struct Counts;

 private:
  Counts* const counts_;
};

}  // namespace moesaic
