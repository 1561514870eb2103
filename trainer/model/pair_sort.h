// The (token, slot) pairs of a routing sorted by expert, and by token within an expert: the order
// in which rows leave for their experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace moesaic {

struct SortedPairs {
  at::Tensor token;             // int64 [pairs]: whose row each sorted row is
  at::Tensor position;          // int64 [n, K]: the sorted row of each pair, -1 where there is none
  std::vector<int64_t> counts;  // by expert: its sorted rows
};

// expert int64 [n, K], ids below `experts`, -1: no pair. A stable counting sort.
SortedPairs SortByExpert(const at::Tensor& expert, int64_t experts);

}  // namespace moesaic
