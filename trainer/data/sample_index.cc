#include "trainer/data/sample_index.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <utility>

namespace moesaic {
namespace {

constexpr int kRounds = 8;

// The finaliser of SplitMix64: a bijection of 64 bits that mixes well.
uint64_t Mixed(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

// Shares times `period`, when all of them are whole numbers (up to the rounding of a double).
bool ExactSlots(const std::vector<double>& shares, int64_t period, std::vector<int64_t>* slots) {
  for (size_t s = 0; s < shares.size(); ++s) {
    const double ideal = shares[s] * static_cast<double>(period);
    const double whole = std::round(ideal);
    if (whole < 1 || std::abs(ideal - whole) > 1e-12 * whole) return false;
    (*slots)[s] = static_cast<int64_t>(whole);
  }
  return std::accumulate(slots->begin(), slots->end(), int64_t{0}) == period;
}

// Largest remainders over kMaxPeriod slots, at least one each.
std::vector<int64_t> RoundedSlots(const std::vector<double>& shares) {
  const auto count = static_cast<int64_t>(shares.size());
  const int64_t spare = SampleIndex::kMaxPeriod - count;
  std::vector<int64_t> slots(shares.size());
  std::vector<size_t> order(shares.size());
  std::iota(order.begin(), order.end(), size_t{0});
  // What a source should have beyond its one slot.
  std::vector<double> ideal(shares.size());
  double total = 0;
  for (size_t s = 0; s < shares.size(); ++s) {
    ideal[s] = std::max(0.0, shares[s] * static_cast<double>(SampleIndex::kMaxPeriod) - 1);
    total += ideal[s];
  }
  int64_t left = spare;
  for (size_t s = 0; s < shares.size(); ++s) {
    if (total > 0) ideal[s] *= static_cast<double>(spare) / total;
    slots[s] = 1 + static_cast<int64_t>(ideal[s]);
    left -= slots[s] - 1;
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return ideal[a] - std::floor(ideal[a]) > ideal[b] - std::floor(ideal[b]);
  });
  for (size_t i = 0; left > 0; i = (i + 1) % order.size(), --left) ++slots[order[i]];
  return slots;
}

std::vector<int64_t> SlotsOf(std::span<const SampleSource> sources) {
  double total = 0;
  for (const SampleSource& source : sources) total += source.weight;
  std::vector<double> shares;
  for (const SampleSource& source : sources) shares.push_back(source.weight / total);
  std::vector<int64_t> slots(sources.size());
  for (auto period = static_cast<int64_t>(sources.size()); period <= SampleIndex::kMaxPeriod;
       ++period) {
    if (ExactSlots(shares, period, &slots)) return slots;
  }
  return RoundedSlots(shares);
}

}  // namespace

int64_t PermutedPosition(uint64_t key, int64_t size, int64_t i) {
  // A power of four that is at least `size` and less than four times it, unless tiny.
  const int width = static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1)));
  const int half_bits = std::max(1, (width + 1) / 2);
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  auto at = static_cast<uint64_t>(i);
  do {
    uint64_t left = at >> half_bits;
    uint64_t right = at & mask;
    for (int round = 0; round < kRounds; ++round) {
      const uint64_t mixed = Mixed(Mixed(key + static_cast<uint64_t>(round)) ^ right) & mask;
      left = std::exchange(right, left ^ mixed);
    }
    at = left << half_bits | right;
  } while (at >= static_cast<uint64_t>(size));
  return static_cast<int64_t>(at);
}

absl::StatusOr<SampleIndex> SampleIndex::Build(std::span<const SampleSource> sources,
                                               uint64_t seed) {
  const auto count = static_cast<int64_t>(sources.size());
  if (count == 0 || count > kMaxPeriod) {
    return absl::InvalidArgumentError(
        fmt::format("[data] {} training sources; there must be 1 to {}", count, kMaxPeriod));
  }
  SampleIndex index;
  index.seed_ = seed;
  for (int64_t s = 0; s < count; ++s) {
    if (sources[s].samples < 1 || !std::isfinite(sources[s].weight) || sources[s].weight <= 0) {
      return absl::InvalidArgumentError(
          fmt::format("[data] source {} has {} samples and weight {}; both must be positive", s,
                      sources[s].samples, sources[s].weight));
    }
    index.samples_.push_back(sources[s].samples);
  }
  index.slots_ = SlotsOf(sources);

  // The j-th of a source's c slots of P may stand at floor(j P / c) or later, and before
  // ceil((j + 1) P / c); among those that may stand, the earliest deadline goes first.
  const int64_t period = std::accumulate(index.slots_.begin(), index.slots_.end(), int64_t{0});
  std::vector<int32_t> used(sources.size(), 0);
  index.schedule_.reserve(period);
  for (int64_t t = 0; t < period; ++t) {
    int64_t best = -1;
    int64_t best_deadline = 0;
    for (int64_t s = 0; s < count; ++s) {
      const int64_t c = index.slots_[s];
      if (used[s] * period >= (t + 1) * c) continue;
      const int64_t deadline = ((used[s] + 1) * period + c - 1) / c;
      if (best < 0 || deadline < best_deadline) {
        best = s;
        best_deadline = deadline;
      }
    }
    index.schedule_.push_back({static_cast<int32_t>(best), used[best]++});
  }
  return index;
}

SamplePlace SampleIndex::At(int64_t g) const {
  const Slot slot = schedule_[g % period()];
  const int64_t k = g / period() * slots_[slot.source] + slot.before;
  SamplePlace place;
  place.source = slot.source;
  place.epoch = k / samples_[slot.source];
  const uint64_t key = Mixed(Mixed(Mixed(seed_) + static_cast<uint64_t>(slot.source)) +
                             static_cast<uint64_t>(place.epoch));
  place.sample = PermutedPosition(key, samples_[slot.source], k % samples_[slot.source]);
  return place;
}

int64_t SampleIndex::CountBefore(int source, int64_t g) const {
  const auto in_period = std::count_if(schedule_.begin(), schedule_.begin() + g % period(),
                                       [&](const Slot& slot) { return slot.source == source; });
  return g / period() * slots_[source] + in_period;
}

}  // namespace moesaic
