#include "parallel/comm/mpi.h"

#include <mpi.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "base/log.h"
#include "parallel/comm/pieces.h"
#include "parallel/comm/reduction.h"

namespace moesaic {
namespace {

// MPI counts are ints: what is longer goes as several messages.
constexpr int64_t kMessageBytes = int64_t{1} << 30;
// Up to here all contributions fit in one gather, whose latency is lower than that of two
// exchanges.
constexpr int64_t kGatherBytes = 32 << 10;

enum Tag { kPointToPointTag = 1, kExchangeTag = 2 };

// Ranks of the job cannot go on without each other: say what failed and leave, which ends the job.
[[noreturn]] void Die(const OperationStamp& stamp, absl::string_view what) {
  LogError("[{}] {} #{} of {} bytes: {}", stamp.group, stamp.operation, stamp.sequence, stamp.bytes,
           std::string(what));
  std::_Exit(1);
}

void Check(int code, const OperationStamp& stamp) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  Die(stamp, absl::string_view(text, length));
}

// A committed datatype over the pieces, at absolute addresses. Measured against packing into a
// staging buffer: up to twice as fast with four ranks in shared memory, mixed elsewhere
// (docs/design/communication.md), and it needs no second buffer.
template <typename Piece>
class PiecesType {
 public:
  PiecesType(const std::vector<Piece>& pieces, const OperationStamp& stamp) {
    std::vector<int> lengths;
    std::vector<MPI_Aint> addresses;
    for (const Piece& piece : pieces) {
      lengths.push_back(static_cast<int>(piece.bytes));
      addresses.emplace_back();
      Check(MPI_Get_address(piece.data, &addresses.back()), stamp);
    }
    Check(MPI_Type_create_hindexed(static_cast<int>(pieces.size()), lengths.data(),
                                   addresses.data(), MPI_BYTE, &type_),
          stamp);
    Check(MPI_Type_commit(&type_), stamp);
  }
  ~PiecesType() { MPI_Type_free(&type_); }
  PiecesType(const PiecesType&) = delete;
  PiecesType& operator=(const PiecesType&) = delete;

  MPI_Datatype get() const { return type_; }

 private:
  MPI_Datatype type_ = MPI_DATATYPE_NULL;
};

// The messages of one exchange in flight.
class Exchange {
 public:
  Exchange(MPI_Comm comm, const OperationStamp& stamp) : comm_(comm), stamp_(stamp) {}

  void Receive(std::span<const MutableBytes> pieces, int from) {
    for (const std::vector<MutableBytes>& message : CutMessages(pieces, kMessageBytes)) {
      expected_.push_back(static_cast<int>(TotalBytes(message)));
      MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
      if (message.size() == 1) {
        Check(MPI_Irecv(message[0].data, expected_.back(), MPI_BYTE, from, kExchangeTag, comm_,
                        &request),
              stamp_);
      } else {
        // Freeing a type that is in use is legal: MPI keeps it until the operation is complete.
        const PiecesType<MutableBytes> type(message, stamp_);
        Check(MPI_Irecv(MPI_BOTTOM, 1, type.get(), from, kExchangeTag, comm_, &request), stamp_);
      }
    }
  }

  // After all receives.
  void Send(std::span<const ConstBytes> pieces, int to) {
    for (const std::vector<ConstBytes>& message : CutMessages(pieces, kMessageBytes)) {
      MPI_Request& request = requests_.emplace_back(MPI_REQUEST_NULL);
      if (message.size() == 1) {
        Check(MPI_Isend(message[0].data, static_cast<int>(message[0].bytes), MPI_BYTE, to,
                        kExchangeTag, comm_, &request),
              stamp_);
      } else {
        const PiecesType<ConstBytes> type(message, stamp_);
        Check(MPI_Isend(MPI_BOTTOM, 1, type.get(), to, kExchangeTag, comm_, &request), stamp_);
      }
    }
  }

  // Waits for all, and dies when a message was shorter than its receiver's pieces (MPI itself
  // refuses longer ones).
  void Wait() {
    std::vector<MPI_Status> statuses(requests_.size());
    const int code =
        MPI_Waitall(static_cast<int>(requests_.size()), requests_.data(), statuses.data());
    if (code == MPI_ERR_IN_STATUS) {
      for (const MPI_Status& status : statuses) Check(status.MPI_ERROR, stamp_);
    }
    Check(code, stamp_);
    for (size_t i = 0; i < expected_.size(); ++i) {
      int bytes = 0;
      Check(MPI_Get_elements(&statuses[i], MPI_BYTE, &bytes), stamp_);
      if (bytes != expected_[i]) {
        Die(stamp_, absl::StrCat("rank ", statuses[i].MPI_SOURCE, " sent ", bytes, " bytes, ",
                                 expected_[i], " are expected"));
      }
    }
  }

