#include "trainer/catalog/spawn_mask.h"

#include "trainer/catalog/random_stream.h"

namespace moesaic {

void ApplySpawnMask(const SpawnMask& mask, absl::string_view name, uint64_t first,
                    std::span<float> values) {
  if (mask.share <= 0) return;
  const RandomStream stream(mask.seed, "spawn", name);
  const auto factor = static_cast<float>(mask.rescale ? 1 / (1 - mask.share) : 1);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = stream.Uniform(first + i) < mask.share ? 0 : values[i] * factor;
  }
}

}  // namespace moesaic
