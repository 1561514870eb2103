#include "base/foreign_text.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

TEST(ForeignText, Names) {
  for (const std::string& good : {std::string("a"), std::string("7"), std::string("job-1.b_c"),
                                  std::string(63, 'a')}) {
    EXPECT_TRUE(IsName(good)) << good;
  }
  for (const std::string& bad :
       {std::string(""), std::string("."), std::string(".."), std::string("a..b"),
        std::string("-a"), std::string("A"), std::string("a/b"), std::string("a b"),
        std::string("a\0b", 3), std::string("\xc3\xa4"), std::string(64, 'a')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(CheckName("job", bad))) << bad;
  }
}

TEST(ForeignText, TerminalsGetNoControlCharacters) {
  EXPECT_EQ(EscapeControls("rank 1\tok\nnext"), "rank 1\tok\nnext");
  EXPECT_EQ(EscapeControls("\x1b]0;owned\x07"), "\\x1b]0;owned\\x07");
  EXPECT_EQ(EscapeControls("50%\rdone\b\x7f"), "50%\\x0ddone\\x08\\x7f");
  EXPECT_EQ(EscapeControls("\xc2\x9b"
                           "31m"),
            "\\x9b31m");  // CSI in one character of UTF-8
  EXPECT_EQ(EscapeControls("\xc3\xa4\xe2\x82\xac"), "\xc3\xa4\xe2\x82\xac");
  EXPECT_EQ(EscapeControls("\xc2"), "\xc2");
}

}  // namespace
}  // namespace moesaic