 private:
  const MPI_Comm comm_;
  const OperationStamp& stamp_;
  std::vector<int> expected_;  // bytes of the first requests, which are the receives
  std::vector<MPI_Request> requests_;
};

class MpiCommunicator : public Communicator {
 public:
  // Owns `comm`.
  MpiCommunicator(MPI_Comm comm, std::string group_name, OperationObserver* observer)
      : comm_(comm), name_(std::move(group_name)), observer_(observer) {
    const OperationStamp stamp{"create", name_};
    Check(MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN), stamp);
    Check(MPI_Comm_rank(comm_, &rank_), stamp);
    Check(MPI_Comm_size(comm_, &size_), stamp);
  }
  ~MpiCommunicator() override { MPI_Comm_free(&comm_); }

  int rank() const override { return rank_; }
  int size() const override { return size_; }
  const std::string& name() const override { return name_; }

  void AllReduceSum(void* data, int64_t count, ElementType type) override {
    AllReduce("all_reduce", Reduction::kSum, data, count, type);
  }
  void AllReduceMax(void* data, int64_t count, ElementType type) override {
    AllReduce("all_reduce_max", Reduction::kMax, data, count, type);
  }
  void AllGather(const void* in, int64_t bytes, void* out) override;
  void AllGatherV(ConstBytes in, std::span<const MutableBytes> out) override;
  void AllToAllV(std::span<const std::span<const ConstBytes>> send,
                 std::span<const std::span<const MutableBytes>> receive) override;
  void Broadcast(void* data, int64_t bytes, int root) override;
  void Send(const void* data, int64_t bytes, int to) override;
  void Receive(void* data, int64_t bytes, int from) override;
  void Barrier() override;
  std::unique_ptr<Communicator> Split(std::span<const int> members,
                                      absl::string_view split_name) override;
  std::unique_ptr<Communicator> Duplicate(absl::string_view duplicate_name) override;

 private:
  // One call, as the observer sees it.
  class Call {
   public:
    Call(MpiCommunicator& owner, const char* operation, int64_t bytes)
        : stamp_{operation, owner.name_, ++owner.sequence_, bytes}, observer_(owner.observer_) {
      if (observer_ != nullptr) observer_->Entered(stamp_);
    }
    ~Call() {
      if (observer_ != nullptr) observer_->Left();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    const OperationStamp& stamp() const { return stamp_; }

   private:
    const OperationStamp stamp_;
    OperationObserver* const observer_;
  };

  void AllReduce(const char* operation, Reduction reduction, void* data, int64_t count,
                 ElementType type);
  void GatherAndReduce(const Call& call, Reduction reduction, void* data, int64_t count,
                       ElementType type);
  void ExchangeAndReduce(const Call& call, Reduction reduction, void* data, int64_t count,
                         ElementType type);
  void ExchangeAll(const Call& call, std::span<const std::span<const ConstBytes>> send,
                   std::span<const std::span<const MutableBytes>> receive);

