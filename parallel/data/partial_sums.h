// The partial sums of one parameter in the tree of SumTree, as tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <map>
#include <utility>
#include <vector>

#include "parallel/layout/sum_tree.h"

namespace moesaic {

// Thread-compatible.
class PartialSums {
 public:
  explicit PartialSums(int64_t leaves) : tree_(leaves) {}

  // Takes the value of `node` (its memory may be added to; undefined: zero) and adds it to its
  // sibling's if that is there, and so on upwards. Tensors no longer needed are appended to
  // `freed`. TORCH_CHECKs that no leaf below is there already.
  void Add(SumNode node, at::Tensor value, std::vector<at::Tensor>& freed);

  // Sums over siblings that were not there, in (level, index) order; undefined: zero.
  const std::map<std::pair<int, int64_t>, at::Tensor>& nodes() const { return nodes_; }

  // Empties the tree: the value of its root, leaves that never came counting as zero. Undefined
  // when none came that was not zero.
  at::Tensor TakeRoot(std::vector<at::Tensor>& freed);

  // Forgets all, into `freed`.
  void Clear(std::vector<at::Tensor>& freed);

 private:
  void CheckNew(SumNode node) const;
  // Either may be undefined: zero.
  static at::Tensor Sum(at::Tensor a, at::Tensor b, std::vector<at::Tensor>& freed);

  SumTree tree_;
  std::map<std::pair<int, int64_t>, at::Tensor> nodes_;
};

}  // namespace moesaic
