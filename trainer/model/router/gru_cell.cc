#include "trainer/model/router/gru_cell.h"

#include <ATen/ATen.h>

#include <cmath>

#include "trainer/model/linear.h"
#include "trainer/model/router/rows.h"

namespace moesaic {
namespace {

float Sigmoid(float v) { return 1 / (1 + std::exp(-v)); }

// Part `i` of a row of parts of `p`.
template <typename T>
std::span<T> PartOf(std::span<T> row, size_t i, size_t p) {
  return row.subspan(i * p, p);
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
      for (int64_t c = begin; c < end; ++c) sum[c - begin] += values[row * width + c];
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
  const auto p = static_cast<size_t>(u.size(1));
  const at::Tensor input = Linear(u, weights.Lease(parameters_.input_weight));
  const at::Tensor hidden = Linear(h, weights.Lease(parameters_.hidden_weight));
  const at::Tensor input_bias = weights.Lease(parameters_.input_bias);
  const at::Tensor hidden_bias = weights.Lease(parameters_.hidden_bias);
  const float* bi = input_bias.const_data_ptr<float>();
  const float* bh = hidden_bias.const_data_ptr<float>();
  saved.gates = at::empty({u.size(0), 4 * u.size(1)}, at::kFloat);
  at::Tensor next = at::empty_like(h);
  ParallelFor(u.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> in = RowOf(input, row), hid = RowOf(hidden, row);
      const std::span<const float> before = RowOf(h, row);
      const std::span<float> gates = MutableRowOf(saved.gates, row);
      const std::span<float> after = MutableRowOf(next, row);
      for (size_t i = 0; i < p; ++i) {
        const float r = Sigmoid(in[i] + bi[i] + hid[i] + bh[i]);
        const float z = Sigmoid(in[p + i] + bi[p + i] + hid[p + i] + bh[p + i]);
        const float q = hid[2 * p + i] + bh[2 * p + i];
        const float n = std::tanh(in[2 * p + i] + bi[2 * p + i] + r * q);
        gates[i] = r;
        gates[p + i] = z;
        gates[2 * p + i] = n;
        gates[3 * p + i] = q;
        after[i] = (1 - z) * n + z * before[i];
      }
    }
  });
  return next;
}

GruCell::InputGradients GruCell::BackwardInput(const at::Tensor& dout, WeightSource& weights,
                                               Saved& saved) const {
  const auto p = static_cast<size_t>(dout.size(1));
  saved.dinput = at::empty({dout.size(0), 3 * dout.size(1)}, at::kFloat);
  saved.dhidden = at::empty_like(saved.dinput);
  at::Tensor direct = at::empty_like(dout);  // through z * h
  ParallelFor(dout.size(0), kRouterRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const std::span<const float> d = RowOf(dout, row), before = RowOf(saved.h, row);
      const std::span<const float> gates = RowOf(saved.gates, row);
      const auto r = PartOf(gates, 0, p), z = PartOf(gates, 1, p), n = PartOf(gates, 2, p),
                 q = PartOf(gates, 3, p);
      const std::span<float> di = MutableRowOf(saved.dinput, row);
      const std::span<float> dh = MutableRowOf(saved.dhidden, row);
      const std::span<float> pass = MutableRowOf(direct, row);
      for (size_t i = 0; i < p; ++i) {
        const float dn = d[i] * (1 - z[i]) * (1 - n[i] * n[i]);
        const float dr = dn * q[i] * r[i] * (1 - r[i]);
        const float dz = d[i] * (before[i] - n[i]) * z[i] * (1 - z[i]);
        di[i] = dh[i] = dr;
        di[p + i] = dh[p + i] = dz;
        di[2 * p + i] = dn;
        dh[2 * p + i] = dn * r[i];
        pass[i] = d[i] * z[i];
      }
    }
  });
  return {LinearBackwardInput(saved.dinput, weights.Lease(parameters_.input_weight)),
          direct.add_(LinearBackwardInput(saved.dhidden, weights.Lease(parameters_.hidden_weight)))};
}

void GruCell::BackwardWeight(const Saved& saved, int use, int64_t micro_batch,
                             GradientSink& sink) const {
  ReportLinear(saved.dinput, saved.u, parameters_.input_weight, use, micro_batch, sink);
  ReportLinear(saved.dhidden, saved.h, parameters_.hidden_weight, use, micro_batch, sink);
  ReportBias(saved.dinput, parameters_.input_bias, use, micro_batch, sink);
  ReportBias(saved.dhidden, parameters_.hidden_bias, use, micro_batch, sink);
}

}  // namespace moesaic
