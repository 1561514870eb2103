// Communicator: collectives over one group of ranks. Always passed in, never global.
//
// Every rank of the group makes the same calls in the same order (of one communicator; different
// communicators are independent). A group of one is a no-op that still copies where the contract
// says so. Calls block until the caller's buffers may be reused.
//
// Errors: a transport error or a missed deadline never returns. Over MPI the process writes what it
// waited for and exits (86 for a deadline); the in-process kind throws CommunicatorError out of
// every rank of the group, so that tests end.
//
// Thread rule: one thread at a time a communicator. To communicate from another thread, give it a
// communicator of its own (Duplicate): that is a **lane** (parallel/comm/lane.h).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>

#include "absl/strings/string_view.h"

namespace moesaic {

enum class ElementType { kFloat32, kFloat64, kBFloat16, kInt32, kInt64, kByte };
int64_t ElementSize(ElementType type);

// What a call was waiting for, for diagnosis.
struct OperationStamp {
  const char* operation = "";  // "all_reduce", ... ; empty: none in progress
  std::string group;           // name of the communicator
  uint64_t sequence = 0;
  int64_t bytes = 0;
};

// Told when a call begins and ends, on the calling thread. The worker's watchdog implements it.
// Must be cheap; thread-safe.
class OperationObserver {
 public:
  virtual ~OperationObserver() = default;
  virtual void Entered(const OperationStamp& stamp) = 0;
  virtual void Left() = 0;
};

class CommunicatorError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// One piece of memory to send from or receive into.
struct ConstBytes {
  const void* data = nullptr;
  int64_t bytes = 0;
};
struct MutableBytes {
  void* data = nullptr;
  int64_t bytes = 0;
};

class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;  // for diagnosis: "data", "expert.0", ...

  // In place, over `count` elements; all types but kByte. Each element is summed in the order of
  // the ranks, whatever the count and the kind: the same layout gives the same bits run to run, and
  // every rank gets the same bits. kBFloat16 is summed in fp32 and rounded once.
  virtual void AllReduceSum(void* data, int64_t count, ElementType type) = 0;
  // kFloat64 and kInt64 only. A NaN wins.
  virtual void AllReduceMax(void* data, int64_t count, ElementType type) = 0;

  // out: size() * bytes, by rank. `in` may be this rank's part of `out`.
  virtual void AllGather(const void* in, int64_t bytes, void* out) = 0;
  // out[r] receives what rank r sends; out[r].bytes must equal rank r's in.bytes.
  virtual void AllGatherV(ConstBytes in, std::span<const MutableBytes> out) = 0;

  // send[r] and receive[r]: the pieces for and from rank r, in order. The pieces of send[r] here
  // and of receive[here] at r have equal total bytes (their cuts may differ). Pieces to this rank
  // itself are copied. Nothing is padded.
  virtual void AllToAllV(std::span<const std::span<const ConstBytes>> send,
                         std::span<const std::span<const MutableBytes>> receive) = 0;

  virtual void Broadcast(void* data, int64_t bytes, int root) = 0;
  // To and from another rank. A send may wait for its receive; those of one pair match in order.
  virtual void Send(const void* data, int64_t bytes, int to) = 0;
  virtual void Receive(void* data, int64_t bytes, int from) = 0;
  virtual void Barrier() = 0;

  // Collective over this group. The new group has `members` (ranks of this one, ascending order is
  // not required; position = new rank); ranks that are not members get nullptr. Different callers
  // may pass different disjoint member lists in the same call.
  virtual std::unique_ptr<Communicator> Split(std::span<const int> members,
                                              absl::string_view split_name) = 0;
  // Collective. The same group with its own order of calls.
  virtual std::unique_ptr<Communicator> Duplicate(absl::string_view duplicate_name) = 0;
};

}  // namespace moesaic
