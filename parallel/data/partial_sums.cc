#include "parallel/data/partial_sums.h"

#include <ATen/ATen.h>

namespace moesaic {

void PartialSums::CheckNew(SumNode node) const {
  const int top = tree_.root().level;
  for (SumNode above = node; above.level <= top; above = SumTree::Parent(above)) {
    TORCH_CHECK(!nodes_.contains({above.level, above.index}), "[gradients] leaves of node ",
                node.index, " at level ", node.level, " of ", tree_.leaves(),
                " leaves came twice: two ranks, or two calls, reported one (use, micro-batch)");
  }
}

at::Tensor PartialSums::Sum(at::Tensor a, at::Tensor b, std::vector<at::Tensor>& freed) {
  if (!a.defined()) return b;
  if (!b.defined()) return a;
  a.add_(b);  // addition commutes, bit for bit
  freed.push_back(std::move(b));
  return a;
}

void PartialSums::Add(SumNode node, at::Tensor value, std::vector<at::Tensor>& freed) {
  CheckNew(node);
  const SumNode root = tree_.root();
  while (!(node == root)) {
    const SumNode sibling = SumTree::Sibling(node);
    if (!tree_.Empty(sibling)) {
      const auto other = nodes_.find({sibling.level, sibling.index});
      if (other == nodes_.end()) break;
      value = Sum(std::move(value), std::move(other->second), freed);
      nodes_.erase(other);
    }
    node = SumTree::Parent(node);
  }
  nodes_[{node.level, node.index}] = std::move(value);
}

at::Tensor PartialSums::TakeRoot(std::vector<at::Tensor>& freed) {
  const SumNode root = tree_.root();
  while (!nodes_.empty()) {
    // Nothing below can complete the lowest node's sibling, so no leaf of the sibling came.
    const auto lowest = nodes_.begin();
    const SumNode node{lowest->first.first, lowest->first.second};
    at::Tensor value = std::move(lowest->second);
    nodes_.erase(lowest);
    if (node == root) {
      TORCH_CHECK(nodes_.empty(), "[gradients] leaves came twice");
      return value;
    }
    Add(SumTree::Parent(node), std::move(value), freed);
  }
  return {};
}

void PartialSums::Clear(std::vector<at::Tensor>& freed) {
  for (auto& [node, value] : nodes_) {
    if (value.defined()) freed.push_back(std::move(value));
  }
  nodes_.clear();
}

}  // namespace moesaic