  MPI_Comm comm_;
  const std::string name_;
  OperationObserver* const observer_;
  int rank_ = 0;
  int size_ = 1;
  uint64_t sequence_ = 0;
  std::vector<char> scratch_;  // contributions of the others to what this rank reduces
};

// All but this rank's own part.
void MpiCommunicator::ExchangeAll(const Call& call,
                                  std::span<const std::span<const ConstBytes>> send,
                                  std::span<const std::span<const MutableBytes>> receive) {
  Exchange exchange(comm_, call.stamp());
  for (int step = 1; step < size_; ++step) {
    const int from = (rank_ + size_ - step) % size_;
    exchange.Receive(receive[from], from);
  }
  for (int step = 1; step < size_; ++step) {
    const int to = (rank_ + step) % size_;
    exchange.Send(send[to], to);
  }
  exchange.Wait();
}

void MpiCommunicator::AllReduce(const char* operation, Reduction reduction, void* data,
                                int64_t count, ElementType type) {
  const int64_t bytes = count * ElementSize(type);
  Call call(*this, operation, bytes);
  if (!CanReduce(reduction, type)) Die(call.stamp(), "this element type cannot be reduced so");
  if (size_ == 1 || count == 0) return;
  if (bytes * size_ <= kGatherBytes) {
    GatherAndReduce(call, reduction, data, count, type);
  } else {
    ExchangeAndReduce(call, reduction, data, count, type);
  }
}

void MpiCommunicator::GatherAndReduce(const Call& call, Reduction reduction, void* data,
                                      int64_t count, ElementType type) {
  const int bytes = static_cast<int>(count * ElementSize(type));
  scratch_.resize(static_cast<size_t>(bytes) * size_);
  Check(MPI_Allgather(data, bytes, MPI_BYTE, scratch_.data(), bytes, MPI_BYTE, comm_),
        call.stamp());
  std::vector<const void*> contributions(size_);
  for (int r = 0; r < size_; ++r) contributions[r] = scratch_.data() + int64_t{bytes} * r;
  ReduceInOrder(reduction, type, contributions, count, data);
}

// Each rank reduces its share of the elements, in the order of the ranks, and gives it to all.
void MpiCommunicator::ExchangeAndReduce(const Call& call, Reduction reduction, void* data,
                                        int64_t count, ElementType type) {
  const int64_t element = ElementSize(type);
  std::vector<MutableBytes> shares(size_), others(size_);
  for (int r = 0; r < size_; ++r) {
    const ReductionShare share = ShareOf(count, r, size_);
    shares[r] = {static_cast<char*>(data) + share.begin * element,
                 (share.end - share.begin) * element};
  }
  const MutableBytes mine = shares[rank_];
  scratch_.resize(static_cast<size_t>(mine.bytes) * size_);
  std::vector<const void*> contributions(size_);
  std::vector<ConstBytes> outgoing(size_);
  std::vector<std::span<const ConstBytes>> send(size_);
  std::vector<std::span<const MutableBytes>> receive(size_);
  for (int r = 0; r < size_; ++r) {
    others[r] = {scratch_.data() + mine.bytes * r, mine.bytes};
    contributions[r] = r == rank_ ? mine.data : others[r].data;
    outgoing[r] = {shares[r].data, shares[r].bytes};
    send[r] = {&outgoing[r], 1};
    receive[r] = {&others[r], 1};
  }
  ExchangeAll(call, send, receive);
  ReduceInOrder(reduction, type, contributions, mine.bytes / element, mine.data);
  for (int r = 0; r < size_; ++r) {
    send[r] = {&outgoing[rank_], 1};
    receive[r] = {&shares[r], 1};
  }
  ExchangeAll(call, send, receive);
}

void MpiCommunicator::AllGather(const void* in, int64_t bytes, void* out) {
  std::vector<MutableBytes> parts(size_);
  for (int r = 0; r < size_; ++r) parts[r] = {static_cast<char*>(out) + r * bytes, bytes};
  if (bytes > kGatherBytes) return AllGatherV({in, bytes}, parts);
  Call call(*this, "all_gather", bytes);
  const int count = static_cast<int>(bytes);
  if (in == parts[rank_].data) in = MPI_IN_PLACE;
  Check(MPI_Allgather(in, count, MPI_BYTE, out, count, MPI_BYTE, comm_), call.stamp());
}

void MpiCommunicator::AllGatherV(ConstBytes in, std::span<const MutableBytes> out) {
  Call call(*this, "all_gather", in.bytes);
  if (static_cast<int>(out.size()) != size_) Die(call.stamp(), "one output a rank is needed");
  if (out[rank_].bytes != in.bytes) Die(call.stamp(), "this rank's output has another size");
  const std::vector<std::span<const ConstBytes>> send(size_, std::span<const ConstBytes>(&in, 1));
  std::vector<std::span<const MutableBytes>> receive(size_);
  for (int r = 0; r < size_; ++r) receive[r] = out.subspan(r, 1);
  ExchangeAll(call, send, receive);
  if (in.data != out[rank_].data) CopyPieces(send[rank_], receive[rank_]);
}

void MpiCommunicator::AllToAllV(std::span<const std::span<const ConstBytes>> send,
                                std::span<const std::span<const MutableBytes>> receive) {
  int64_t bytes = 0;
  for (const std::span<const ConstBytes>& pieces : send) bytes += TotalBytes(pieces);
  Call call(*this, "all_to_all", bytes);
  if (static_cast<int>(send.size()) != size_ || send.size() != receive.size()) {
    Die(call.stamp(), "one list of pieces a rank is needed");
  }
  if (TotalBytes(send[rank_]) != TotalBytes(receive[rank_])) {
    Die(call.stamp(), absl::StrCat("this rank sends itself ", TotalBytes(send[rank_]), " bytes, ",
                                   TotalBytes(receive[rank_]), " are expected"));
  }
  ExchangeAll(call, send, receive);
  CopyPieces(send[rank_], receive[rank_]);
}

void MpiCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  Call call(*this, "broadcast", bytes);
  for (int64_t at = 0; at < bytes; at += kMessageBytes) {
    const int count = static_cast<int>(std::min(kMessageBytes, bytes - at));
    Check(MPI_Bcast(static_cast<char*>(data) + at, count, MPI_BYTE, root, comm_), call.stamp());
  }
}

