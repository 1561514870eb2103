// Boxes for tests.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "trainer/checkpoint/format/box.h"

namespace moesaic {

inline Box MakeBox(const std::vector<uint64_t>& offset, const std::vector<uint64_t>& length) {
  Box box;
  box.mutable_offset()->Assign(offset.begin(), offset.end());
  box.mutable_length()->Assign(length.begin(), length.end());
  return box;
}

inline Box RandomBox(Shape shape, std::mt19937* random) {
  Box box;
  for (uint64_t side : shape) {
    const uint64_t offset = (*random)() % side;
    box.add_offset(offset);
    box.add_length(1 + (*random)() % (side - offset));
  }
  return box;
}

// Boxes that tile `shape`, by `cuts` random cuts.
inline std::vector<Box> RandomTiling(Shape shape, int cuts, std::mt19937* random) {
  std::vector<Box> boxes = {WholeBox(shape)};
  for (int i = 0; i < cuts; ++i) {
    Box& low = boxes[(*random)() % boxes.size()];
    const int dim = static_cast<int>((*random)() % shape.size());
    if (low.length(dim) < 2) continue;
    const uint64_t first = 1 + (*random)() % (low.length(dim) - 1);
    Box high = low;
    high.set_offset(dim, low.offset(dim) + first);
    high.set_length(dim, low.length(dim) - first);
    low.set_length(dim, first);
    boxes.push_back(high);
  }
  return boxes;
}

}  // namespace moesaic
