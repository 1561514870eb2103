#include "parallel/layout/sum_tree.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <random>

namespace moesaic {
namespace {

int64_t End(const SumTree& tree, SumNode node) {
  return std::min((node.index + 1) << node.level, tree.leaves());
}

// The value of a node straight from its definition.
float Value(const SumTree& tree, const std::vector<float>& leaves, SumNode node) {
  if (node.level == 0) return leaves[node.index];
  const SumNode left{node.level - 1, node.index * 2};
  const SumNode right = SumTree::Sibling(left);
  const float sum = Value(tree, leaves, left);
  return tree.Empty(right) ? sum : sum + Value(tree, leaves, right);
}

TEST(SumTreeTest, RootCoversEveryLeaf) {
  for (int64_t n = 1; n <= 70; ++n) {
    const SumTree tree(n);
    EXPECT_EQ(tree.root().index, 0);
    EXPECT_EQ(End(tree, tree.root()), n);
    if (n > 1) {
      EXPECT_LT(int64_t{1} << (tree.root().level - 1), n);
    }
  }
}

// The fewest nodes that tile [begin, end), by dynamic programming over all nodes.
size_t FewestNodes(const SumTree& tree, int64_t begin, int64_t end) {
  std::vector<size_t> fewest(end - begin + 1, SIZE_MAX);
  fewest[0] = 0;
  for (int64_t at = begin; at < end; ++at) {
    for (int level = 0; level <= tree.root().level; ++level) {
      if (at % (int64_t{1} << level) != 0) break;
      const int64_t to = End(tree, {level, at >> level});
      if (to <= end) fewest[to - begin] = std::min(fewest[to - begin], fewest[at - begin] + 1);
    }
  }
  return fewest.back();
}

TEST(SumTreeTest, CoverIsExactAndMinimal) {
  for (int64_t n = 1; n <= 19; ++n) {
    const SumTree tree(n);
    for (int64_t begin = 0; begin <= n; ++begin) {
      for (int64_t end = begin; end <= n; ++end) {
        const std::vector<SumNode> cover = tree.Cover(begin, end);
        int64_t at = begin;
        for (const SumNode& node : cover) {
          EXPECT_EQ(node.index << node.level, at);
          at = End(tree, node);
        }
        EXPECT_EQ(at, end);
        EXPECT_EQ(cover.size(), FewestNodes(tree, begin, end)) << n << " " << begin << " " << end;
      }
    }
  }
}

// Climbs from arbitrary nodes to the root, merging siblings.
float Combine(const SumTree& tree, std::map<std::pair<int, int64_t>, float> nodes) {
  const SumNode root = tree.root();
  for (int level = 0; level < root.level; ++level) {
    while (!nodes.empty() && nodes.begin()->first.first == level) {
      const auto [key, value] = *nodes.begin();
      nodes.erase(nodes.begin());
      const SumNode node{level, key.second};
      const SumNode sibling = SumTree::Sibling(node);
      const SumNode parent = SumTree::Parent(node);
      float sum = value;
      if (!tree.Empty(sibling)) {
        const auto other = nodes.find({level, sibling.index});
        EXPECT_TRUE(other != nodes.end());
        sum = value + other->second;  // the lower index comes first out of the map
        nodes.erase(other);
      }
      nodes[{parent.level, parent.index}] = sum;
    }
  }
  EXPECT_EQ(nodes.size(), 1u);
  return nodes.begin()->second;
}

TEST(SumTreeTest, AnyDivisionOfLeavesAmongRanksGivesTheSameBits) {
  std::mt19937 random(11);
  std::normal_distribution<float> normal(0, 1);
  for (int64_t n = 1; n <= 33; ++n) {
    const SumTree tree(n);
    std::vector<float> leaves(n);
    for (float& leaf : leaves) leaf = normal(random) * std::exp2(static_cast<int>(random() % 20));
    const float expected = Value(tree, leaves, tree.root());
    for (int ranks = 1; ranks <= 8; ++ranks) {
      std::vector<int64_t> cuts{0, n};
      for (int r = 1; r < ranks; ++r) cuts.push_back(static_cast<int64_t>(random() % (n + 1)));
      std::sort(cuts.begin(), cuts.end());
      std::map<std::pair<int, int64_t>, float> nodes;
      for (size_t c = 0; c + 1 < cuts.size(); ++c) {
        for (const SumNode& node : tree.Cover(cuts[c], cuts[c + 1])) {
          nodes[{node.level, node.index}] = Value(tree, leaves, node);
        }
      }
      EXPECT_EQ(std::bit_cast<uint32_t>(Combine(tree, nodes)), std::bit_cast<uint32_t>(expected));
    }
  }
}

}  // namespace
}  // namespace moesaic
