#include "tests/conformance/communicator_suite.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <thread>

#include "parallel/comm/lane.h"

namespace moesaic {
namespace {

// Around the sizes where implementations change their ways.
const int64_t kCounts[] = {0, 1, 2, 3, 7, 64, 1001, 4097, 20011};

// Positions below `count` for which `right` does not hold.
template <typename Right>
int64_t CountWrong(int64_t count, const Right& right) {
  int64_t wrong = 0;
  for (int64_t i = 0; i < count; ++i) wrong += !right(i);
  return wrong;
}

template <typename T>
void ExpectSums(Communicator& group, ElementType type) {
  const int n = group.size();
  for (int64_t count : kCounts) {
    std::vector<T> data(count);
    for (int64_t i = 0; i < count; ++i) data[i] = static_cast<T>((group.rank() + 1) * (i % 97 + 1));
    group.AllReduceSum(data.data(), count, type);
    const auto right = [&](int64_t i) {
      return data[i] == static_cast<T>(n * (n + 1) / 2 * (i % 97 + 1));
    };
    EXPECT_EQ(CountWrong(count, right), 0) << count;
  }
}

void SumsOfEveryType(Communicator& group) {
  ExpectSums<float>(group, ElementType::kFloat32);
  ExpectSums<double>(group, ElementType::kFloat64);
  ExpectSums<int32_t>(group, ElementType::kInt32);
  ExpectSums<int64_t>(group, ElementType::kInt64);
}

uint16_t ToBFloat16(float exact) {
  return static_cast<uint16_t>(std::bit_cast<uint32_t>(exact) >> 16);
}

// Rank 0 gives 256, the others 1 each. Rounded at each addition, 256 + 1 would stay 256 for ever.
void BFloat16IsRoundedOnce(Communicator& group) {
  for (int64_t count : kCounts) {
    std::vector<uint16_t> data(count, ToBFloat16(group.rank() == 0 ? 256.0f : 1.0f));
    group.AllReduceSum(data.data(), count, ElementType::kBFloat16);
    const int sum = 256 + group.size() - 1;
    const int even = (sum % 4 == 3) ? sum + 1 : (sum % 2 == 1 ? sum - 1 : sum);  // ties to even
    const uint16_t expected = ToBFloat16(static_cast<float>(even));
    EXPECT_EQ(CountWrong(count, [&](int64_t i) { return data[i] == expected; }), 0) << count;
  }
}

float Contribution(int rank, int64_t i) {
  return std::sin(static_cast<float>(rank * 7919 + i)) * std::exp2(static_cast<float>(i % 23));
}

void SumsAreInTheOrderOfTheRanks(Communicator& group) {
  for (int64_t count : kCounts) {
    std::vector<float> data(count);
    for (int64_t i = 0; i < count; ++i) data[i] = Contribution(group.rank(), i);
    group.AllReduceSum(data.data(), count, ElementType::kFloat32);
    const auto right = [&](int64_t i) {
      float sum = Contribution(0, i);
      for (int r = 1; r < group.size(); ++r) sum += Contribution(r, i);
      return std::bit_cast<uint32_t>(data[i]) == std::bit_cast<uint32_t>(sum);
    };
    EXPECT_EQ(CountWrong(count, right), 0) << count;
  }
}

void MaximaKeepNaN(Communicator& group) {
  for (int64_t count : kCounts) {
    std::vector<int64_t> whole(count);
    std::vector<double> real(count);
    for (int64_t i = 0; i < count; ++i) {
      whole[i] = (group.rank() + i) % group.size();
      real[i] = -1.5 - group.rank();
      // Every rank in turn has the only NaN.
      if (i % (2 * group.size()) == group.rank()) real[i] = std::nan("");
    }
    group.AllReduceMax(whole.data(), count, ElementType::kInt64);
    group.AllReduceMax(real.data(), count, ElementType::kFloat64);
    const auto right = [&](int64_t i) {
      const bool nan = i % (2 * group.size()) < group.size();
      return whole[i] == group.size() - 1 && (nan ? std::isnan(real[i]) : real[i] == -1.5);
    };
    EXPECT_EQ(CountWrong(count, right), 0) << count;
  }
}

char ByteOf(int from, int to, int64_t i) { return static_cast<char>(31 * from + 7 * to + i); }

void GathersEqualParts(Communicator& group) {
  for (int64_t bytes : kCounts) {
    for (bool in_place : {false, true}) {
      std::vector<char> in(bytes), out(bytes * group.size());
      for (int64_t i = 0; i < bytes; ++i) in[i] = ByteOf(group.rank(), 0, i);
      char* mine = out.data() + bytes * group.rank();
      if (in_place) std::copy(in.begin(), in.end(), mine);
      group.AllGather(in_place ? mine : in.data(), bytes, out.data());
      for (int r = 0; r < group.size(); ++r) {
        const auto right = [&](int64_t i) { return out[r * bytes + i] == ByteOf(r, 0, i); };
        EXPECT_EQ(CountWrong(bytes, right), 0) << bytes;
      }
    }
  }
}

void GathersUnequalParts(Communicator& group) {
  for (int64_t unit : kCounts) {
    std::vector<char> in(unit * group.rank());  // rank 0 gives nothing
    for (size_t i = 0; i < in.size(); ++i) in[i] = ByteOf(group.rank(), 1, i);
    std::vector<std::vector<char>> parts(group.size());
    std::vector<MutableBytes> out;
    for (int r = 0; r < group.size(); ++r) {
      parts[r].resize(unit * r);
      out.push_back({parts[r].data(), unit * r});
    }
    group.AllGatherV({in.data(), static_cast<int64_t>(in.size())}, out);
    for (int r = 0; r < group.size(); ++r) {
      const auto right = [&](int64_t i) { return parts[r][i] == ByteOf(r, 1, i); };
      EXPECT_EQ(CountWrong(unit * r, right), 0) << unit;
    }
  }
}

// Bytes from rank `from` to rank `to`; some pairs exchange nothing.
int64_t PairBytes(int from, int to, int64_t unit) { return (from + 2 * to) % 4 * unit; }

// Cuts `memory` into `pieces` pieces that lie in another order than they are sent, with an empty
// one among them.
std::vector<MutableBytes> Cut(std::vector<char>& memory, int pieces) {
  const int64_t bytes = static_cast<int64_t>(memory.size());
  std::vector<MutableBytes> cut{{nullptr, 0}};
  int64_t at = bytes;
  for (int p = 0; p < pieces; ++p) {
    const int64_t part = bytes * (p + 1) / pieces - bytes * p / pieces;
    at -= part;
    cut.push_back({memory.data() + at, part});
  }
  return cut;
}

void ExchangesPieces(Communicator& group) {
  const int n = group.size();
  for (int64_t unit : kCounts) {
    std::vector<std::vector<char>> out(n), in(n);
    std::vector<std::vector<ConstBytes>> out_pieces(n);
    std::vector<std::vector<MutableBytes>> in_pieces(n);
    std::vector<std::span<const ConstBytes>> send(n);
    std::vector<std::span<const MutableBytes>> receive(n);
    for (int r = 0; r < n; ++r) {
      out[r].resize(PairBytes(group.rank(), r, unit));
      in[r].resize(PairBytes(r, group.rank(), unit), 'x');
      // Sender and receiver cut differently: 1 to 3 pieces against 1 to 4.
      int64_t i = 0;
      for (const MutableBytes& piece : Cut(out[r], 1 + r % 3)) {
        for (int64_t b = 0; b < piece.bytes; ++b) {
          static_cast<char*>(piece.data)[b] = ByteOf(group.rank(), r, i++);
        }
        out_pieces[r].push_back({piece.data, piece.bytes});
      }
      in_pieces[r] = Cut(in[r], 1 + static_cast<int>((r + unit) % 4));
      send[r] = out_pieces[r];
      receive[r] = in_pieces[r];
    }
    group.AllToAllV(send, receive);
    for (int r = 0; r < n; ++r) {
      int64_t i = 0;
      for (const MutableBytes& piece : in_pieces[r]) {
        const char* got = static_cast<const char*>(piece.data);
        const auto right = [&](int64_t b) { return got[b] == ByteOf(r, group.rank(), i + b); };
        EXPECT_EQ(CountWrong(piece.bytes, right), 0) << unit;
        i += piece.bytes;
      }
    }
  }
}

void BroadcastsFromEveryRoot(Communicator& group) {
  for (int root = 0; root < group.size(); ++root) {
    for (int64_t bytes : kCounts) {
      std::vector<char> data(bytes);
      for (int64_t i = 0; i < bytes; ++i) data[i] = ByteOf(group.rank(), 2, i);
      group.Broadcast(data.data(), bytes, root);
      const auto right = [&](int64_t i) { return data[i] == ByteOf(root, 2, i); };
      EXPECT_EQ(CountWrong(bytes, right), 0) << bytes;
    }
  }
}

// Around the ring, even ranks first.
void SendsInOrder(Communicator& group) {
  const int n = group.size();
  if (n == 1) return;
  for (int64_t bytes : kCounts) {
    std::vector<char> first(bytes), second(bytes), one(bytes), two(bytes);
    for (int64_t i = 0; i < bytes; ++i) {
      first[i] = ByteOf(group.rank(), 3, i);
      second[i] = ByteOf(group.rank(), 4, i);
    }
    const int to = (group.rank() + 1) % n, from = (group.rank() + n - 1) % n;
    const auto send = [&] {
      group.Send(first.data(), bytes, to);
      group.Send(second.data(), bytes, to);
    };
    const auto receive = [&] {
      group.Receive(one.data(), bytes, from);
      group.Receive(two.data(), bytes, from);
    };
    if (group.rank() % 2 == 0) {
      send();
      receive();
    } else {
      receive();
      send();
    }
    const auto right = [&](int64_t i) {
      return one[i] == ByteOf(from, 3, i) && two[i] == ByteOf(from, 4, i);
    };
    EXPECT_EQ(CountWrong(bytes, right), 0) << bytes;
  }
}

int64_t SumOfRanks(Communicator& group, int64_t mine) {
  group.AllReduceSum(&mine, 1, ElementType::kInt64);
  return mine;
}

// Even and odd ranks part in one call; the odd ones in descending order.
void SplitsIntoDisjointGroups(Communicator& group) {
  std::vector<int> even, odd;
  for (int r = 0; r < group.size(); ++r) (r % 2 == 0 ? even : odd).push_back(r);
  std::reverse(odd.begin(), odd.end());
  const std::vector<int>& mine = group.rank() % 2 == 0 ? even : odd;
  const std::unique_ptr<Communicator> half = group.Split(mine, "half");
  ASSERT_NE(half, nullptr);
  EXPECT_EQ(half->name(), "half");
  ASSERT_EQ(half->size(), static_cast<int>(mine.size()));
  EXPECT_EQ(mine[half->rank()], group.rank());
  EXPECT_EQ(SumOfRanks(*half, group.rank()), std::accumulate(mine.begin(), mine.end(), int64_t{0}));
  // And of a split, another one.
  const std::vector<int> last{half->size() - 1};
  const std::unique_ptr<Communicator> alone = half->Split(last, "last");
  ASSERT_EQ(alone != nullptr, half->rank() == half->size() - 1);
  if (alone) {
    EXPECT_EQ(SumOfRanks(*alone, 5), 5);
  }
  EXPECT_EQ(SumOfRanks(group, 1), group.size());
}

void SplitLeavesNonMembersOut(Communicator& group) {
  const std::vector<int> members{group.size() - 1, 0};
  const std::vector<int> ends = group.size() == 1 ? std::vector<int>{0} : members;
  const std::unique_ptr<Communicator> joined = group.Split(ends, "ends");
  const bool member = group.rank() == 0 || group.rank() == group.size() - 1;
  ASSERT_EQ(joined != nullptr, member);
  if (member) {
    EXPECT_EQ(ends[joined->rank()], group.rank());
    EXPECT_EQ(SumOfRanks(*joined, group.rank()), group.size() - 1);
  }
}

void DuplicatesAreIndependent(Communicator& group) {
  const std::unique_ptr<Communicator> twin = group.Duplicate("twin");
  EXPECT_EQ(twin->name(), "twin");
  EXPECT_EQ(twin->rank(), group.rank());
  EXPECT_EQ(twin->size(), group.size());
  // Messages of one group cannot be taken by the other, although they cross.
  if (group.size() > 1 && group.rank() < 2) {
    const int other = 1 - group.rank();
    int here = -1, there = -1;
    const int one = 10 + group.rank(), two = 20 + group.rank();
    if (group.rank() == 0) {
      std::thread on_twin([&] { twin->Send(&two, sizeof two, other); });
      group.Send(&one, sizeof one, other);
      on_twin.join();
    } else {
      twin->Receive(&there, sizeof there, other);
      group.Receive(&here, sizeof here, other);
      EXPECT_EQ(there, 20);
      EXPECT_EQ(here, 10);
    }
  }
  group.Barrier();
}

// The lane's order of calls and the main one's are independent: ranks wait for the lane at
// different places of their own sequence.
void LanesRunBesideTheMainThread(Communicator& group) {
  Lane lane(group.Duplicate("lane"));
  std::vector<std::vector<float>> buckets(8, std::vector<float>(5003, group.rank() + 1.0f));
  std::vector<std::future<void>> done;
  for (std::vector<float>& bucket : buckets) {
    done.push_back(lane.Submit([&bucket](Communicator& on_lane) {
      on_lane.AllReduceSum(bucket.data(), bucket.size(), ElementType::kFloat32);
    }));
  }
  for (int step = 0; step < 20; ++step) {
    EXPECT_EQ(SumOfRanks(group, step), int64_t{step} * group.size());
    if (step == 2 * group.rank()) done[0].get();
  }
  for (size_t b = 1; b < done.size(); ++b) done[b].get();
  const float sum = group.size() * (group.size() + 1) / 2.0f;
  for (const std::vector<float>& bucket : buckets) {
    EXPECT_TRUE(std::all_of(bucket.begin(), bucket.end(), [&](float x) { return x == sum; }));
  }
}

void ALaneFinishesWhatWasSubmittedAndCarriesExceptions(Communicator& group) {
  std::vector<int> order;
  std::future<void> thrown;
  {
    Lane lane(group.Duplicate("lane"));
    for (int i = 0; i < 5; ++i) {
      lane.Submit([&order, i](Communicator& on_lane) {
        on_lane.Barrier();
        order.push_back(i);
      });
    }
    thrown = lane.Submit([](Communicator&) { throw std::runtime_error("of the task"); });
  }
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3, 4}));
  EXPECT_THROW(thrown.get(), std::runtime_error);
}

