// TokenSampler: picks the next token from logits, by temperature and top-p (nucleus sampling,
// Holtzman et al. 2020). A pure function of (seed, position, logits).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "trainer/catalog/random_stream.h"

namespace moesaic {

struct SamplingOptions {
  double temperature = 1;  // 0: always the likeliest token (the lowest id among equals)
  double top_p = 1;        // the likeliest tokens that together reach this probability
  uint64_t seed = 1;
};

// Thread-compatible.
class TokenSampler {
 public:
  explicit TokenSampler(const SamplingOptions& options);

  // `position` of the new token in its sequence, which numbers the random draw.
  int64_t Sample(std::span<const float> logits, uint64_t position);

 private:
  struct Candidate {
    double weight;
    int64_t token;
  };

  SamplingOptions options_;
  RandomStream stream_;
  std::vector<Candidate> candidates_;
};

}  // namespace moesaic
