#include "scheduler/service/submission_limits.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moesaic {
namespace {

using ::testing::HasSubstr;

constexpr SubmissionLimits kLimits{.per_minute = 6, .burst = 3, .live_jobs = 10};

class SubmissionLimiterTest : public ::testing::Test {
 protected:
  absl::Status Admit(const std::string& client = "10.0.0.1", size_t live = 0) {
    return limiter_.Admit(client, live, now_);
  }

  absl::Time now_ = absl::FromUnixSeconds(1'800'000'000);
  SubmissionLimiter limiter_{kLimits};
};

TEST_F(SubmissionLimiterTest, ABurstAndThenAsManyAsTheRateGives) {
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Admit().ok()) << i;
  const absl::Status refused = Admit();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("try again in 10 s"));
  now_ += absl::Seconds(9);
  EXPECT_THAT(Admit().message(), HasSubstr("try again in 1 s"));
  now_ += absl::Seconds(1);
  EXPECT_TRUE(Admit().ok());
  EXPECT_FALSE(Admit().ok());
  int admitted = 0;
  for (int second = 0; second < 600; ++second) {
    now_ += absl::Seconds(1);
    admitted += Admit().ok();
  }
  EXPECT_EQ(admitted, 60);
}

TEST_F(SubmissionLimiterTest, ABucketHoldsNoMoreThanTheBurst) {
  ASSERT_TRUE(Admit().ok());
  now_ += absl::Hours(100);
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(Admit().ok()) << i;
  EXPECT_FALSE(Admit().ok());
}

TEST_F(SubmissionLimiterTest, OneClientDoesNotHoldUpAnother) {
  while (Admit("10.0.0.1").ok()) continue;
  EXPECT_TRUE(Admit("10.0.0.2").ok());
}

TEST_F(SubmissionLimiterTest, ClientsThatAreQuietAreForgotten) {
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(Admit("10.0.0." + std::to_string(i)).ok());
  EXPECT_EQ(limiter_.clients(), 1000u);
  now_ += absl::Minutes(1);
  EXPECT_TRUE(Admit().ok());
  EXPECT_EQ(limiter_.clients(), 1u);
}

TEST_F(SubmissionLimiterTest, NoMoreJobsThanMayBeThere) {
  EXPECT_TRUE(Admit("a", 9).ok());
  EXPECT_THAT(Admit("a", 10).message(), HasSubstr("10 jobs have not ended"));
  SubmissionLimiter unlimited(SubmissionLimits{.per_minute = 0, .burst = 1, .live_jobs = 0});
  for (int i = 0; i < 1000; ++i) EXPECT_TRUE(unlimited.Admit("a", 1 << 20, now_).ok());
}

}  // namespace
}  // namespace moesaic
