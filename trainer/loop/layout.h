// From the coordinator's rank table to the layout types.
#pragma once

#include <array>
#include <cstdint>

#include "absl/status/statusor.h"
#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/coordinator.pb.h"

namespace moesaic {

struct Layout {
  Mesh mesh;
  ExpertPlacement placement;
};

// InvalidArgument when the table is not a layout.
absl::StatusOr<Layout> LayoutOf(const RankTable& table);

// XXH3-128 over everything in the table that ranks must agree on.
std::array<uint8_t, 16> LayoutHash(const RankTable& table);

}  // namespace moesaic
