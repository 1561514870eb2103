#include "trainer/catalog/random_stream.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <cmath>
#include <numbers>
#include <string>

namespace moesaic {
namespace {

// The purpose's length goes first, so that (purpose, name) pairs cannot run into each other.
XXH128_hash_t StreamHash(uint64_t seed, absl::string_view purpose, absl::string_view name) {
  std::string key = std::to_string(purpose.size()) + ":";
  key.append(purpose.data(), purpose.size());
  key.append(name.data(), name.size());
  return XXH3_128bits_withSeed(key.data(), key.size(), seed);
}

constexpr double kTwoToMinus32 = 1.0 / 4294967296.0;

// In (0, 1): never 0, whose logarithm is infinite.
double OpenUnit(uint32_t bits) { return (bits + 0.5) * kTwoToMinus32; }

}  // namespace

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

RandomStream::RandomStream(uint64_t seed, absl::string_view purpose, absl::string_view name) {
  const XXH128_hash_t hash = StreamHash(seed, purpose, name);
  key_ = {static_cast<uint32_t>(hash.low64), static_cast<uint32_t>(hash.low64 >> 32)};
  upper_ = {static_cast<uint32_t>(hash.high64), static_cast<uint32_t>(hash.high64 >> 32)};
}

std::array<uint32_t, 4> RandomStream::Block(uint64_t index) const {
  return Philox(
      {static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), upper_[0], upper_[1]},
      key_);
}

double RandomStream::Uniform(uint64_t index) const {
  const std::array<uint32_t, 4> block = Block(index / 2);
  const size_t half = 2 * (index % 2);
  const uint64_t bits = (uint64_t{block[half + 1]} << 32 | block[half]) >> 12;
  return (static_cast<double>(bits) + 0.5) * 0x1p-52;
}

std::array<double, 4> RandomStream::Normals(uint64_t block) const {
  const std::array<uint32_t, 4> bits = Block(block);
  std::array<double, 4> out;
  for (int pair = 0; pair < 2; ++pair) {
    const double radius = std::sqrt(-2 * std::log(OpenUnit(bits[2 * pair])));
    const double angle = 2 * std::numbers::pi * OpenUnit(bits[2 * pair + 1]);
    out[2 * pair] = radius * std::cos(angle);
    out[2 * pair + 1] = radius * std::sin(angle);
  }
  return out;
}

float RandomStream::Normal(uint64_t index) const {
  return static_cast<float>(Normals(index / 4)[index % 4]);
}

void RandomStream::FillNormal(uint64_t first, double stddev, std::span<float> out) const {
  for (size_t i = 0; i < out.size();) {
    const uint64_t index = first + i;
    const std::array<double, 4> normals = Normals(index / 4);
    for (size_t j = index % 4; j < 4 && i < out.size(); ++j, ++i) {
      out[i] = static_cast<float>(stddev * normals[j]);
    }
  }
}

}  // namespace moesaic
