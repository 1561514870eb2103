#include "trainer/catalog/initial_values.h"

#include <algorithm>

#include "trainer/catalog/random_stream.h"

namespace moesaic {

void FillInitial(const ParameterSpec& parameter, uint64_t seed, uint64_t first,
                 std::span<float> values) {
  switch (parameter.init.kind) {
    case InitRule::kOnes:
      std::ranges::fill(values, 1.0f);
      return;
    case InitRule::kZeros:
      std::ranges::fill(values, 0.0f);
      return;
    case InitRule::kUniform: {
      const RandomStream stream(seed, "init", parameter.name);
      for (size_t i = 0; i < values.size(); ++i) {
        const double unit = 2 * stream.Uniform(first + i) - 1;
        values[i] = static_cast<float>(parameter.init.stddev * unit);
      }
      return;
    }
    case InitRule::kNormal:
      RandomStream(seed, "init", parameter.name).FillNormal(first, parameter.init.stddev, values);
      return;
  }
}

}  // namespace moesaic
