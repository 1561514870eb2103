#include "trainer/generate/token_sampler.h"

#include <algorithm>
#include <cmath>

namespace moesaic {

TokenSampler::TokenSampler(const SamplingOptions& options)
    : options_(options), stream_(options.seed, "sample", "tokens") {}

int64_t TokenSampler::Sample(std::span<const float> logits, uint64_t position) {
  const auto likeliest = std::max_element(logits.begin(), logits.end());
  if (options_.temperature <= 0) return likeliest - logits.begin();

  candidates_.clear();
  double total = 0;
  for (size_t token = 0; token < logits.size(); ++token) {
    const double weight =
        std::exp((static_cast<double>(logits[token]) - *likeliest) / options_.temperature);
    candidates_.push_back({weight, static_cast<int64_t>(token)});
    total += weight;
  }
  std::sort(candidates_.begin(), candidates_.end(), [](const Candidate& a, const Candidate& b) {
    return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
  });
  double kept = 0;
  size_t count = 0;
  while (count < candidates_.size() && (count == 0 || kept < options_.top_p * total)) {
    kept += candidates_[count++].weight;
  }
  double rest = stream_.Uniform(position) * kept;
  for (size_t i = 0; i < count; ++i) {
    rest -= candidates_[i].weight;
    if (rest < 0) return candidates_[i].token;
  }
  return candidates_[count - 1].token;
}

}  // namespace moesaic
