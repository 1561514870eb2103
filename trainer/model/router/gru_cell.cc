#include "trainer/model/router/gru_cell.h"

#include <ATen/ATen.h>

#include <vector>

#include "trainer/model/kernels/row_kernels.h"
#include "trainer/model/linear.h"
#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

// The rows from `row` on; null for an undefined tensor.
const float* RowsFrom(const at::Tensor& t, int64_t row) {
  return t.defined() ? t.const_data_ptr<float>() + row * t.size(1) : nullptr;
}
float* MutableRowsFrom(const at::Tensor& t, int64_t row) {
  return t.defined() ? t.data_ptr<float>() + row * t.size(1) : nullptr;
}

// The leaf: sums of the columns of dy, rows added in their order.
void ReportBias(const at::Tensor& dy, ParameterId id, int use, int64_t micro_batch,
                GradientSink& sink) {
  const GradientSink::Slot slot = sink.Open(id, use, micro_batch);
  float* sums = slot.gradient.data_ptr<float>();
  const int64_t rows = dy.size(0), width = dy.size(1);
  const float* values = dy.const_data_ptr<float>();
  ParallelFor(width, 64, [&](int64_t begin, int64_t end) {
    std::vector<float> sum(end - begin);
    for (int64_t row = 0; row < rows; ++row) {
      ActiveRowKernels().f32.add_row(values + row * width + begin, sum.data(), end - begin);
    }
    for (int64_t c = begin; c < end; ++c) {
      sums[c] = slot.accumulate ? sums[c] + sum[c - begin] : sum[c - begin];
    }
  });
  sink.Close(id, use, micro_batch);
}

}  // namespace

std::vector<ParameterId> GruCell::parameters() const {
  return {parameters_.input_weight, parameters_.hidden_weight, parameters_.input_bias,
          parameters_.hidden_bias};
}

at::Tensor GruCell::Forward(const at::Tensor& u, const at::Tensor& h, WeightSource& weights,
                            Saved& saved) const {
  saved.u = u;
  saved.h = h;
  const int64_t p = u.size(1);
  const at::Tensor input = Linear(u, weights.Lease(parameters_.input_weight));
  at::Tensor hidden;
  if (h.defined()) hidden = Linear(h, weights.Lease(parameters_.hidden_weight));
  const at::Tensor input_bias = weights.Lease(parameters_.input_bias);
  const at::Tensor hidden_bias = weights.Lease(parameters_.hidden_bias);
  saved.gates = at::empty({u.size(0), 4 * p}, at::kFloat);
  const at::Tensor next = at::empty_like(u);
  ParallelFor(u.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    ActiveRowKernels().floats.gru({.input = RowsFrom(input, begin),
                                   .hidden = RowsFrom(hidden, begin),
                                   .input_bias = input_bias.const_data_ptr<float>(),
                                   .hidden_bias = hidden_bias.const_data_ptr<float>(),
                                   .before = RowsFrom(h, begin),
                                   .gates = MutableRowsFrom(saved.gates, begin),
                                   .after = MutableRowsFrom(next, begin)},
                                  end - begin, p);
  });
  return next;
}

GruCell::InputGradients GruCell::BackwardInput(const at::Tensor& dout, WeightSource& weights,
                                               Saved& saved) const {
  const int64_t p = dout.size(1);
  saved.dinput = at::empty({dout.size(0), 3 * p}, at::kFloat);
  saved.dhidden = at::empty_like(saved.dinput);
  at::Tensor dh;
  if (saved.h.defined()) dh = at::empty_like(dout);
  ParallelFor(dout.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    ActiveRowKernels().floats.gru_backward({.dafter = RowsFrom(dout, begin),
                                            .before = RowsFrom(saved.h, begin),
                                            .gates = RowsFrom(saved.gates, begin),
                                            .dinput = MutableRowsFrom(saved.dinput, begin),
                                            .dhidden = MutableRowsFrom(saved.dhidden, begin),
                                            .dbefore = MutableRowsFrom(dh, begin)},
                                           end - begin, p);
  });
  if (dh.defined()) {
    dh.add_(LinearBackwardInput(saved.dhidden, weights.Lease(parameters_.hidden_weight)));
  }
  return {LinearBackwardInput(saved.dinput, weights.Lease(parameters_.input_weight)), dh};
}

void GruCell::BackwardWeight(const Saved& saved, int use, int64_t micro_batch,
                             GradientSink& sink) const {
  ReportLinear(saved.dinput, saved.u, parameters_.input_weight, use, micro_batch, sink);
  if (saved.h.defined()) {
    ReportLinear(saved.dhidden, saved.h, parameters_.hidden_weight, use, micro_batch, sink);
  } else {
    sink.Skip(parameters_.hidden_weight, use, micro_batch);
  }
  ReportBias(saved.dinput, parameters_.input_bias, use, micro_batch, sink);
  ReportBias(saved.dhidden, parameters_.hidden_bias, use, micro_batch, sink);
}

}  // namespace moesaic
