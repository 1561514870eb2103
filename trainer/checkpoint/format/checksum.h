// Checksums of the checkpoint format. They detect accidents, not attackers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/strings/string_view.h"

struct XXH3_state_s;

namespace moesaic {

// XXH3-128, canonical form (big endian): 16 bytes. Kept as a string, as messages hold it.
std::string Xxh3(std::span<const std::byte> bytes);

struct FreeXxh3State {
  void operator()(XXH3_state_s* state) const;
};
using Xxh3State = std::unique_ptr<XXH3_state_s, FreeXxh3State>;

// The same over bytes that come in pieces. Thread-compatible.
class Xxh3Stream {
 public:
  Xxh3Stream();
  void Update(std::span<const std::byte> bytes);
  std::string Digest() const;

 private:
  Xxh3State state_;
};

// 64 bits, for the index and the chunks of a snapshot.
uint64_t Xxh3Short(std::span<const std::byte> bytes);

// The same over bytes that come in pieces. Thread-compatible.
class Xxh3ShortStream {
 public:
  Xxh3ShortStream();
  void Update(std::span<const std::byte> bytes);
  uint64_t Digest() const;

 private:
  Xxh3State state_;
};

// 32 bytes.
std::string Sha256(absl::string_view bytes);

// Lower-case hexadecimal.
std::string Hex(absl::string_view bytes);

}  // namespace moesaic
