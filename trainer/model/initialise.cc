#include "trainer/model/initialise.h"

#include <ATen/ATen.h>

#include "parallel/expert/parallel_for.h"
#include "trainer/catalog/initial_values.h"

namespace moesaic {

void Initialise(const ParameterSpec& parameter, uint64_t seed, int64_t first, at::Tensor& values) {
  TORCH_CHECK(values.scalar_type() == at::kFloat && values.is_contiguous() && first >= 0 &&
                  first + values.numel() <= parameter.elements(),
              "initialise ", parameter.name, ": elements [", first, ", ", first + values.numel(),
              ") of ", parameter.elements());
  float* data = values.data_ptr<float>();
  ParallelFor(values.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    FillInitial(parameter, seed, static_cast<uint64_t>(first + begin),
                {data + begin, static_cast<size_t>(end - begin)});
  });
}

}  // namespace moesaic
