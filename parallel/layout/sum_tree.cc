#include "parallel/layout/sum_tree.h"

#include <algorithm>

namespace moesaic {

SumNode SumTree::root() const {
  SumNode node;
  while ((int64_t{1} << node.level) < leaves_) ++node.level;
  return node;
}

std::vector<SumNode> SumTree::Cover(int64_t begin, int64_t end) const {
  const int top = root().level;
  std::vector<SumNode> cover;
  while (begin < end) {
    int level = 0;
    int64_t covered_to = begin + 1;
    // A node that hangs over the last leaf covers what there is of it.
    while (level < top) {
      const int64_t width = int64_t{2} << level;
      const int64_t wider_to = std::min(begin + width, leaves_);
      if (begin % width != 0 || wider_to > end) break;
      ++level;
      covered_to = wider_to;
    }
    cover.push_back({level, begin >> level});
    begin = covered_to;
  }
  return cover;
}

}  // namespace moesaic
