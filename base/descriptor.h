// Descriptor: an open file descriptor, closed by its owner's end. Thread-compatible.
#pragma once

#include <unistd.h>

#include <utility>

namespace moesaic {

class Descriptor {
 public:
  // Takes the descriptor; a negative one (of an open that failed) stands for none.
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }

  int get() const { return fd_; }
  // The caller closes it.
  int Release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

}  // namespace moesaic
