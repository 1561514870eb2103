#include "tests/equivalence/counting_communicator.h"

#include <numeric>

#include "parallel/comm/reduction.h"

namespace moesaic {
namespace {

class CountingCommunicator : public Communicator {
 public:
  // `world`: ranks of the world, by rank here. `kind`: the name without the number of the group.
  CountingCommunicator(Communicator* inner, std::unique_ptr<Communicator> owned, std::string kind,
                       std::vector<int> world, SentBytes* sent)
      : inner_(*inner),
        owned_(std::move(owned)),
        kind_(std::move(kind)),
        world_(std::move(world)),
        sent_(*sent) {}

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  const std::string& name() const override { return inner_.name(); }

  void AllReduceSum(void* data, int64_t count, ElementType type) override {
    CountAllReduce(std::string("all_reduce ") + (type == ElementType::kFloat64 ? "f64" : "f32"),
                   count, ElementSize(type));
    inner_.AllReduceSum(data, count, type);
  }
  void AllReduceMax(void* data, int64_t count, ElementType type) override {
    CountAllReduce("all_reduce_max", count, ElementSize(type));
    inner_.AllReduceMax(data, count, type);
  }
  void AllGather(const void* in, int64_t bytes, void* out) override {
    CountToAll("all_gather", bytes);
    inner_.AllGather(in, bytes, out);
  }
  void AllGatherV(ConstBytes in, std::span<const MutableBytes> out) override {
    CountToAll("all_gather_v", in.bytes);
    inner_.AllGatherV(in, out);
  }
  void AllToAllV(std::span<const std::span<const ConstBytes>> send,
                 std::span<const std::span<const MutableBytes>> receive) override {
    for (int r = 0; r < size(); ++r) {
      for (const ConstBytes& piece : send[r]) Count("all_to_all", r, piece.bytes);
    }
    inner_.AllToAllV(send, receive);
  }
  void Broadcast(void* data, int64_t bytes, int root) override {
    if (rank() == root) CountToAll("broadcast", bytes);
    inner_.Broadcast(data, bytes, root);
  }
  void Send(const void* data, int64_t bytes, int to) override {
    Count("send", to, bytes);
    inner_.Send(data, bytes, to);
  }
  void Receive(void* data, int64_t bytes, int from) override { inner_.Receive(data, bytes, from); }
  void Barrier() override { inner_.Barrier(); }

  std::unique_ptr<Communicator> Split(std::span<const int> members,
                                      absl::string_view split_name) override {
    std::unique_ptr<Communicator> part = inner_.Split(members, split_name);
    if (part == nullptr) return nullptr;
    std::vector<int> world;
    for (const int member : members) world.push_back(world_[member]);
    const std::string name(split_name);
    return Wrap(std::move(part), name.substr(0, name.find('.')), std::move(world));
  }
  std::unique_ptr<Communicator> Duplicate(absl::string_view duplicate_name) override {
    return Wrap(inner_.Duplicate(duplicate_name), kind_, world_);
  }

 private:
  std::unique_ptr<Communicator> Wrap(std::unique_ptr<Communicator> part, std::string kind,
                                     std::vector<int> world) {
    Communicator* inner = part.get();
    return std::make_unique<CountingCommunicator>(inner, std::move(part), std::move(kind),
                                                  std::move(world), &sent_);
  }

  void Count(const std::string& operation, int to, int64_t bytes) {
    std::vector<int64_t>& by_rank = sent_.to[{kind_, operation}];
    if (by_rank.size() <= static_cast<size_t>(world_[to])) by_rank.resize(world_[to] + 1, 0);
    by_rank[world_[to]] += bytes;
  }
  void CountToAll(const std::string& operation, int64_t bytes) {
    for (int r = 0; r < size(); ++r) Count(operation, r, bytes);
  }
  void CountAllReduce(const std::string& operation, int64_t count, int64_t element) {
    const auto share = [&](int r) {
      const ReductionShare part = ShareOf(count, r, size());
      return (part.end - part.begin) * element;
    };
    for (int r = 0; r < size(); ++r) Count(operation, r, share(r) + share(rank()));
  }

  Communicator& inner_;
  const std::unique_ptr<Communicator> owned_;
  const std::string kind_;
  const std::vector<int> world_;
  SentBytes& sent_;
};

}  // namespace

int64_t SentBytes::ToOthers(const std::string& communicator, const std::string& operation,
                            int self) const {
  const auto found = to.find({communicator, operation});
  if (found == to.end()) return 0;
  int64_t bytes = 0;
  for (int r = 0; r < static_cast<int>(found->second.size()); ++r) {
    if (r != self) bytes += found->second[r];
  }
  return bytes;
}

std::unique_ptr<Communicator> CountSentBytes(Communicator* inner, SentBytes* sent) {
  std::vector<int> world(inner->size());
  std::iota(world.begin(), world.end(), 0);
  return std::make_unique<CountingCommunicator>(inner, nullptr, inner->name(), std::move(world),
                                                sent);
}

}  // namespace moesaic
