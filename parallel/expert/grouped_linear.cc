#include "parallel/expert/grouped_linear.h"

#include <ATen/ATen.h>

namespace moesaic {
namespace {

void CheckRows(const at::Tensor& rows, int64_t begin, int64_t count, int64_t width) {
  TORCH_CHECK(rows.dim() == 2 && rows.is_contiguous() && rows.size(1) == width,
              "grouped linear: rows of width ", width, " are needed, got ", rows.sizes());
  TORCH_CHECK(begin >= 0 && count >= 0 && begin + count <= rows.size(0), "grouped linear: rows [",
              begin, ", ", begin + count, ") are not in a batch of ", rows.size(0));
}

}  // namespace

void GroupedLinear(const at::Tensor& x, std::span<const LinearGroup> groups, at::Tensor& y) {
  for (const LinearGroup& group : groups) {
    CheckRows(x, group.begin, group.rows, group.weight.size(1));
    CheckRows(y, group.begin, group.rows, group.weight.size(0));
    if (group.rows == 0) continue;
    at::Tensor out = y.narrow(0, group.begin, group.rows);
    at::mm_out(out, x.narrow(0, group.begin, group.rows), group.weight.t());
  }
}

void GroupedLinearBackwardInput(const at::Tensor& dy, std::span<const LinearGroup> groups,
                                at::Tensor& dx) {
  for (const LinearGroup& group : groups) {
    CheckRows(dy, group.begin, group.rows, group.weight.size(0));
    CheckRows(dx, group.begin, group.rows, group.weight.size(1));
    if (group.rows == 0) continue;
    at::Tensor out = dx.narrow(0, group.begin, group.rows);
    at::mm_out(out, dy.narrow(0, group.begin, group.rows), group.weight);
  }
}

void GroupedLinearBackwardWeight(const at::Tensor& dy, const at::Tensor& x,
                                 std::span<const WeightGradient> groups) {
  for (const WeightGradient& group : groups) {
    at::Tensor gradient = group.gradient;
    CheckRows(dy, group.begin, group.rows, gradient.size(0));
    CheckRows(x, group.begin, group.rows, gradient.size(1));
    if (!group.accumulate) gradient.zero_();
    if (group.rows == 0) continue;
    gradient.addmm_(dy.narrow(0, group.begin, group.rows).to(at::kFloat).t(),
                    x.narrow(0, group.begin, group.rows).to(at::kFloat));
  }
}

}  // namespace moesaic
