// Attention by blocks of queries: the scores of a block over all its keys are one matrix product,
// the softmax is done by row, and products with what lies above the diagonal are left out. K and V of
// a head are packed once and serve all queries of its group.
#include <cmath>

#include "parallel/simd/gemm.h"
#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

void CheckShape(const AttentionShape& shape) {
  TORCH_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0,
              "attention: kv_heads (", shape.kv_heads, ") must divide heads (", shape.heads, ")");
  TORCH_CHECK(shape.head_width > 0 && shape.head_width % 2 == 0,
              "attention: head_width must be even, got ", shape.head_width);
}

// The operands, typed; `Forward` and `Backward` below work on one (sequence, kv head).
template <class T>
struct Operands {
  AttentionShape shape;
  const T* qkv = nullptr;
  const int32_t* starts = nullptr;  // or null
  T* out = nullptr;                 // written forward, read backward
  float* log_sum_exp = nullptr;     // or null
  const T* dout = nullptr;
  T* dqkv = nullptr;

  int64_t Group() const { return shape.heads / shape.kv_heads; }
  int64_t QkvStride() const { return (shape.heads + 2 * shape.kv_heads) * shape.head_width; }
  int64_t OutStride() const { return shape.heads * shape.head_width; }
  int64_t OfQkv(int64_t sequence, int64_t head) const {
    return sequence * shape.length * QkvStride() + head * shape.head_width;
  }
  int64_t OfOut(int64_t sequence, int64_t head) const {
    return sequence * shape.length * OutStride() + head * shape.head_width;
  }
  MatrixRef<T> Heads(int64_t sequence, int64_t head) const {
    return {qkv + OfQkv(sequence, head), QkvStride(), 1};
  }
  MatrixRef<T> K(int64_t sequence, int64_t kv_head) const {
    return Heads(sequence, shape.heads + kv_head);
  }
  MatrixRef<T> V(int64_t sequence, int64_t kv_head) const {
    return Heads(sequence, shape.heads + shape.kv_heads + kv_head);
  }
  float Scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.head_width)); }
  float* LogSumExp(int64_t sequence, int64_t head) const {
    return log_sum_exp == nullptr ? nullptr
                                  : log_sum_exp + (sequence * shape.heads + head) * shape.length;
  }
};

template <class T>
MatrixRef<T> FromRow(const MatrixRef<T>& matrix, int64_t row) {
  return {matrix.data + row * matrix.row_stride, matrix.row_stride, matrix.column_stride};
}

// Queries [begin, begin + rows) of a sequence and the keys [first_key, end_key) they may see.
struct QueryBlock {
  int64_t begin = 0;
  int64_t rows = 0;
  int64_t first_key = 0;  // a multiple of kPanel
  int64_t end_key = 0;
  int64_t Keys() const { return end_key - first_key; }
  // Scores reach the end of a panel, or of the sequence; rows of them are whole panels.
  int64_t ScoreColumns(int64_t length) const {
    return std::min(RoundUp(end_key, kPanel), length) - first_key;
  }
  int64_t RowWidth() const { return RoundUp(end_key, kPanel) - first_key; }
};

template <class T>
QueryBlock BlockAt(const Operands<T>& in, int64_t sequence, int64_t begin, int64_t block_rows) {
  const int64_t rows = std::min(block_rows, in.shape.length - begin);
  int64_t first = 0;
  if (in.starts != nullptr) {
    const int32_t* starts = in.starts + sequence * in.shape.length + begin;
    first = std::max<int64_t>(0, *std::min_element(starts, starts + rows)) / kPanel * kPanel;
  }
  return {begin, rows, first, begin + rows};
}

// The first key that query `i` of the block sees, counted from the block's first.
template <class T>
int64_t FirstSeen(const Operands<T>& in, int64_t sequence, const QueryBlock& block, int64_t i) {
  if (in.starts == nullptr) return 0;
  const int64_t query = block.begin + i;
  const int64_t start = in.starts[sequence * in.shape.length + query];
  TORCH_CHECK(start >= 0 && start <= query, "attention: the document of position ", query,
              " of sequence ", sequence, " starts at ", start, ", which it cannot see");
  return start - block.first_key;
}

