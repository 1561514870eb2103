#include "trainer/model/router/select.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <span>

#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

// K is small, so K scans of a row beat a sort; a scan keeps the first of equal scores.
void TopKOfRow(std::span<const float> scores, std::span<int64_t> chosen) {
  for (size_t k = 0; k < chosen.size(); ++k) {
    const auto taken = chosen.first(k);
    int64_t best = -1;
    for (int64_t e = 0; e < static_cast<int64_t>(scores.size()); ++e) {
      if (best >= 0 && !(scores[e] > scores[best])) continue;
      if (std::find(taken.begin(), taken.end(), e) == taken.end()) best = e;
    }
    chosen[k] = best;
  }
}

// All experts, the largest score first; of equal ones the lowest id. What is no number comes last.
void OrderOfRow(std::span<const float> scores, std::vector<int64_t>& order) {
  order.resize(scores.size());
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&](int64_t e) {
    return std::isnan(scores[e]) ? -std::numeric_limits<float>::infinity() : scores[e];
  };
  std::ranges::stable_sort(order, std::greater(), key);
}

float SumOfBest(std::span<const float> scores, size_t count) {
  std::vector<int64_t> best(count);
  TopKOfRow(scores, best);
  float sum = 0;
  for (const int64_t e : best) sum += scores[static_cast<size_t>(e)];
  return sum;
}

}  // namespace

at::Tensor SelectTopK(const at::Tensor& scores, int64_t active) {
  TORCH_CHECK(active >= 1 && active <= scores.size(1), "router: top-", active, " of ",
              scores.size(1), " experts");
  at::Tensor selected = at::empty({scores.size(0), active}, at::kLong);
  int64_t* ids = selected.data_ptr<int64_t>();
  ParallelFor(scores.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      TopKOfRow(RowOf(scores, row), {ids + row * active, static_cast<size_t>(active)});
    }
  });
  return selected;
}

at::Tensor SelectTopP(const at::Tensor& scores, double share, int64_t most) {
  TORCH_CHECK(most >= 1 && most <= scores.size(1), "router: at most ", most, " of ",
              scores.size(1), " experts");
  const int64_t tokens = scores.size(0);
  const at::Tensor selected = at::full({tokens, most}, -1, at::kLong);
  std::vector<int64_t> taken(tokens);
  int64_t* ids = selected.data_ptr<int64_t>();
  ParallelFor(tokens, kRouterRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> order;
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> s = RowOf(scores, row);
      OrderOfRow(s, order);
      double sum = 0;
      for (int64_t k = 0; k < most && (k == 0 || !(sum >= share)); ++k) {
        ids[row * most + k] = order[k];
        sum += s[order[k]];
        ++taken[row];
      }
    }
  });
  const int64_t widest = tokens > 0 ? *std::ranges::max_element(taken) : 1;
  return selected.narrow(1, 0, widest).contiguous();
}

at::Tensor SelectAbove(const at::Tensor& scores, float threshold) {
  const int64_t tokens = scores.size(0);
  int64_t widest = 1;
  for (int64_t t = 0; t < tokens; ++t) {
    const auto above =
        std::ranges::count_if(RowOf(scores, t), [&](float s) { return s > threshold; });
    widest = std::max<int64_t>(widest, above);
  }
  at::Tensor selected = at::full({tokens, widest}, -1, at::kLong);
  int64_t* ids = selected.data_ptr<int64_t>();
  ParallelFor(tokens, kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> s = RowOf(scores, row);
      int64_t* next = ids + row * widest;
      for (size_t e = 0; e < s.size(); ++e) {
        if (s[e] > threshold) *next++ = static_cast<int64_t>(e);
      }
    }
  });
  return selected;
}

at::Tensor BiasedScores(const at::Tensor& scores, const at::Tensor& bias) {
  return bias.defined() ? at::add(scores, bias) : scores;
}

at::Tensor WithoutOthers(const at::Tensor& scores, const at::Tensor& candidates) {
  if (!candidates.defined()) return scores;
  return scores.masked_fill(candidates.logical_not(), -std::numeric_limits<double>::infinity());
}

at::Tensor WithoutBest(const at::Tensor& scores, int64_t count) {
  if (count == 0) return scores;
  return scores.scatter(1, SelectTopK(scores, count), -std::numeric_limits<double>::infinity());
}

void MaskGroups(const GroupRule& rule, int64_t active, at::Tensor& scores) {
  if (rule.limit >= rule.groups) return;
  const auto width = static_cast<size_t>(scores.size(1) / rule.groups);
  const size_t counted = rule.score == BEST ? 1 : std::max<int64_t>(1, active / rule.limit);
  ParallelFor(scores.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    std::vector<float> group_scores(rule.groups);
    std::vector<int64_t> allowed(rule.limit);
    for (int64_t row = begin; row < end; ++row) {
      const std::span<float> s = MutableRowOf(scores, row);
      for (size_t g = 0; g < group_scores.size(); ++g) {
        group_scores[g] = SumOfBest(s.subspan(g * width, width), std::min(counted, width));
      }
      TopKOfRow(group_scores, allowed);
      for (size_t g = 0; g < group_scores.size(); ++g) {
        if (std::find(allowed.begin(), allowed.end(), static_cast<int64_t>(g)) != allowed.end()) {
          continue;
        }
        std::ranges::fill(s.subspan(g * width, width), -std::numeric_limits<float>::infinity());
      }
    }
  });
}

std::vector<int64_t> CountByExpert(const at::Tensor& selected, int64_t experts) {
  std::vector<int64_t> counts(experts);
  const int64_t* ids = selected.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < selected.numel(); ++i) {
    if (ids[i] >= 0) ++counts[ids[i]];
  }
  return counts;
}

}  // namespace moesaic
