#include "scheduler/client/random_token.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <openssl/crypto.h>
#include <sys/random.h>

#include <array>
#include <cstdlib>

namespace moesaic {

std::string RandomToken() {
  std::array<unsigned char, 16> bytes;
  // 16 bytes come whole or not at all (getrandom(2)); without them nothing is safe.
  if (getrandom(bytes.data(), bytes.size(), 0) != static_cast<ssize_t>(bytes.size())) std::abort();
  return fmt::format("{:02x}", fmt::join(bytes, ""));
}

bool SameToken(const std::string& left, const std::string& right) {
  return left.size() == right.size() && CRYPTO_memcmp(left.data(), right.data(), left.size()) == 0;
}

}  // namespace moesaic