// Memory of one thread for one call; aligned as the products want it.
template <class T>
class Buffers {
 public:
  T* Typed(int64_t elements) { return static_cast<T*>(Bytes(elements * sizeof(T))); }
  float* Floats(int64_t elements) { return static_cast<float*>(Bytes(elements * sizeof(float))); }
  void* Bytes(int64_t bytes) {
    tensors_.push_back(at::zeros({bytes}, at::kByte));
    return tensors_.back().data_ptr();
  }

 private:
  std::vector<at::Tensor> tensors_;
};

// Where a block's probabilities go: over the scores where the types are equal.
template <class T>
T* InPlaceOr(float* scores, Buffers<T>& buffers, int64_t elements) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return scores;
  } else {
    return buffers.Typed(elements);
  }
}

// k of a product over the block's keys: Bf16 wants it even (probabilities beyond are 0).
template <class T>
int64_t KeysToMultiply(const QueryBlock& block) {
  return sizeof(T) == sizeof(float) ? block.Keys() : RoundUp(block.Keys(), 2);
}

template <class T>
class Forward {
 public:
  // Rows of a block: whole tiles of the products, few enough to waste little above the diagonal.
  static constexpr int64_t kRows = 28;

  explicit Forward(const Operands<T>& in)
      : in_(in),
        stride_(RoundUp(in.shape.length, kPanel)),
        packed_k_(buffers_.Bytes(PackedBytes<T>(in.shape.head_width, in.shape.length))),
        packed_v_(buffers_.Bytes(PackedBytes<T>(in.shape.length, in.shape.head_width))),
        scores_(buffers_.Floats(kRows * stride_)),
        p_(InPlaceOr<T>(scores_, buffers_, kRows * stride_)) {}

  void Run(int64_t sequence, int64_t kv_head) {
    const int64_t length = in_.shape.length, width = in_.shape.head_width;
    k_ = PackB<T>(width, length, in_.K(sequence, kv_head).Transposed(), packed_k_);
    v_ = PackB<T>(length, width, in_.V(sequence, kv_head), packed_v_);
    for (int64_t begin = 0; begin < length; begin += kRows) {
      const QueryBlock block = BlockAt(in_, sequence, begin, kRows);
      for (int64_t g = 0; g < in_.Group(); ++g) RunBlock(sequence, kv_head * in_.Group() + g, block);
    }
  }

 private:
  void RunBlock(int64_t sequence, int64_t head, const QueryBlock& block) {
    const int64_t width = in_.shape.head_width;
    k_.n_begin = block.first_key;
    GemmPacked<T, float>({block.rows, block.ScoreColumns(in_.shape.length), width},
                         FromRow(in_.Heads(sequence, head), block.begin), k_, {scores_, stride_});
    float* log_sum_exp = in_.LogSumExp(sequence, head);
    for (int64_t i = 0; i < block.rows; ++i) {
      const int64_t query = block.begin + i;
      const float sum = ActiveRowKernelsOf<T>().attention_softmax(
          scores_ + i * stride_, FirstSeen(in_, sequence, block, i), query - block.first_key,
          block.RowWidth(), in_.Scale(), p_ + i * stride_);
      if (log_sum_exp != nullptr) log_sum_exp[query] = sum;
    }
    v_.k_begin = block.first_key;
    GemmPacked<T, T>({block.rows, width, KeysToMultiply<T>(block)}, {p_, stride_, 1}, v_,
                     {in_.out + in_.OfOut(sequence, head) + block.begin * in_.OutStride(),
                      in_.OutStride()});
  }

  const Operands<T>& in_;
  Buffers<T> buffers_;
  int64_t stride_;
  void* packed_k_;
  void* packed_v_;
  float* scores_;
  T* p_;
  PackedB k_, v_;
};

// dV += P^T dO; dP = dO V^T; dS = scale P (dP - <dO, O>); dQ = dS K; dK += dS^T Q.
template <class T>
class Backward {
 public:
  static constexpr int64_t kRows = 56;

