#include "scheduler/state/stragglers.h"

#include <algorithm>

namespace moesaic {
namespace {

constexpr double kRelief = 0.9;

double LowerMedian(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>((values.size() - 1) / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace

void StragglerWatch::Add(uint32_t rank, double seconds) {
  std::deque<double>& steps = steps_[rank];
  steps.push_back(seconds);
  if (steps.size() > kWindow) steps.pop_front();
}

std::vector<Straggler> StragglerWatch::Slow() {
  std::vector<double> medians;
  for (const std::deque<double>& steps : steps_) {
    if (steps.size() < kMinSteps) return {};
    medians.push_back(LowerMedian({steps.begin(), steps.end()}));
  }
  if (medians.empty()) return {};
  const double middle = LowerMedian(medians);
  std::vector<Straggler> slow;
  for (size_t rank = 0; rank < medians.size(); ++rank) {
    const double limit = std::max(middle * ratio_, middle + kNoise);
    slow_[rank] = medians[rank] > (slow_[rank] ? kRelief * limit : limit);
    if (slow_[rank]) {
      slow.push_back({static_cast<uint32_t>(rank), medians[rank] / std::max(middle, 1e-9)});
    }
  }
  return slow;
}

}  // namespace moesaic
