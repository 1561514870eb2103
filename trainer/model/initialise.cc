#include "trainer/model/initialise.h"

#include <ATen/ATen.h>

#include "parallel/expert/parallel_for.h"
#include "trainer/catalog/random_stream.h"

namespace moesaic {

void Initialise(const ParameterSpec& parameter, uint64_t seed, int64_t first, at::Tensor& values) {
  TORCH_CHECK(values.scalar_type() == at::kFloat && values.is_contiguous() && first >= 0 &&
                  first + values.numel() <= parameter.elements(),
              "initialise ", parameter.name, ": elements [", first, ", ", first + values.numel(),
              ") of ", parameter.elements());
  switch (parameter.init.kind) {
    case InitRule::kOnes:
      values.fill_(1);
      return;
    case InitRule::kZeros:
      values.zero_();
      return;
    case InitRule::kUniform: {
      const RandomStream stream(seed, "init", parameter.name);
      float* data = values.data_ptr<float>();
      for (int64_t i = 0; i < values.numel(); ++i) {
        const double unit = 2 * stream.Uniform(static_cast<uint64_t>(first + i)) - 1;
        data[i] = static_cast<float>(parameter.init.stddev * unit);
      }
      return;
    }
    case InitRule::kNormal: {
      const RandomStream stream(seed, "init", parameter.name);
      float* data = values.data_ptr<float>();
      ParallelFor(values.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
        stream.FillNormal(static_cast<uint64_t>(first + begin), parameter.init.stddev,
                          {data + begin, static_cast<size_t>(end - begin)});
      });
      return;
    }
  }
}

}  // namespace moesaic
