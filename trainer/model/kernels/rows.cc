#include <cstring>

#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

// out[i] = table[index[i]], each index below `limit`.
void CopyRows(const at::Tensor& table, const at::Tensor& index, const at::Tensor& out) {
  const int64_t limit = table.size(0);
  const int64_t row_bytes = table.size(1) * table.element_size();
  const auto* from = static_cast<const char*>(table.data_ptr());
  auto* to = static_cast<char*>(out.data_ptr());
  const int64_t* rows = Data<int64_t>(index);
  ParallelRows(out.size(0), out.size(1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      TORCH_CHECK(rows[i] >= 0 && rows[i] < limit, "row ", i, " asks for row ", rows[i], " of ",
                  limit);
      std::memcpy(to + i * row_bytes, from + rows[i] * row_bytes, row_bytes);
    }
  });
}

void CheckPositions(const at::Tensor& position, int64_t rows) {
  const int64_t* p = Data<int64_t>(position);
  for (int64_t i = 0; i < position.numel(); ++i) {
    TORCH_CHECK(p[i] >= -1 && p[i] < rows, "position ", p[i], " of pair ", i, " is not in ", rows,
                " rows");
  }
}

}  // namespace

void GatherRows(const at::Tensor& x, const at::Tensor& index, at::Tensor& out) {
  TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), "GatherRows: x: contiguous rows are needed");
  CheckTensor("GatherRows: index", index, {index.numel()}, at::kLong);
  CheckTensor("GatherRows: out", out, {index.numel(), x.size(1)}, x.scalar_type());
  CopyRows(x, index, out);
}

void CombineRows(const at::Tensor& rows, const at::Tensor& position, const at::Tensor& weights,
                 const at::Tensor& add, at::Tensor& out) {
  TORCH_CHECK(rows.dim() == 2 && position.dim() == 2, "CombineRows: rows and position have two "
              "dimensions, got ", rows.sizes(), " and ", position.sizes());
  const int64_t n = position.size(0), fan = position.size(1), d = rows.size(1);
  CheckTensor("CombineRows: rows", rows, {rows.size(0), d}, rows.scalar_type());
  CheckTensor("CombineRows: position", position, {n, fan}, at::kLong);
  CheckOptional("CombineRows: weights", weights, {n, fan}, at::kFloat);
  CheckOptional("CombineRows: add", add, {n, d}, rows.scalar_type());
  CheckTensor("CombineRows: out", out, {n, d}, rows.scalar_type());
  CheckPositions(position, rows.size(0));
  WithComputeType(rows, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, d * (fan + 1), [&](int64_t begin, int64_t end) {
      const float* w = DataOrNull<float>(weights);
      const T* more = DataOrNull<T>(add);
      ActiveRowKernelsOf<T>().combine(
          Data<T>(rows), Data<int64_t>(position) + begin * fan, w ? w + begin * fan : nullptr,
          more ? more + begin * d : nullptr, Data<T>(out) + begin * d, end - begin, fan, d);
    });
  });
}

void CombineRowsBackward(const at::Tensor& dout, const at::Tensor& rows, const at::Tensor& position,
                         const at::Tensor& weights, at::Tensor& drows, at::Tensor& dweights) {
  TORCH_CHECK(rows.dim() == 2 && position.dim() == 2, "CombineRowsBackward: rows and position have "
              "two dimensions, got ", rows.sizes(), " and ", position.sizes());
  const int64_t n = position.size(0), fan = position.size(1), d = rows.size(1);
  CheckTensor("CombineRowsBackward: dout", dout, {n, d}, rows.scalar_type());
  CheckTensor("CombineRowsBackward: rows", rows, {rows.size(0), d}, rows.scalar_type());
  CheckTensor("CombineRowsBackward: position", position, {n, fan}, at::kLong);
  CheckOptional("CombineRowsBackward: weights", weights, {n, fan}, at::kFloat);
  CheckTensor("CombineRowsBackward: drows", drows, {rows.size(0), d}, rows.scalar_type());
  CheckOptional("CombineRowsBackward: dweights", dweights, {n, fan}, at::kFloat);
  CheckPositions(position, rows.size(0));
  WithComputeType(rows, [&](auto type) {
    using T = decltype(type);
    ParallelRows(n, d * (fan + 1), [&](int64_t begin, int64_t end) {
      const float* w = DataOrNull<float>(weights);
      float* dw = DataOrNull<float>(dweights);
      ActiveRowKernelsOf<T>().combine_backward(
          Data<T>(dout) + begin * d, Data<T>(rows), Data<int64_t>(position) + begin * fan,
          w ? w + begin * fan : nullptr, Data<T>(drows), dw ? dw + begin * fan : nullptr,
          end - begin, fan, d);
    });
  });
}

void EmbeddingLookup(const at::Tensor& table, const at::Tensor& tokens, at::Tensor& out) {
  TORCH_CHECK(table.dim() == 2 && table.is_contiguous(),
              "EmbeddingLookup: table: contiguous rows are needed");
  CheckTensor("EmbeddingLookup: tokens", tokens, {tokens.numel()}, at::kLong);
  CheckTensor("EmbeddingLookup: out", out, {tokens.numel(), table.size(1)}, table.scalar_type());
  CopyRows(table, tokens, out);
}

void EmbeddingBackward(const at::Tensor& dy, const at::Tensor& tokens, bool accumulate,
                       at::Tensor& gradient) {
  TORCH_CHECK(gradient.dim() == 2, "EmbeddingBackward: gradient: two dimensions are needed, got ",
              gradient.sizes());
  const int64_t n = tokens.numel(), v = gradient.size(0), d = gradient.size(1);
  CheckTensor("EmbeddingBackward: dy", dy, {n, d}, dy.scalar_type());
  CheckTensor("EmbeddingBackward: tokens", tokens, {n}, at::kLong);
  CheckTensor("EmbeddingBackward: gradient", gradient, {v, d}, at::kFloat);
  const int64_t* index = Data<int64_t>(tokens);
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK(index[i] >= 0 && index[i] < v, "EmbeddingBackward: token ", index[i], " at ", i,
                " is not in a table of ", v);
  }
  if (!accumulate) gradient.zero_();
  WithComputeType(dy, [&](auto type) {
    using T = decltype(type);
    // Columns over threads: a row that several tokens name is summed in token order.
    ParallelRows(d, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = 0; i < n; ++i) {
        ActiveRowKernelsOf<T>().add_row(Data<T>(dy) + i * d + begin,
                                        Data<float>(gradient) + index[i] * d + begin, end - begin);
      }
    });
  });
}

}  // namespace moesaic