void MpiCommunicator::Send(const void* data, int64_t bytes, int to) {
  Call call(*this, "send", bytes);
  for (int64_t at = 0; at == 0 || at < bytes; at += kMessageBytes) {
    const int count = static_cast<int>(std::min(kMessageBytes, bytes - at));
    Check(
        MPI_Send(static_cast<const char*>(data) + at, count, MPI_BYTE, to, kPointToPointTag, comm_),
        call.stamp());
  }
}

void MpiCommunicator::Receive(void* data, int64_t bytes, int from) {
  Call call(*this, "receive", bytes);
  for (int64_t at = 0; at == 0 || at < bytes; at += kMessageBytes) {
    const int count = static_cast<int>(std::min(kMessageBytes, bytes - at));
    MPI_Status status;
    Check(MPI_Recv(static_cast<char*>(data) + at, count, MPI_BYTE, from, kPointToPointTag, comm_,
                   &status),
          call.stamp());
    int received = 0;
    Check(MPI_Get_count(&status, MPI_BYTE, &received), call.stamp());
    if (received != count) {
      Die(call.stamp(),
          absl::StrCat("rank ", from, " sent ", received, " bytes, ", count, " are expected"));
    }
  }
}

void MpiCommunicator::Barrier() {
  Call call(*this, "barrier", 0);
  Check(MPI_Barrier(comm_), call.stamp());
}

std::unique_ptr<Communicator> MpiCommunicator::Split(std::span<const int> members,
                                                     absl::string_view split_name) {
  Call call(*this, "split", 0);
  const auto mine = std::find(members.begin(), members.end(), rank_);
  const bool member = mine != members.end();
  const int place = static_cast<int>(mine - members.begin());
  MPI_Comm joined = MPI_COMM_NULL;
  Check(MPI_Comm_split(comm_, member ? members.front() : MPI_UNDEFINED, place, &joined),
        call.stamp());
  if (!member) return nullptr;
  auto group = std::make_unique<MpiCommunicator>(joined, std::string(split_name), observer_);
  if (group->size() != static_cast<int>(members.size()) || group->rank() != place) {
    Die(call.stamp(), absl::StrCat("ranks gave different lists of members for ", split_name));
  }
  return group;
}

std::unique_ptr<Communicator> MpiCommunicator::Duplicate(absl::string_view duplicate_name) {
  Call call(*this, "duplicate", 0);
  MPI_Comm copy = MPI_COMM_NULL;
  Check(MPI_Comm_dup(comm_, &copy), call.stamp());
  return std::make_unique<MpiCommunicator>(copy, std::string(duplicate_name), observer_);
}

}  // namespace

absl::StatusOr<std::unique_ptr<MpiRuntime>> MpiRuntime::Create(OperationObserver* observer) {
  int provided = MPI_THREAD_SINGLE;
  if (MPI_Init_thread(nullptr, nullptr, MPI_THREAD_MULTIPLE, &provided) != MPI_SUCCESS) {
    return absl::FailedPreconditionError(
        "[mpi] MPI_Init_thread failed: is mpirun's Open MPI the "
        "one this program was built with?");
  }
  std::unique_ptr<MpiRuntime> runtime(new MpiRuntime(observer));
  if (provided != MPI_THREAD_MULTIPLE) {
    return absl::FailedPreconditionError(
        absl::StrCat("[mpi] MPI gives thread level ", provided,
                     ", MPI_THREAD_MULTIPLE is needed: use an Open MPI built with it"));
  }
  Check(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN), {"init", "world"});
  return runtime;
}

MpiRuntime::~MpiRuntime() { MPI_Finalize(); }

int MpiRuntime::rank() const {
  int rank = 0;
  Check(MPI_Comm_rank(MPI_COMM_WORLD, &rank), {"rank", "world"});
  return rank;
}

int MpiRuntime::size() const {
  int size = 1;
  Check(MPI_Comm_size(MPI_COMM_WORLD, &size), {"size", "world"});
  return size;
}

std::unique_ptr<Communicator> MpiRuntime::World() {
  MPI_Comm copy = MPI_COMM_NULL;
  Check(MPI_Comm_dup(MPI_COMM_WORLD, &copy), {"duplicate", "world"});
  return std::make_unique<MpiCommunicator>(copy, "world", observer_);
}

}  // namespace moesaic
