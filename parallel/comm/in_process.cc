#include "parallel/comm/in_process.h"

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <map>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "parallel/comm/pieces.h"
#include "parallel/comm/reduction.h"

namespace moesaic {
namespace {

// Waiters look again this often: condition variables of glibc before 2.41 may lose a wake-up when
// many threads wait (its bug 25847).
constexpr absl::Duration kRecheck = absl::Milliseconds(100);

// What all groups made from one MakeInProcessGroup share: they fail together.
struct Universe {
  explicit Universe(InProcessOptions given) : options(given) {}

  // Ends every pending and later call. The first failure is the one reported.
  void Fail(std::string message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (failure.empty()) failure = std::move(message);
    changed.NotifyAll();
  }

  const InProcessOptions options;
  Mutex mu;
  CondVar changed;
  std::string failure ABSL_GUARDED_BY(mu);
};

// What one rank shows to the others while it is inside a collective call.
struct Entry {
  const char* operation = "";
  const void* in = nullptr;
  void* data = nullptr;
  int64_t bytes = 0;
  ElementType type = ElementType::kByte;
  int root = -1;
  std::span<const std::span<const ConstBytes>> pieces = {};
  std::span<const int> members = {};
};

// A send that waits for its receiver; lives on the sender's stack.
struct Message {
  const void* data = nullptr;
  int64_t bytes = 0;
  enum { kPosted, kTaken, kDone } state = kPosted;
};

struct Group {
  Group(std::shared_ptr<Universe> shared, std::string group_name, int ranks)
      : universe(std::move(shared)),
        name(std::move(group_name)),
        size(ranks),
        entries(ranks),
        present(ranks, false),
        made(ranks) {}

  const std::shared_ptr<Universe> universe;
  const std::string name;
  const int size;
  // Each rank writes its own element before the first meeting of a call and its peers read it until
  // the last one; the meetings order the accesses.
  std::vector<Entry> entries;
  std::vector<bool> present ABSL_GUARDED_BY(universe->mu);
  int arrived ABSL_GUARDED_BY(universe->mu) = 0;
  uint64_t meetings ABSL_GUARDED_BY(universe->mu) = 0;
  std::map<std::pair<int, int>, std::deque<Message*>> mail ABSL_GUARDED_BY(universe->mu);
  std::vector<std::shared_ptr<Group>> made;  // by the rank that made it, as `entries`
};

class InProcessCommunicator : public Communicator {
 public:
  InProcessCommunicator(std::shared_ptr<Group> group, int rank)
      : group_(std::move(group)), rank_(rank) {}

  int rank() const override { return rank_; }
  int size() const override { return group_->size; }
  const std::string& name() const override { return group_->name; }

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
  // One call: stamps it, and knows how to say what went wrong in it.
  class Call {
   public:
    Call(InProcessCommunicator& owner, const char* operation, int64_t bytes)
        : owner_(owner), operation_(operation), sequence_(++owner.sequence_) {
      if (OperationObserver* observer = owner_.options().observer) {
        observer->Entered({operation, owner_.name(), sequence_, bytes});
      }
    }
    ~Call() {
      if (OperationObserver* observer = owner_.options().observer) observer->Left();
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

    std::string Say(absl::string_view what) const {
      return absl::StrCat("[", owner_.name(), "] ", operation_, " #", sequence_, " on rank ",
                          owner_.rank_, ": ", what);
    }
    [[noreturn]] void Fail(absl::string_view what) const {
      MutexLock lock(&owner_.group_->universe->mu);
      owner_.FailLocked(Say(what));
    }

   private:
    InProcessCommunicator& owner_;
    const char* operation_;
    const uint64_t sequence_;
  };

  absl::Time Deadline() const { return Clock::System().Now() + options().deadline; }
  const InProcessOptions& options() const { return group_->universe->options; }
  void ThrowIfFailed() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(group_->universe->mu);
  [[noreturn]] void FailLocked(const std::string& message)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(group_->universe->mu);
  // One wait for a change; may return without one. Throws on a failure anywhere, and fails
  // everything when `deadline` has passed, naming what `call` waited for.
  void WaitForChange(const Call& call, absl::Time deadline, absl::string_view peer)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(group_->universe->mu);

