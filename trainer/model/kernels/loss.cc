#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

// body(row of logits, target, loss of the row to fill) over the rows; returns the losses' sum.
template <class Body>
double SumOverRows(const at::Tensor& logits, const at::Tensor& targets, Body body) {
  TORCH_CHECK(logits.dim() == 2, "CrossEntropy: logits: two dimensions are needed, got ",
              logits.sizes());
  const int64_t n = logits.size(0), v = logits.size(1);
  CheckTensor("CrossEntropy: logits", logits, {n, v}, at::kFloat);
  CheckTensor("CrossEntropy: targets", targets, {n}, at::kLong);
  const int64_t* target = Data<int64_t>(targets);
  std::vector<double> losses(n, 0.0);
  ParallelRows(n, v, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      TORCH_CHECK(target[i] >= -1 && target[i] < v, "CrossEntropy: target ", target[i], " of row ",
                  i, " is not in a vocabulary of ", v);
      losses[i] = body(Data<float>(logits) + i * v, target[i]);
    }
  });
  double sum = 0;
  for (double loss : losses) sum += loss;
  return sum;
}

}  // namespace

double CrossEntropyInPlace(at::Tensor& logits, const at::Tensor& targets, double scale) {
  const int64_t v = logits.size(-1);
  const FloatKernels& kernels = ActiveRowKernels().floats;
  return SumOverRows(logits, targets, [&](float* row, int64_t target) {
    if (target < 0) {
      std::fill(row, row + v, 0.0f);
      return 0.0;
    }
    const float log_sum_exp = kernels.log_sum_exp(row, v);
    const double loss = static_cast<double>(log_sum_exp) - row[target];
    kernels.scaled_softmax(row, log_sum_exp, static_cast<float>(scale), v);
    row[target] -= static_cast<float>(scale);
    return loss;
  });
}

double CrossEntropy(const at::Tensor& logits, const at::Tensor& targets) {
  const int64_t v = logits.size(-1);
  const FloatKernels& kernels = ActiveRowKernels().floats;
  return SumOverRows(logits, targets, [&](const float* row, int64_t target) {
    return target < 0 ? 0.0 : static_cast<double>(kernels.log_sum_exp(row, v)) - row[target];
  });
}

}  // namespace moesaic