void ManyCallsInARow(Communicator& group) {
  for (int64_t i = 0; i < 300; ++i) {
    ASSERT_EQ(SumOfRanks(group, i + group.rank()),
              i * group.size() + group.size() * (group.size() - 1) / 2);
    if (i % 3 == 0) group.Barrier();
  }
}

}  // namespace

std::vector<CommunicatorCase> CommunicatorCases() {
  return {{"SumsOfEveryType", SumsOfEveryType},
          {"BFloat16IsRoundedOnce", BFloat16IsRoundedOnce},
          {"SumsAreInTheOrderOfTheRanks", SumsAreInTheOrderOfTheRanks},
          {"MaximaKeepNaN", MaximaKeepNaN},
          {"GathersEqualParts", GathersEqualParts},
          {"GathersUnequalParts", GathersUnequalParts},
          {"ExchangesPieces", ExchangesPieces},
          {"BroadcastsFromEveryRoot", BroadcastsFromEveryRoot},
          {"SendsInOrder", SendsInOrder},
          {"SplitsIntoDisjointGroups", SplitsIntoDisjointGroups},
          {"SplitLeavesNonMembersOut", SplitLeavesNonMembersOut},
          {"DuplicatesAreIndependent", DuplicatesAreIndependent},
          {"LanesRunBesideTheMainThread", LanesRunBesideTheMainThread},
          {"ALaneFinishesWhatWasSubmittedAndCarriesExceptions",
           ALaneFinishesWhatWasSubmittedAndCarriesExceptions},
          {"ManyCallsInARow", ManyCallsInARow}};
}

