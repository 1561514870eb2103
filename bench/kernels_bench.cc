// Rates of the matrix products of two reference models, by each library at hand, and the time of
// every other kernel beside what moving its bytes (or its products) alone would take. One thread;
// times are of the thread's CPU, the best of several, so that a busy machine disturbs little.
//
//   moesaic-kernels-bench [repeats]
//
// docs/design/kernels.md has the tables and what was chosen by them.
#include <ctime>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "bench/product_rates.h"
#include "parallel/simd/cpu_level.h"
#include "trainer/model/kernels/kernels.h"
#include "trainer/model/kernels/optimizer_kernels.h"

namespace moesaic {
namespace {

double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

template <class Body>
double BestSeconds(int repeats, Body body) {
  double best = 1e30;
  for (int i = 0; i <= repeats; ++i) {
    const double start = CpuSeconds();
    body();
    if (i > 0) best = std::min(best, CpuSeconds() - start);
  }
  return best;
}

// ---- Matrix products -------------------------------------------------------------------------------

struct Layer {
  const char* name;
  ProductShape shape;
};

constexpr Layer kLayers[] = {
    {"coarse gate_up", {8, 512, 1376, 256}}, {"coarse down", {8, 512, 256, 688}},
    {"fine gate_up", {64, 192, 344, 256}},   {"fine down", {64, 192, 256, 172}},
    {"fine shared gate_up", {1, 2048, 688, 256}}, {"qkv", {1, 2048, 768, 256}},
    {"out", {1, 2048, 256, 256}},            {"head", {1, 512, 8192, 256}},
};

constexpr const char* kPassNames[] = {"forward", "dx", "dW"};

void BenchProducts(at::ScalarType type) {
  std::printf("\n%s, GFLOP/s\n%-20s %-8s %8s %8s %8s %8s\n", c10::toString(type), "layer", "pass", "ours",
              "at::mm", "MKL", "oneDNN");
  for (const auto& [name, shape] : kLayers) {
    const double gflop = 2e-9 * static_cast<double>(shape.groups * shape.rows * shape.out * shape.in);
    for (const ProductPass pass : kProductPasses) {
      const ProductSeconds seconds = MeasureProducts(shape, pass, type);
      std::printf("%-20s %-8s %8.0f %8.0f %8.0f %8.0f\n", name, kPassNames[static_cast<int>(pass)],
                  gflop / seconds.grouped_linear, gflop / seconds.aten, gflop / seconds.mkl,
                  gflop / seconds.onednn);
      std::fflush(stdout);
    }
  }
}

// ---- The other kernels ---------------------------------------------------------------------------------

// Prints the time and how many times a copy that moves the same bytes would fit.
class KernelTable {
 public:
  KernelTable(at::ScalarType type, int repeats) : type_(type), repeats_(repeats) {
    std::printf("\n%s\n%-28s %10s %10s %12s\n", c10::toString(type), "kernel", "us", "GB/s",
                "x copy");
  }

  at::Tensor Random(at::IntArrayRef shape) const { return at::randn(shape).to(type_); }
  at::Tensor Empty(at::IntArrayRef shape) const { return at::zeros(shape, type_); }

  // `tensors`: what is read and written.
  template <class Body>
  void Time(const char* name, std::initializer_list<at::Tensor> tensors, Body body) const {
    int64_t bytes = 0;
    for (const at::Tensor& t : tensors) bytes += t.numel() * t.element_size();
    const double seconds = BestSeconds(repeats_, body), copy = CopySeconds(bytes);
    std::printf("%-28s %10.1f %10.1f %12.2f\n", name, seconds * 1e6, bytes / seconds * 1e-9,
                seconds / copy);
  }

  template <class Body>
  void TimeProducts(const char* name, double flop, Body body) const {
    const double seconds = BestSeconds(repeats_, body);
    std::printf("%-28s %10.1f %10s %7.0f GF/s\n", name, seconds * 1e6, "", flop / seconds * 1e-9);
  }

 private:
  double CopySeconds(int64_t bytes) const {
    std::vector<char> from(bytes / 2, 1), to(bytes / 2);
    return BestSeconds(repeats_, [&] { std::memcpy(to.data(), from.data(), to.size()); });
  }

