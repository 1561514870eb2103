#include "launcher/config/spelling.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

TEST(EditDistance, CountsEdits) {
  EXPECT_EQ(EditDistance("", ""), 0);
  EXPECT_EQ(EditDistance("", "abc"), 3);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("flaw", "lawn"), 2);
  EXPECT_EQ(EditDistance("same", "same"), 0);
}

TEST(Nearest, IsCloseOrNothing) {
  const std::vector<std::string> keys = {"layers", "hidden", "heads", "kv_heads"};
  EXPECT_EQ(Nearest("hiden", keys), "hidden");
  EXPECT_EQ(Nearest("head", keys), "heads");
  EXPECT_EQ(Nearest("optimizer", keys), "");
  EXPECT_EQ(Nearest("x", {}), "");
  EXPECT_EQ(Nearest(std::string(100'000, 'h'), keys), "");
}

}  // namespace
}  // namespace moesaic