void RecordingObserver::Entered(const OperationStamp& stamp) {
  MutexLock lock(&mu_);
  stamps_.push_back(stamp);
  ++depth_;
}

void RecordingObserver::Left() {
  MutexLock lock(&mu_);
  --depth_;
}

std::vector<OperationStamp> RecordingObserver::stamps() const {
  MutexLock lock(&mu_);
  return stamps_;
}

int RecordingObserver::depth() const {
  MutexLock lock(&mu_);
  return depth_;
}

void ExpectStamps(Communicator& group, const RecordingObserver& observer) {
  const std::unique_ptr<Communicator> stamped = group.Duplicate("stamped");
  std::vector<float> data(6);
  stamped->AllReduceSum(data.data(), 6, ElementType::kFloat32);
  stamped->Barrier();
  stamped->Broadcast(data.data(), 12, 0);
  const std::vector<OperationStamp> expected{{"all_reduce", "stamped", 1, 24},
                                             {"barrier", "stamped", 2, 0},
                                             {"broadcast", "stamped", 3, 12}};
  const std::vector<OperationStamp> stamps = observer.stamps();
  for (const OperationStamp& wanted : expected) {
    EXPECT_TRUE(std::any_of(stamps.begin(), stamps.end(), [&](const OperationStamp& stamp) {
      return stamp.group == wanted.group && stamp.sequence == wanted.sequence &&
             stamp.bytes == wanted.bytes && absl::string_view(stamp.operation) == wanted.operation;
    })) << wanted.operation;
  }
}

}  // namespace moesaic
