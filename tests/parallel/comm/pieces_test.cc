#include "parallel/comm/pieces.h"

#include <gtest/gtest.h>

#include <numeric>

namespace moesaic {
namespace {

TEST(PiecesTest, MessagesAreCutAtTheSameBytesWhateverThePieces) {
  std::vector<char> memory(23);
  std::iota(memory.begin(), memory.end(), 0);
  for (int64_t limit = 1; limit <= 25; ++limit) {
    for (int64_t cut = 0; cut <= 23; ++cut) {
      const std::vector<ConstBytes> pieces{
          {memory.data(), cut}, {nullptr, 0}, {memory.data() + cut, 23 - cut}};
      const std::vector<std::vector<ConstBytes>> messages = CutMessages(pieces, limit);
      ASSERT_EQ(static_cast<int64_t>(messages.size()), (23 + limit - 1) / limit);
      char next = 0;
      for (size_t m = 0; m < messages.size(); ++m) {
        const bool last = m + 1 == messages.size();
        EXPECT_EQ(TotalBytes(messages[m]), last ? 23 - limit * static_cast<int64_t>(m) : limit);
        for (const ConstBytes& piece : messages[m]) {
          ASSERT_GT(piece.bytes, 0);
          for (int64_t b = 0; b < piece.bytes; ++b) {
            ASSERT_EQ(static_cast<const char*>(piece.data)[b], next++);
          }
        }
      }
      EXPECT_EQ(next, 23);
    }
  }
}

TEST(PiecesTest, NoBytesMakeNoMessage) {
  const std::vector<MutableBytes> pieces{{nullptr, 0}, {nullptr, 0}};
  EXPECT_TRUE(CutMessages(pieces, 8).empty());
  EXPECT_EQ(TotalBytes(pieces), 0);
}

}  // namespace
}  // namespace moesaic