  at::ScalarType type_;
  int repeats_;
};

void BenchNormAndSwiGlu(const KernelTable& table) {
  const int64_t n = 2048, d = 256, w = 688;
  at::Tensor x = table.Random({n, d}), dy = table.Random({n, d}), y = table.Empty({n, d});
  at::Tensor weight = at::ones({d}), r = at::zeros({n}), dw = at::zeros({d});
  table.Time("RmsNorm", {x, y}, [&] { RmsNorm(x, weight, 1e-5, y, r); });
  table.Time("RmsNormBackwardInput", {dy, x, x, y},
             [&] { RmsNormBackwardInput(dy, x, weight, r, x, y); });
  table.Time("RmsNormBackwardWeight", {dy, x}, [&] { RmsNormBackwardWeight(dy, x, r, true, dw); });
  at::Tensor gate_up = table.Random({2 * n, 2 * w}), d_gate_up = table.Empty({2 * n, 2 * w});
  at::Tensor a = table.Empty({2 * n, w}), da = table.Random({2 * n, w});
  table.Time("SwiGlu", {gate_up, a}, [&] { SwiGlu(gate_up, a); });
  table.Time("SwiGluBackward", {gate_up, d_gate_up, da},
             [&] { SwiGluBackward(da, gate_up, d_gate_up); });
}

void BenchRows(const KernelTable& table) {
  const int64_t n = 2048, d = 256, fan = 6, v = 8192;
  at::Tensor x = table.Random({n, d}), rows = table.Empty({n * fan, d}), out = table.Empty({n, d});
  at::Tensor index = at::randperm(n * fan), from = index.remainder(n).contiguous();
  at::Tensor position = index.view({n, fan}), weights = at::rand({n, fan}), dw = at::empty({n, fan});
  at::Tensor drows = table.Empty({n * fan, d});
  table.Time("GatherRows (6 a token)", {rows, rows}, [&] { GatherRows(x, from, rows); });
  table.Time("CombineRows", {rows, x, out}, [&] { CombineRows(rows, position, weights, x, out); });
  table.Time("CombineRowsBackward", {rows, drows, x},
             [&] { CombineRowsBackward(x, rows, position, weights, drows, dw); });
  at::Tensor embedding = table.Random({v, d}), tokens = at::randint(v, {n}, at::kLong);
  at::Tensor gradient = at::zeros({v, d}), wide = at::zeros({n, d});
  table.Time("EmbeddingLookup", {x, x}, [&] { EmbeddingLookup(embedding, tokens, out); });
  table.Time("EmbeddingBackward", {x, wide, wide},
             [&] { EmbeddingBackward(x, tokens, true, gradient); });
}

void BenchAttention(const KernelTable& table) {
  const AttentionShape s{8, 256, 4, 4, 64};
  const int64_t n = s.sequences * s.length;
  at::Tensor qkv = table.Random({n, 768}), dqkv = table.Random({n, 768});
  at::Tensor out = table.Empty({n, 256}), dout = table.Random({n, 256});
  at::Tensor lse = at::zeros({s.sequences, s.heads, s.length});
  const RopeTable rope = MakeRopeTable(s.length, s.head_width, 10000);
  table.Time("ApplyRope", {qkv, qkv}, [&] { ApplyRope(s, rope, 0, false, qkv); });
  const HeadGains gains = {at::ones({s.head_width}), at::ones({s.head_width}), 1e-6};
  HeadNormSaved saved;
  at::Tensor dgain = at::empty({2, s.head_width});
  table.Time("NormAndRotate", {qkv, qkv}, [&] { NormAndRotate(s, gains, rope, 0, qkv, &saved); });
  table.Time("NormAndRotateBackward", {dqkv, dqkv},
             [&] { NormAndRotateBackward(s, gains, rope, saved, dqkv, dgain); });
  // Products on and below the diagonal only.
  const double flop = 2.0 * s.sequences * s.heads * s.head_width * s.length * (s.length + 1) / 2;
  table.TimeProducts("Attention", 2 * flop, [&] { Attention(s, qkv, {}, out, lse); });
  table.TimeProducts("AttentionBackward", 5 * flop,
                     [&] { AttentionBackward(s, dout, qkv, {}, out, lse, dqkv); });
}

template <class T>
void BenchAdamW(const KernelTable& table) {
  const int64_t n = 8 << 20;
  at::Tensor g = at::randn({n}), w = at::randn({n}), m = at::zeros({n}), v = at::zeros({n});
  at::Tensor compute = table.Empty({n});
  const auto size = static_cast<size_t>(n);
  const AdamWSpans spans{{g.data_ptr<float>(), size}, {w.data_ptr<float>(), size},
                         {m.data_ptr<float>(), size}, {v.data_ptr<float>(), size}};
  const AdamWCoefficients k{.lr = 1e-3f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f};
  table.Time("AdamWStep (8 Mi)", {g, w, w, m, m, v, v, compute},
             [&] { AdamWStep(k, spans, std::span<T>(static_cast<T*>(compute.data_ptr()), size)); });
}

void BenchFloats(const KernelTable& table) {
  at::Tensor source = at::randn({512, 8192}), logits = source.clone();
  at::Tensor targets = at::randint(8192, {512}, at::kLong);
  table.Time("CrossEntropyInPlace", {logits, logits},
             [&] { CrossEntropyInPlace(logits, targets, 1e-3); });
  at::Tensor g = at::randn({8 << 20});
  const std::span<const float> span(g.data_ptr<float>(), static_cast<size_t>(g.numel()));
  table.Time("SumSquaresByChunk (8 Mi)", {g}, [&] { SumSquaresByChunk(span); });
  table.Time("AllFinite (8 Mi)", {g}, [&] { AllFinite(span); });
}

void BenchKernels(at::ScalarType type, int repeats) {
  const KernelTable table(type, repeats);
  BenchNormAndSwiGlu(table);
  BenchRows(table);
  BenchAttention(table);
  type == at::kFloat ? BenchAdamW<float>(table) : BenchAdamW<Bf16>(table);
  if (type == at::kFloat) BenchFloats(table);
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 10;
  if (repeats < 1) {
    std::fprintf(stderr, "usage: %s [repeats, at least 1]\n", argv[0]);
    return 2;
  }
  at::set_num_threads(1);
  std::printf("CPU level: %s\n", moesaic::CpuLevelName(moesaic::DetectCpuLevel()));
  for (at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    moesaic::BenchProducts(type);
    moesaic::BenchKernels(type, repeats);
  }
  return 0;
}
