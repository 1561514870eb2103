#include "trainer/model/kernels/optimizer_kernels.h"

#include <atomic>

#include "trainer/model/kernels/dispatch.h"

namespace moesaic {
namespace {

template <class T>
void Step(const AdamWCoefficients& coefficients, const AdamWSpans& spans, std::span<T> compute) {
  const auto n = static_cast<int64_t>(spans.master.size());
  TORCH_CHECK(spans.gradient.size() == spans.master.size() && spans.m.size() == spans.master.size() &&
                  spans.v.size() == spans.master.size() &&
                  (compute.empty() || compute.size() == spans.master.size()),
              "AdamWStep: spans differ in size: gradient ", spans.gradient.size(), ", master ", n,
              ", m ", spans.m.size(), ", v ", spans.v.size(), ", compute ", compute.size());
  ParallelRows(n, 1, [&](int64_t begin, int64_t end) {
    ActiveRowKernelsOf<T>().adamw(coefficients, spans.gradient.data() + begin,
                                  spans.master.data() + begin, spans.m.data() + begin,
                                  spans.v.data() + begin,
                                  compute.empty() ? nullptr : compute.data() + begin, end - begin);
  });
}

// The chunk's elements of a span of n.
int64_t ChunkSize(int64_t chunk, int64_t n) { return std::min(kNormChunk, n - chunk * kNormChunk); }

}  // namespace

void AdamWStep(const AdamWCoefficients& coefficients, const AdamWSpans& spans,
               std::span<Bf16> compute) {
  Step(coefficients, spans, compute);
}

void AdamWStep(const AdamWCoefficients& coefficients, const AdamWSpans& spans,
               std::span<float> compute) {
  Step(coefficients, spans, compute);
}

std::vector<double> SumSquaresByChunk(std::span<const float> x) {
  const auto n = static_cast<int64_t>(x.size());
  std::vector<double> sums((n + kNormChunk - 1) / kNormChunk);
  ParallelRows(static_cast<int64_t>(sums.size()), kNormChunk, [&](int64_t begin, int64_t end) {
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      sums[chunk] = ActiveRowKernels().floats.sum_squares(x.data() + chunk * kNormChunk,
                                                          ChunkSize(chunk, n));
    }
  });
  return sums;
}

bool AllFinite(std::span<const float> x) {
  std::atomic<bool> finite = true;
  ParallelRows(static_cast<int64_t>(x.size()), 1, [&](int64_t begin, int64_t end) {
    if (!ActiveRowKernels().floats.all_finite(x.data() + begin, end - begin)) finite = false;
  });
  return finite;
}

}  // namespace moesaic
