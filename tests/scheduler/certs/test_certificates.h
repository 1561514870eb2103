// The certificates of a cluster that lives as long as one test.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "absl/time/clock.h"
#include "scheduler/certs/authority.h"
#include "scheduler/client/credentials.h"

namespace moesaic {

inline Validity ValidFor(absl::Duration duration) {
  return {absl::Now() - absl::Hours(2), absl::Now() + duration};
}

class TestCertificates {
 public:
  TlsIdentity Of(Role role, const std::string& node = "",
                 absl::Duration valid = absl::Hours(1)) const {
    const absl::StatusOr<KeyPair> pair = authority_.Issue(role, node, ValidFor(valid));
    EXPECT_TRUE(pair.ok()) << pair.status();
    return {authority_.pair().certificate, pair->certificate, pair->key};
  }

 private:
  const Authority authority_ = *Authority::Create(ValidFor(absl::Hours(1)));
};

}  // namespace moesaic
