#include "parallel/expert/grouped_linear.h"

#include <algorithm>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "parallel/expert/mkl_gemm.h"
#include "parallel/expert/parallel_for.h"
#include "parallel/simd/cpu_level.h"
#include "parallel/simd/gemm.h"

namespace moesaic {
namespace {

void CheckType(const at::Tensor& tensor, at::ScalarType type) {
  TORCH_CHECK(type == at::kFloat || type == at::kBFloat16,
              "grouped linear: float32 or bfloat16 is needed, got ", type);
  TORCH_CHECK(tensor.scalar_type() == type && tensor.is_contiguous() && tensor.is_cpu(),
              "grouped linear: a contiguous tensor of ", type, " on the CPU is needed, got ",
              tensor.scalar_type());
}

void CheckRows(const at::Tensor& rows, at::ScalarType type, int64_t begin, int64_t count,
               int64_t width) {
  CheckType(rows, type);
  TORCH_CHECK(rows.dim() == 2 && rows.size(1) == width, "grouped linear: rows of width ", width,
              " are needed, got ", rows.sizes());
  TORCH_CHECK(begin >= 0 && count >= 0 && begin + count <= rows.size(0), "grouped linear: rows [",
              begin, ", ", begin + count, ") are not in a batch of ", rows.size(0));
}

// One product c = a b; columns of c may be computed apart.
template <class T, class C>
struct Product {
  GemmShape shape;
  MatrixRef<T> a, b;
  GemmResult<C> c;
};

// Columns [begin, end) of products[index].
struct Piece {
  size_t index;
  int64_t begin, end;
};

// Products are cut into pieces of columns only when there are too few of them for the threads; a
// column's bits do not depend on the cut.
template <class T, class C>
std::vector<Piece> CutColumns(const std::vector<Product<T, C>>& products) {
  constexpr int64_t kLeast = 4 * kPanel;
  const int64_t threads = at::get_num_threads();
  std::vector<Piece> pieces;
  for (size_t i = 0; i < products.size(); ++i) {
    const int64_t n = products[i].shape.n;
    int64_t columns = n;
    if (static_cast<int64_t>(products.size()) < 4 * threads && threads > 1) {
      columns = std::max(kLeast, (n / threads + kPanel - 1) / kPanel * kPanel);
    }
    for (int64_t begin = 0; begin < n; begin += columns) {
      pieces.push_back({i, begin, std::min(n, begin + columns)});
    }
  }
  return pieces;
}

void Multiply(const GemmShape& shape, MatrixRef<float> a, MatrixRef<float> b, GemmResult<float> c) {
  Gemm(shape, a, b, c);
}

// Tiles of bf16 are many times faster than our kernels, where there are any. The choice is by CPU
// and shape only.
template <class C>
void Multiply(const GemmShape& shape, MatrixRef<Bf16> a, MatrixRef<Bf16> b, GemmResult<C> c) {
  constexpr int64_t kWorthACall = 32 * 32 * 32;
  static const bool tiles = DetectCpuLevel() == CpuLevel::kAmx;
  if (tiles && shape.m * shape.n * shape.k >= kWorthACall) {
    MklGemm(shape, a, b, c);
  } else {
    Gemm(shape, a, b, c);
  }
}

template <class T, class C>
void Run(const std::vector<Product<T, C>>& products) {
  const std::vector<Piece> pieces = CutColumns(products);
  ParallelFor(static_cast<int64_t>(pieces.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[i];
      Product<T, C> p = products[piece.index];
      p.shape.n = piece.end - piece.begin;
      p.b.data += piece.begin * p.b.column_stride;
      p.c.data += piece.begin;
      Multiply(p.shape, p.a, p.b, p.c);
    }
  });
}

template <class T>
T* RowsAt(const at::Tensor& rows, int64_t begin) {
  return static_cast<T*>(rows.data_ptr()) + begin * rows.size(1);
}

template <class T>
MatrixRef<T> Ref(const at::Tensor& rows, int64_t begin) {
  return {RowsAt<T>(rows, begin), rows.size(1), 1};
}

template <class T, class C>
void Forward(const at::Tensor& x, std::span<const LinearGroup> groups, const at::Tensor& y) {
  std::vector<Product<T, C>> products;
  for (const LinearGroup& g : groups) {
    const int64_t out = g.weight.size(0), in = g.weight.size(1);
    if (g.rows == 0) continue;
    products.push_back({{g.rows, out, in},
                        Ref<T>(x, g.begin),
                        Ref<T>(g.weight, 0).Transposed(),
                        {RowsAt<C>(y, g.begin), out}});
  }
  Run(products);
}

template <class T>
void BackwardInput(const at::Tensor& dy, std::span<const LinearGroup> groups,
                   const at::Tensor& dx) {
  std::vector<Product<T, T>> products;
  for (const LinearGroup& g : groups) {
    const int64_t out = g.weight.size(0), in = g.weight.size(1);
    if (g.rows == 0) continue;
    products.push_back({{g.rows, in, out},
                        Ref<T>(dy, g.begin),
                        Ref<T>(g.weight, 0),
                        {RowsAt<T>(dx, g.begin), in}});
  }
  Run(products);
}

template <class T>
void BackwardWeight(const at::Tensor& dy, const at::Tensor& x,
                    std::span<const WeightGradient> groups) {
  std::vector<Product<T, float>> products;
  for (const WeightGradient& g : groups) {
    const int64_t out = g.gradient.size(0), in = g.gradient.size(1);
    if (g.rows == 0 && g.accumulate) continue;
    products.push_back({{out, in, g.rows},
                        Ref<T>(dy, g.begin).Transposed(),
                        Ref<T>(x, g.begin),
                        {RowsAt<float>(g.gradient, 0), in, g.accumulate}});
  }
  Run(products);
}

}  // namespace

