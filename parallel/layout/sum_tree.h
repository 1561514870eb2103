// The fixed summation tree of reproducible mode, as arithmetic on node names.
//
// Leaves 0..n-1 (a leaf is (micro-batch, use), numbered micro_batch * uses + use). Node (level, i)
// covers leaves [i << level, (i + 1) << level); its value is left child + right child, or the left
// child alone where the right one covers no leaf. The shape depends on n only, so any division of
// the leaves among ranks gives the same bits, as long as each node is computed from its two
// children.
#pragma once

#include <cstdint>
#include <vector>

namespace moesaic {

struct SumNode {
  int level = 0;
  int64_t index = 0;
  bool operator==(const SumNode&) const = default;
};

// A value; thread-safe.
class SumTree {
 public:
  explicit SumTree(int64_t leaves) : leaves_(leaves) {}

  int64_t leaves() const { return leaves_; }
  SumNode root() const;
  static SumNode Leaf(int64_t index) { return {0, index}; }
  static SumNode Parent(SumNode node) { return {node.level + 1, node.index >> 1}; }
  // The other child of the parent; has no leaf when Empty(it).
  static SumNode Sibling(SumNode node) { return {node.level, node.index ^ 1}; }
  bool Empty(SumNode node) const { return (node.index << node.level) >= leaves_; }

  // The fewest nodes whose leaves are exactly [begin, end), in leaf order: what a rank that runs
  // those leaves contributes. Of nodes with the same leaves (at the end of an uneven tree), the
  // highest.
  std::vector<SumNode> Cover(int64_t begin, int64_t end) const;

 private:
  int64_t leaves_;
};

}  // namespace moesaic
