// RandomStream: counter-based random numbers. Element i of a stream is a pure function of
// (seed, purpose, name, i), so values depend on no layout, order or number of draws.
//
// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), keyed by
// XXH3-128 of (seed, purpose, name): the low half is the key, the high half the upper counter
// words.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "absl/strings/string_view.h"

namespace moesaic {

// One Philox4x32-10 block.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A value; thread-safe.
class RandomStream {
 public:
  // `purpose` keeps streams of one name apart ("init", "sample", ...).
  RandomStream(uint64_t seed, absl::string_view purpose, absl::string_view name);

  // Element `index`, uniform in the open interval (0, 1), 52 bits.
  double Uniform(uint64_t index) const;
  // Element `index` of the standard normal stream (Box-Muller).
  float Normal(uint64_t index) const;
  // out[i] = stddev * Normal(first + i).
  void FillNormal(uint64_t first, double stddev, std::span<float> out) const;

 private:
  std::array<uint32_t, 4> Block(uint64_t index) const;
  // Normals 4 * block .. 4 * block + 3.
  std::array<double, 4> Normals(uint64_t block) const;

  std::array<uint32_t, 2> key_;
  std::array<uint32_t, 2> upper_;
};

}  // namespace moesaic