  explicit Backward(const Operands<T>& in)
      : in_(in),
        stride_(RoundUp(in.shape.length, kPanel)),
        packed_k_t_(buffers_.Bytes(PackedBytes<T>(in.shape.head_width, in.shape.length))),
        packed_v_t_(buffers_.Bytes(PackedBytes<T>(in.shape.head_width, in.shape.length))),
        packed_k_(buffers_.Bytes(PackedBytes<T>(in.shape.length, in.shape.head_width))),
        scores_(buffers_.Floats(kRows * stride_)),
        dp_(buffers_.Floats(kRows * stride_)),
        p_(InPlaceOr<T>(scores_, buffers_, kRows * stride_)),
        dscores_(InPlaceOr<T>(dp_, buffers_, kRows * stride_)),
        dk_(buffers_.Floats(in.shape.length * in.shape.head_width)),
        dv_(buffers_.Floats(in.shape.length * in.shape.head_width)) {}

  void Run(int64_t sequence, int64_t kv_head) {
    const int64_t length = in_.shape.length, width = in_.shape.head_width;
    const MatrixRef<T> k = in_.K(sequence, kv_head), v = in_.V(sequence, kv_head);
    k_t_ = PackB<T>(width, length, k.Transposed(), packed_k_t_);
    v_t_ = PackB<T>(width, length, v.Transposed(), packed_v_t_);
    k_ = PackB<T>(length, width, k, packed_k_);
    std::fill(dk_, dk_ + length * width, 0.0f);
    std::fill(dv_, dv_ + length * width, 0.0f);
    for (int64_t begin = 0; begin < length; begin += kRows) {
      const QueryBlock block = BlockAt(in_, sequence, begin, kRows);
      for (int64_t g = 0; g < in_.Group(); ++g) RunBlock(sequence, kv_head * in_.Group() + g, block);
    }
    StoreRows(dk_, in_.dqkv + in_.OfQkv(sequence, in_.shape.heads + kv_head));
    StoreRows(dv_, in_.dqkv + in_.OfQkv(sequence, in_.shape.heads + in_.shape.kv_heads + kv_head));
  }

 private:
  void RunBlock(int64_t sequence, int64_t head, const QueryBlock& block) {
    const int64_t width = in_.shape.head_width;
    const MatrixRef<T> q = FromRow(in_.Heads(sequence, head), block.begin);
    const MatrixRef<T> dout = FromRow(
        MatrixRef<T>{in_.dout + in_.OfOut(sequence, head), in_.OutStride(), 1}, block.begin);
    const GemmShape to_scores{block.rows, block.ScoreColumns(in_.shape.length), width};
    k_t_.n_begin = v_t_.n_begin = k_.k_begin = block.first_key;
    GemmPacked<T, float>(to_scores, q, k_t_, {scores_, stride_});
    GemmPacked<T, float>(to_scores, dout, v_t_, {dp_, stride_});
    DifferentiateSoftmax(sequence, head, block, dout);
    GemmPacked<T, T>({block.rows, width, KeysToMultiply<T>(block)}, {dscores_, stride_, 1}, k_,
                     {in_.dqkv + in_.OfQkv(sequence, head) + block.begin * in_.QkvStride(),
                      in_.QkvStride()});
    const GemmShape to_keys{block.Keys(), width, block.rows};
    const int64_t first = block.first_key * width;
    Gemm(to_keys, {p_, 1, stride_}, dout, GemmResult<float>{dv_ + first, width, true});
    Gemm(to_keys, {dscores_, 1, stride_}, q, GemmResult<float>{dk_ + first, width, true});
  }

  void DifferentiateSoftmax(int64_t sequence, int64_t head, const QueryBlock& block,
                            const MatrixRef<T>& dout) {
    const RowKernels<T>& kernels = ActiveRowKernelsOf<T>();
    const T* out = in_.out + in_.OfOut(sequence, head) + block.begin * in_.OutStride();
    const float* log_sum_exp = in_.LogSumExp(sequence, head) + block.begin;
    for (int64_t i = 0; i < block.rows; ++i) {
      const AttentionRow row{
          .first = FirstSeen(in_, sequence, block, i),
          .last = block.begin + i - block.first_key,
          .keys = block.RowWidth(),
          .scale = in_.Scale(),
          .log_sum_exp = log_sum_exp[i],
          .delta = kernels.dot(dout.data + i * dout.row_stride, out + i * in_.OutStride(),
                               in_.shape.head_width)};
      const int64_t at = i * stride_;
      kernels.attention_backward(row, scores_ + at, dp_ + at, p_ + at, dscores_ + at);
    }
  }

