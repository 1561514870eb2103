#include <dnnl.hpp>

#include <ctime>

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>

#include "bench/product_rates.h"
#include "parallel/expert/grouped_linear.h"

// MKL inside LibTorch (32-bit integers).
extern "C" void cblas_gemm_bf16bf16f32(int layout, int trans_a, int trans_b, int m, int n, int k,
                                       float alpha, const uint16_t* a, int lda, const uint16_t* b,
                                       int ldb, float beta, float* c, int ldc);
extern "C" void sgemm_(const char* trans_a, const char* trans_b, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda,
                       const float* b, const int* ldb, const float* beta, float* c, const int* ldc);

namespace moesaic {
namespace {

constexpr int kRepeats = 5;

double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// The best of some runs, after one that warms up.
template <class Body>
double BestSeconds(Body body) {
  double best = 1e30;
  for (int i = 0; i <= kRepeats; ++i) {
    const double start = CpuSeconds();
    body();
    if (i > 0) best = std::min(best, CpuSeconds() - start);
  }
  return best;
}

// One group's operands: c [m, n] = a b, all row-major, `a_transposed` where a is stored [k, m].
struct Operands {
  at::Tensor a, b, c;
  bool a_transposed, b_transposed;
  int64_t m, n, k;
};

struct Batch {
  at::Tensor x, y, dy, dx;
  std::vector<at::Tensor> weights, gradients;
};

Batch MakeBatch(const ProductShape& s, at::ScalarType type) {
  const int64_t n = s.groups * s.rows;
  Batch b{at::randn({n, s.in}).to(type), at::zeros({n, s.out}, type),
          at::randn({n, s.out}).to(type), at::zeros({n, s.in}, type), {}, {}};
  for (int64_t g = 0; g < s.groups; ++g) {
    b.weights.push_back(at::randn({s.out, s.in}).to(type));
    b.gradients.push_back(at::zeros({s.out, s.in}));
  }
  return b;
}

Operands OperandsOf(const ProductShape& s, const Batch& b, ProductPass pass, int64_t g) {
  const auto rows = [&](const at::Tensor& t) { return t.narrow(0, g * s.rows, s.rows); };
  switch (pass) {
    case ProductPass::kForward:
      return {rows(b.x), b.weights[g], rows(b.y), false, true, s.rows, s.out, s.in};
    case ProductPass::kBackwardInput:
      return {rows(b.dy), b.weights[g], rows(b.dx), false, false, s.rows, s.in, s.out};
    case ProductPass::kBackwardWeight:
      break;
  }
  return {rows(b.dy), rows(b.x), b.gradients[g], true, false, s.out, s.in, s.rows};
}

double GroupedLinearSeconds(const ProductShape& s, Batch& b, ProductPass pass) {
  std::vector<LinearGroup> groups;
  std::vector<WeightGradient> gradients;
  for (int64_t g = 0; g < s.groups; ++g) {
    groups.push_back({g * s.rows, s.rows, b.weights[g]});
    gradients.push_back({g * s.rows, s.rows, b.gradients[g], true});
  }
  return BestSeconds([&] {
    if (pass == ProductPass::kForward) GroupedLinear(b.x, groups, b.y);
    if (pass == ProductPass::kBackwardInput) GroupedLinearBackwardInput(b.dy, groups, b.dx);
    if (pass == ProductPass::kBackwardWeight) GroupedLinearBackwardWeight(b.dy, b.x, gradients);
  });
}

double AtenSeconds(const std::vector<Operands>& all) {
  return BestSeconds([&] {
    for (const Operands& o : all) {
      at::Tensor a = o.a_transposed ? o.a.t() : o.a, b = o.b_transposed ? o.b.t() : o.b, c = o.c;
      if (c.scalar_type() == a.scalar_type()) {
        at::mm_out(c, a, b);
      } else {
        c.add_(at::mm(a, b));
      }
    }
  });
}

// bf16 has fp32 results only: that is what is timed, without narrowing.
double MklSeconds(const std::vector<Operands>& all) {
  constexpr int kRowMajor = 101, kNo = 111, kTrans = 112;
  at::Tensor wide = at::empty({all[0].m, all[0].n});
  return BestSeconds([&] {
    for (const Operands& o : all) {
      const int lda = o.a_transposed ? o.m : o.k, ldb = o.b_transposed ? o.k : o.n;
      auto* c = static_cast<float*>((o.c.scalar_type() == at::kFloat ? o.c : wide).data_ptr());
      if (o.a.scalar_type() == at::kFloat) {
        // Column-major: the transposed product.
        const int m = o.m, n = o.n, k = o.k;
        const float one = 1, zero = 0;
        sgemm_(o.b_transposed ? "T" : "N", o.a_transposed ? "T" : "N", &n, &m, &k, &one,
               o.b.data_ptr<float>(), &ldb, o.a.data_ptr<float>(), &lda, &zero, c, &n);
      } else {
        cblas_gemm_bf16bf16f32(kRowMajor, o.a_transposed ? kTrans : kNo,
                               o.b_transposed ? kTrans : kNo, o.m, o.n, o.k, 1,
                               static_cast<uint16_t*>(o.a.data_ptr()), lda,
                               static_cast<uint16_t*>(o.b.data_ptr()), ldb, 0, c, o.n);
      }
    }
  });
}

dnnl::memory::desc Description(const at::Tensor& t, bool transposed, int64_t rows,
                               int64_t columns) {
  using dnnl::memory;
  const auto type = t.scalar_type() == at::kFloat ? memory::data_type::f32 : memory::data_type::bf16;
  const memory::dims strides = transposed ? memory::dims{1, rows} : memory::dims{columns, 1};
  return {{rows, columns}, type, strides};
}

// The kernel of the shape is made before the clock starts.
double OneDnnSeconds(const std::vector<Operands>& all) {
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const Operands& o = all[0];
  const auto a = Description(o.a, o.a_transposed, o.m, o.k);
  const auto b = Description(o.b, o.b_transposed, o.k, o.n);
  const auto c = Description(o.c, false, o.m, o.n);
  const dnnl::matmul product(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), engine));
  return BestSeconds([&] {
    for (const Operands& p : all) {
      product.execute(stream, {{DNNL_ARG_SRC, {a, engine, p.a.data_ptr()}},
                               {DNNL_ARG_WEIGHTS, {b, engine, p.b.data_ptr()}},
                               {DNNL_ARG_DST, {c, engine, p.c.data_ptr()}}});
    }
    stream.wait();
  });
}

}  // namespace

ProductSeconds MeasureProducts(const ProductShape& shape, ProductPass pass, at::ScalarType type) {
  Batch batch = MakeBatch(shape, type);
  std::vector<Operands> all;
  for (int64_t g = 0; g < shape.groups; ++g) all.push_back(OperandsOf(shape, batch, pass, g));
  return {.grouped_linear = GroupedLinearSeconds(shape, batch, pass),
          .aten = AtenSeconds(all),
          .mkl = MklSeconds(all),
          .onednn = OneDnnSeconds(all)};
}

double BestAttentionProductSeconds(int64_t matrices, int64_t length, int64_t width,
                                   at::ScalarType type) {
  const at::Tensor q = at::randn({matrices, length, width}).to(type);
  const at::Tensor k = at::randn({matrices, length, width}).to(type);
  at::Tensor scores = at::empty({matrices, length, length}, type);
  return BestSeconds([&] { at::bmm_out(scores, q, k.transpose(1, 2)); });
}

}  // namespace moesaic