void GroupedLinear(const at::Tensor& x, std::span<const LinearGroup> groups, at::Tensor& y) {
  const at::ScalarType type = x.scalar_type();
  const bool wide = y.scalar_type() == at::kFloat;  // sums of bfloat16 products, not rounded
  for (const LinearGroup& g : groups) {
    CheckType(g.weight, type);
    CheckRows(x, type, g.begin, g.rows, g.weight.size(1));
    CheckRows(y, wide ? at::kFloat : type, g.begin, g.rows, g.weight.size(0));
  }
  if (type == at::kFloat) {
    Forward<float, float>(x, groups, y);
  } else if (wide) {
    Forward<Bf16, float>(x, groups, y);
  } else {
    Forward<Bf16, Bf16>(x, groups, y);
  }
}

void GroupedLinearBackwardInput(const at::Tensor& dy, std::span<const LinearGroup> groups,
                                at::Tensor& dx) {
  const at::ScalarType type = dy.scalar_type();
  for (const LinearGroup& g : groups) {
    CheckType(g.weight, type);
    CheckRows(dy, type, g.begin, g.rows, g.weight.size(0));
    CheckRows(dx, type, g.begin, g.rows, g.weight.size(1));
  }
  type == at::kFloat ? BackwardInput<float>(dy, groups, dx) : BackwardInput<Bf16>(dy, groups, dx);
}

void GroupedLinearBackwardWeight(const at::Tensor& dy, const at::Tensor& x,
                                 std::span<const WeightGradient> groups) {
  const at::ScalarType type = dy.scalar_type();
  for (const WeightGradient& g : groups) {
    CheckType(g.gradient, at::kFloat);
    CheckRows(dy, type, g.begin, g.rows, g.gradient.size(0));
    CheckRows(x, type, g.begin, g.rows, g.gradient.size(1));
  }
  type == at::kFloat ? BackwardWeight<float>(dy, x, groups) : BackwardWeight<Bf16>(dy, x, groups);
}

}  // namespace moesaic
