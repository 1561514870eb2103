#include "parallel/comm/in_process.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <latch>
#include <memory>
#include <string>

namespace moesaic {
namespace {

using ::testing::HasSubstr;

// What RunRanks ends with, and how many ranks left with a CommunicatorError.
struct Ending {
  std::string message;
  int ranks = 0;
};

Ending FailureOf(int size, const std::function<void(Communicator&)>& body,
                 InProcessOptions options = {}) {
  Ending ending;
  std::atomic<int> thrown = 0;
  try {
    RunRanks(
        size,
        [&](Communicator& group) {
          try {
            body(group);
          } catch (const CommunicatorError&) {
            ++thrown;
            throw;
          }
        },
        options);
  } catch (const std::exception& error) {
    ending.message = error.what();
  }
  ending.ranks = thrown;
  return ending;
}

TEST(InProcessTest, ADeadlineNamesTheRanksThatHaveNotEntered) {
  std::latch entering(2);
  const Ending ending = FailureOf(4,
                                  [&](Communicator& group) {
                                    if (group.rank() % 2 != 0) return;
                                    entering.arrive_and_wait();
                                    float x = 0;
                                    group.AllReduceSum(&x, 1, ElementType::kFloat32);
                                  },
                                  {.deadline = absl::Milliseconds(200)});
  EXPECT_THAT(ending.message, HasSubstr("[world] all_reduce #1 on rank "));
  EXPECT_THAT(ending.message, HasSubstr("waited 200ms for ranks 1, 3, not entered"));
  EXPECT_EQ(ending.ranks, 2);
}

TEST(InProcessTest, AMissedSendAndAMissedReceiveNameTheirPeer) {
  const InProcessOptions options{.deadline = absl::Milliseconds(20)};
  int x = 0;
  const auto send = [&](Communicator& group) {
    if (group.rank() == 0) group.Send(&x, sizeof x, 2);
  };
  EXPECT_THAT(FailureOf(3, send, options).message, HasSubstr("for rank 2 to receive"));
  const auto receive = [&](Communicator& group) {
    if (group.rank() == 0) group.Receive(&x, sizeof x, 1);
  };
  EXPECT_THAT(FailureOf(3, receive, options).message, HasSubstr("for rank 1 to send"));
}

TEST(InProcessTest, AThrownRankEndsTheCallsOfTheOthersInEveryGroup) {
  const Ending ending = FailureOf(4, [](Communicator& group) {
    const std::vector<int> pair =
        group.rank() < 2 ? std::vector<int>{0, 1} : std::vector<int>{2, 3};
    const std::unique_ptr<Communicator> half = group.Split(pair, "half");
    if (group.rank() == 3) throw std::runtime_error("rank 3's own trouble");
    if (group.rank() == 2) half->Barrier();
    if (group.rank() == 1) half->Barrier();
    int x = 0;
    if (group.rank() == 0) half->Receive(&x, sizeof x, 1);
  });
  EXPECT_EQ(ending.message, "rank 3's own trouble");
  EXPECT_EQ(ending.ranks, 3);
}

TEST(InProcessTest, DifferentCallsAreNamed) {
  const Ending ending = FailureOf(3, [](Communicator& group) {
    char x = 0;
    if (group.rank() == 1) {
      group.Broadcast(&x, 1, 0);
    } else {
      group.Barrier();
    }
  });
  EXPECT_THAT(ending.message, HasSubstr("barrier"));
  EXPECT_THAT(ending.message, HasSubstr("broadcast"));
  EXPECT_EQ(ending.ranks, 3);
}

TEST(InProcessTest, SizesThatDoNotFitAreRefused) {
  EXPECT_THAT(FailureOf(2,
                        [](Communicator& group) {
                          float x[2] = {};
                          group.AllReduceSum(x, 1 + group.rank(), ElementType::kFloat32);
                        })
                  .message,
              HasSubstr("bytes"));
  EXPECT_THAT(FailureOf(2,
                        [](Communicator& group) {
                          char x[4] = {};
                          group.Broadcast(x, 2 + group.rank(), 1);
                        })
                  .message,
              HasSubstr("root 1 and 2 bytes here, root 1 and 3 bytes on rank 1"));
  EXPECT_THAT(FailureOf(2,
                        [](Communicator& group) {
                          char x[4] = {};
                          if (group.rank() == 0) {
                            group.Send(x, 4, 1);
                          } else {
                            group.Receive(x, 3, 0);
                          }
                        })
                  .message,
              HasSubstr("rank 0 sends 4 bytes, 3 are expected"));
  EXPECT_THAT(
      FailureOf(
          2,
          [](Communicator& group) {
            char out[2][4] = {}, in[2][4] = {};
            const ConstBytes pieces_out[2] = {{out[0], 2}, {out[1], 2}};
            const MutableBytes pieces_in[2] = {{in[0], 2}, {in[1], group.rank() + 2}};
            const std::span<const ConstBytes> send[2] = {{&pieces_out[0], 1}, {&pieces_out[1], 1}};
            const std::span<const MutableBytes> receive[2] = {{&pieces_in[0], 1},
                                                              {&pieces_in[1], 1}};
            group.AllToAllV(send, receive);
            group.Barrier();
          })
          .message,
      HasSubstr("rank 1 sends 2 bytes, 3 are expected"));
}

TEST(InProcessTest, CallsThatCannotWorkAreRefused) {
  char x = 0;
  EXPECT_THAT(FailureOf(2, [&](Communicator& group) { group.Send(&x, 1, group.rank()); }).message,
              HasSubstr("is not another rank"));
  EXPECT_THAT(
      FailureOf(1, [&](Communicator& group) { group.AllReduceSum(&x, 1, ElementType::kByte); })
          .message,
      HasSubstr("cannot be reduced"));
  EXPECT_THAT(FailureOf(2,
                        [](Communicator& group) {
                          const std::vector<int> members{0, 1 + group.rank()};
                          group.Split(members, "bad");
                        })
                  .message,
              HasSubstr("there is no rank 2"));
}

TEST(InProcessTest, MakeInProcessGroupGivesEachRankItsOwn) {
  const std::vector<std::unique_ptr<Communicator>> ranks = MakeInProcessGroup(3);
  ASSERT_EQ(ranks.size(), 3u);
  for (int r = 0; r < 3; ++r) {
    EXPECT_EQ(ranks[r]->rank(), r);
    EXPECT_EQ(ranks[r]->size(), 3);
  }
}

}  // namespace
}  // namespace moesaic