  void StoreRows(const float* rows, T* to) const {
    const int64_t width = in_.shape.head_width;
    for (int64_t i = 0; i < in_.shape.length; ++i) {
      ActiveRowKernelsOf<T>().scale_to(rows + i * width, 1.0f, to + i * in_.QkvStride(), width);
    }
  }

  const Operands<T>& in_;
  Buffers<T> buffers_;
  int64_t stride_;
  void* packed_k_t_;
  void* packed_v_t_;
  void* packed_k_;
  float* scores_;
  float* dp_;
  T* p_;
  T* dscores_;
  float* dk_;
  float* dv_;
  PackedB k_t_, v_t_, k_;
};

// Pass: Forward or Backward, for each (sequence, kv head).
template <class Pass, class T>
void RunPass(const Operands<T>& in) {
  const int64_t kv_heads = in.shape.kv_heads;
  ParallelRows(in.shape.sequences * kv_heads, in.shape.length * in.shape.head_width * in.Group(),
               [&](int64_t begin, int64_t end) {
                 Pass pass(in);
                 for (int64_t i = begin; i < end; ++i) pass.Run(i / kv_heads, i % kv_heads);
               });
}

}  // namespace

void Attention(const AttentionShape& shape, const at::Tensor& qkv,
               const at::Tensor& document_starts, at::Tensor& out, at::Tensor log_sum_exp) {
  CheckShape(shape);
  const int64_t n = shape.sequences * shape.length;
  const at::ScalarType type = qkv.scalar_type();
  CheckTensor("Attention: qkv", qkv, {n, (shape.heads + 2 * shape.kv_heads) * shape.head_width}, type);
  CheckOptional("Attention: document_starts", document_starts, {n}, at::kInt);
  CheckTensor("Attention: out", out, {n, shape.heads * shape.head_width}, type);
  CheckOptional("Attention: log_sum_exp", log_sum_exp, {shape.sequences, shape.heads, shape.length},
                at::kFloat);
  WithComputeType(qkv, [&](auto compute) {
    using T = decltype(compute);
    RunPass<Forward<T>>(Operands<T>{.shape = shape,
                                    .qkv = Data<T>(qkv),
                                    .starts = DataOrNull<int32_t>(document_starts),
                                    .out = Data<T>(out),
                                    .log_sum_exp = DataOrNull<float>(log_sum_exp)});
  });
}

void AttentionBackward(const AttentionShape& shape, const at::Tensor& dout, const at::Tensor& qkv,
                       const at::Tensor& document_starts, const at::Tensor& out,
                       const at::Tensor& log_sum_exp, at::Tensor& dqkv) {
  CheckShape(shape);
  const int64_t n = shape.sequences * shape.length;
  const at::ScalarType type = qkv.scalar_type();
  CheckTensor("AttentionBackward: qkv", qkv,
              {n, (shape.heads + 2 * shape.kv_heads) * shape.head_width}, type);
  CheckTensor("AttentionBackward: dqkv", dqkv, qkv.sizes(), type);
  CheckOptional("AttentionBackward: document_starts", document_starts, {n}, at::kInt);
  CheckTensor("AttentionBackward: out", out, {n, shape.heads * shape.head_width}, type);
  CheckTensor("AttentionBackward: dout", dout, out.sizes(), type);
  CheckTensor("AttentionBackward: log_sum_exp", log_sum_exp,
              {shape.sequences, shape.heads, shape.length}, at::kFloat);
  WithComputeType(qkv, [&](auto compute) {
    using T = decltype(compute);
    RunPass<Backward<T>>(Operands<T>{.shape = shape,
                                     .qkv = Data<T>(qkv),
                                     .starts = DataOrNull<int32_t>(document_starts),
                                     .out = Data<T>(out),
                                     .log_sum_exp = Data<float>(log_sum_exp),
                                     .dout = Data<T>(dout),
                                     .dqkv = Data<T>(dqkv)});
  });
}

}  // namespace moesaic