  // Shows `entry`, and waits until all ranks have entered the same operation.
  void Enter(const Call& call, const Entry& entry);
  // Waits for all ranks. Between Enter and the last Meet of a call nobody throws, so that no rank
  // reads memory that another one has freed; what went wrong there is thrown after it.
  void Meet();
  bool Arrive() ABSL_EXCLUSIVE_LOCKS_REQUIRED(group_->universe->mu);  // true: the last one
  std::string Absent() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(group_->universe->mu);
  std::optional<std::string> Disagreement() const;

  void AllReduce(const char* operation, Reduction reduction, void* data, int64_t count,
                 ElementType type);
  void CheckPeer(const Call& call, int peer) const;

  const std::shared_ptr<Group> group_;
  const int rank_;
  uint64_t sequence_ = 0;
};

void InProcessCommunicator::ThrowIfFailed() const {
  if (!group_->universe->failure.empty()) throw CommunicatorError(group_->universe->failure);
}

void InProcessCommunicator::FailLocked(const std::string& message) {
  group_->universe->Fail(message);
  throw CommunicatorError(group_->universe->failure);
}

void InProcessCommunicator::WaitForChange(const Call& call, absl::Time deadline,
                                          absl::string_view peer) {
  ThrowIfFailed();
  const absl::Duration left = deadline - Clock::System().Now();
  if (left <= absl::ZeroDuration()) {
    FailLocked(call.Say(absl::StrCat("waited ", absl::FormatDuration(options().deadline), " for ",
                                     peer.empty() ? Absent() : std::string(peer))));
  }
  group_->universe->changed.WaitFor(&group_->universe->mu, std::min(left, kRecheck));
}

bool InProcessCommunicator::Arrive() {
  group_->present[rank_] = true;
  if (++group_->arrived < group_->size) return false;
  group_->arrived = 0;
  std::fill(group_->present.begin(), group_->present.end(), false);
  ++group_->meetings;
  group_->universe->changed.NotifyAll();
  return true;
}

std::string InProcessCommunicator::Absent() const {
  std::vector<int> absent;
  for (int r = 0; r < group_->size; ++r) {
    if (!group_->present[r]) absent.push_back(r);
  }
  return absl::StrCat(absent.size() == 1 ? "rank " : "ranks ", absl::StrJoin(absent, ", "),
                      ", not entered");
}

std::optional<std::string> InProcessCommunicator::Disagreement() const {
  for (int r = 0; r < group_->size; ++r) {
    const char* theirs = group_->entries[r].operation;
    const char* mine = group_->entries[rank_].operation;
    if (std::strcmp(theirs, mine) != 0) return absl::StrCat("rank ", r, " is in ", theirs);
  }
  return std::nullopt;
}

void InProcessCommunicator::Enter(const Call& call, const Entry& entry) {
  MutexLock lock(&group_->universe->mu);
  ThrowIfFailed();
  group_->entries[rank_] = entry;
  if (group_->arrived + 1 == group_->size) {
    if (std::optional<std::string> wrong = Disagreement()) FailLocked(call.Say(*wrong));
  }
  const uint64_t before = group_->meetings;
  if (Arrive()) return;
  const absl::Time deadline = Deadline();
  while (group_->meetings == before) WaitForChange(call, deadline, "");
}

void InProcessCommunicator::Meet() {
  MutexLock lock(&group_->universe->mu);
  const uint64_t before = group_->meetings;
  if (Arrive()) return;
  while (group_->meetings == before) {
    group_->universe->changed.WaitFor(&group_->universe->mu, kRecheck);
  }
}

// Element ranges are shared out: each rank sums its own in place, where nobody else reads, and then
// all copy from each other.
void InProcessCommunicator::AllReduce(const char* operation, Reduction reduction, void* data,
                                      int64_t count, ElementType type) {
  const int64_t element = ElementSize(type);
  Call call(*this, operation, count * element);
  if (!CanReduce(reduction, type)) call.Fail("this element type cannot be reduced so");
  Enter(call, {.operation = operation, .data = data, .bytes = count * element, .type = type});
  for (int r = 0; r < size(); ++r) {
    const Entry& theirs = group_->entries[r];
    if (theirs.bytes == count * element && theirs.type == type) continue;
    Meet();
    call.Fail(absl::StrCat(count * element, " bytes here, ", theirs.bytes,
                           " bytes or another type on rank ", r));
  }
  const ReductionShare mine = ShareOf(count, rank_, size());
  std::vector<const void*> contributions(size());
  for (int r = 0; r < size(); ++r) {
    contributions[r] = static_cast<char*>(group_->entries[r].data) + mine.begin * element;
  }
  ReduceInOrder(reduction, type, contributions, mine.end - mine.begin,
                static_cast<char*>(data) + mine.begin * element);
  Meet();
  for (int r = 0; r < size(); ++r) {
    const ReductionShare share = ShareOf(count, r, size());
    if (r == rank_ || share.begin == share.end) continue;
    std::memcpy(static_cast<char*>(data) + share.begin * element,
                static_cast<char*>(group_->entries[r].data) + share.begin * element,
                (share.end - share.begin) * element);
  }
  Meet();
}

void InProcessCommunicator::AllGather(const void* in, int64_t bytes, void* out) {
  std::vector<MutableBytes> parts(size());
  for (int r = 0; r < size(); ++r) parts[r] = {static_cast<char*>(out) + r * bytes, bytes};
  AllGatherV({in, bytes}, parts);
}

void InProcessCommunicator::AllGatherV(ConstBytes in, std::span<const MutableBytes> out) {
  Call call(*this, "all_gather", in.bytes);
  if (static_cast<int>(out.size()) != size()) call.Fail("one output a rank is needed");
  Enter(call, {.operation = "all_gather", .in = in.data, .bytes = in.bytes});
  std::string wrong;
  for (int r = 0; r < size(); ++r) {
    const Entry& from = group_->entries[r];
    if (out[r].bytes != from.bytes) {
      wrong = absl::StrCat("rank ", r, " gives ", from.bytes, " bytes, ", out[r].bytes,
                           " are expected");
    } else if (from.bytes > 0 && out[r].data != from.in) {
      std::memcpy(out[r].data, from.in, from.bytes);
    }
  }
  Meet();
  if (!wrong.empty()) call.Fail(wrong);
}

void InProcessCommunicator::AllToAllV(std::span<const std::span<const ConstBytes>> send,
                                      std::span<const std::span<const MutableBytes>> receive) {
  int64_t bytes = 0;
  for (const std::span<const ConstBytes>& pieces : send) bytes += TotalBytes(pieces);
  Call call(*this, "all_to_all", bytes);
  if (static_cast<int>(send.size()) != size() || send.size() != receive.size()) {
    call.Fail("one list of pieces a rank is needed");
  }
  Enter(call, {.operation = "all_to_all", .bytes = bytes, .pieces = send});
  std::string wrong;
  for (int r = 0; r < size(); ++r) {
    const std::span<const ConstBytes> from = group_->entries[r].pieces[rank_];
    if (TotalBytes(from) == TotalBytes(receive[r])) {
      CopyPieces(from, receive[r]);
    } else {
      wrong = absl::StrCat("rank ", r, " sends ", TotalBytes(from), " bytes, ",
                           TotalBytes(receive[r]), " are expected");
    }
  }
  Meet();
  if (!wrong.empty()) call.Fail(wrong);
}

void InProcessCommunicator::Broadcast(void* data, int64_t bytes, int root) {
  Call call(*this, "broadcast", bytes);
  if (root < 0 || root >= size()) call.Fail(absl::StrCat("there is no rank ", root));
  Enter(call, {.operation = "broadcast", .data = data, .bytes = bytes, .root = root});
  const Entry& from = group_->entries[root];
  std::string wrong;
  if (from.bytes != bytes || from.root != root) {
    wrong = absl::StrCat("root ", root, " and ", bytes, " bytes here, root ", from.root, " and ",
                         from.bytes, " bytes on rank ", root);
  } else if (rank_ != root && bytes > 0) {
    std::memcpy(data, from.data, bytes);
  }
  Meet();
  if (!wrong.empty()) call.Fail(wrong);
}

void InProcessCommunicator::CheckPeer(const Call& call, int peer) const {
  if (peer < 0 || peer >= size() || peer == rank_) {
    call.Fail(absl::StrCat("rank ", peer, " is not another rank of the group"));
  }
}

void InProcessCommunicator::Send(const void* data, int64_t bytes, int to) {
  Call call(*this, "send", bytes);
  CheckPeer(call, to);
  Message message{data, bytes};
  MutexLock lock(&group_->universe->mu);
  ThrowIfFailed();
  group_->mail[{rank_, to}].push_back(&message);
  group_->universe->changed.NotifyAll();
  const absl::Time deadline = Deadline();
  while (message.state == Message::kPosted) {
    WaitForChange(call, deadline, absl::StrCat("rank ", to, " to receive"));
  }
  // Taken: the receiver is copying from `data`, so this may not be left until it is done.
  while (message.state != Message::kDone) {
    group_->universe->changed.WaitFor(&group_->universe->mu, kRecheck);
  }
}

void InProcessCommunicator::Receive(void* data, int64_t bytes, int from) {
  Call call(*this, "receive", bytes);
  CheckPeer(call, from);
  Message* message = nullptr;
  {
    MutexLock lock(&group_->universe->mu);
    ThrowIfFailed();
    std::deque<Message*>& mail = group_->mail[{from, rank_}];
    const absl::Time deadline = Deadline();
    while (mail.empty()) {
      WaitForChange(call, deadline, absl::StrCat("rank ", from, " to send"));
    }
    ThrowIfFailed();  // the sender may have left, and its message with it
    message = mail.front();
    mail.pop_front();
    message->state = Message::kTaken;
  }
  const int64_t sent = message->bytes;
  if (sent == bytes && bytes > 0) std::memcpy(data, message->data, bytes);
  {
    MutexLock lock(&group_->universe->mu);
    message->state = Message::kDone;
    group_->universe->changed.NotifyAll();
  }
  if (sent != bytes) {
    call.Fail(absl::StrCat("rank ", from, " sends ", sent, " bytes, ", bytes, " are expected"));
  }
}

void InProcessCommunicator::Barrier() {
  Call call(*this, "barrier", 0);
  Enter(call, {.operation = "barrier"});
}

std::unique_ptr<Communicator> InProcessCommunicator::Split(std::span<const int> members,
                                                           absl::string_view split_name) {
  Call call(*this, "split", 0);
  const auto mine = std::find(members.begin(), members.end(), rank_);
  const bool member = mine != members.end();
  for (int r : members) {
    if (r < 0 || r >= size()) call.Fail(absl::StrCat("there is no rank ", r));
  }
  if (member && members.front() == rank_) {
    group_->made[rank_] = std::make_shared<Group>(group_->universe, std::string(split_name),
                                                  static_cast<int>(members.size()));
  }
  Enter(call, {.operation = "split", .members = members});
  std::string wrong;
  std::shared_ptr<Group> joined;
  if (member) {
    for (int r : members) {
      if (!std::ranges::equal(group_->entries[r].members, members)) {
        wrong = absl::StrCat("rank ", r, " gave another list of members");
      }
    }
    joined = group_->made[members.front()];
  }
  Meet();
  if (!wrong.empty()) call.Fail(wrong);
  if (!member) return nullptr;
  if (members.front() == rank_) group_->made[rank_] = nullptr;
  return std::make_unique<InProcessCommunicator>(std::move(joined),
                                                 static_cast<int>(mine - members.begin()));
}

std::unique_ptr<Communicator> InProcessCommunicator::Duplicate(absl::string_view duplicate_name) {
  std::vector<int> all(size());
  for (int r = 0; r < size(); ++r) all[r] = r;
  return Split(all, duplicate_name);
}

}  // namespace

std::vector<std::unique_ptr<Communicator>> MakeInProcessGroup(int size, InProcessOptions options) {
  auto group = std::make_shared<Group>(std::make_shared<Universe>(options), "world", size);
  std::vector<std::unique_ptr<Communicator>> ranks;
  for (int r = 0; r < size; ++r) {
    ranks.push_back(std::make_unique<InProcessCommunicator>(group, r));
  }
  return ranks;
}

void RunRanks(int size, const std::function<void(Communicator&)>& body, InProcessOptions options) {
  auto group = std::make_shared<Group>(std::make_shared<Universe>(options), "world", size);
  std::exception_ptr first;  // guarded by the universe's lock
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&, r] {
      InProcessCommunicator communicator(group, r);
      try {
        body(communicator);
      } catch (...) {
        MutexLock lock(&group->universe->mu);
        if (!first) first = std::current_exception();
        group->universe->Fail(absl::StrCat("rank ", r, " has thrown"));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace moesaic
