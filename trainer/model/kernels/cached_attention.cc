#include <cmath>
#include <cstring>

#include "trainer/model/kernels/dispatch.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

// Scores are computed by whole vectors.
int64_t RoomForKeys(int64_t keys) { return (keys + 15) / 16 * 16; }

// One pass over qkv and the caches, typed.
template <class T>
struct CachedAttention {
  AttentionShape shape;
  int64_t past = 0;
  int64_t capacity = 0;
  const T* qkv = nullptr;
  T* k_cache = nullptr;
  T* v_cache = nullptr;
  T* out = nullptr;

  int64_t KvWidth() const { return shape.kv_heads * shape.head_width; }
  const T* Token(int64_t t) const {
    return qkv + t * (shape.heads + 2 * shape.kv_heads) * shape.head_width;
  }

  void StoreKeysAndValues() const {
    const int64_t kv = KvWidth();
    for (int64_t t = 0; t < shape.sequences * shape.length; ++t) {
      const int64_t row = t / shape.length * capacity + past + t % shape.length;
      const T* k = Token(t) + shape.heads * shape.head_width;
      std::memcpy(k_cache + row * kv, k, kv * sizeof(T));
      std::memcpy(v_cache + row * kv, k + kv, kv * sizeof(T));
    }
  }

  // Head `head` of token `t`; `scores` has room for RoomForKeys(past + length).
  void Attend(int64_t t, int64_t head, std::vector<float>& scores, std::vector<float>& sum) const {
    const RowKernels<T>& kernels = ActiveRowKernelsOf<T>();
    const int64_t w = shape.head_width, kv = KvWidth();
    const int64_t keys = past + t % shape.length + 1;
    const int64_t first = t / shape.length * capacity * kv +
                          head / (shape.heads / shape.kv_heads) * w;
    const T* q = Token(t) + head * w;
    for (int64_t j = 0; j < keys; ++j) scores[j] = kernels.dot(q, k_cache + first + j * kv, w);
    ActiveRowKernels().f32.attention_softmax(scores.data(), 0, keys - 1, RoomForKeys(keys),
                                             1.0f / std::sqrt(static_cast<float>(w)), scores.data());
    std::fill(sum.begin(), sum.end(), 0.0f);
    for (int64_t j = 0; j < keys; ++j) {
      kernels.add_scaled(v_cache + first + j * kv, scores[j], sum.data(), w);
    }
    kernels.scale_to(sum.data(), 1.0f, out + (t * shape.heads + head) * w, w);
  }
};

}  // namespace

void AttentionWithCache(const AttentionShape& shape, const at::Tensor& qkv, int64_t past,
                        at::Tensor& k_cache, at::Tensor& v_cache, at::Tensor& out) {
  TORCH_CHECK(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0,
              "AttentionWithCache: kv_heads (", shape.kv_heads, ") must divide heads (", shape.heads,
              ")");
  TORCH_CHECK(k_cache.dim() == 4, "AttentionWithCache: k_cache: four dimensions are needed, got ",
              k_cache.sizes());
  const int64_t n = shape.sequences * shape.length, w = shape.head_width;
  const int64_t capacity = k_cache.size(1);
  TORCH_CHECK(past >= 0 && past + shape.length <= capacity, "AttentionWithCache: ", past, " past and ",
              shape.length, " new tokens exceed the cache's capacity of ", capacity);
  const auto type = qkv.scalar_type();
  CheckTensor("AttentionWithCache: qkv", qkv, {n, (shape.heads + 2 * shape.kv_heads) * w}, type);
  CheckTensor("AttentionWithCache: k_cache", k_cache,
              {shape.sequences, capacity, shape.kv_heads, w}, type);
  CheckTensor("AttentionWithCache: v_cache", v_cache, k_cache.sizes(), type);
  CheckTensor("AttentionWithCache: out", out, {n, shape.heads * w}, type);
  WithComputeType(qkv, [&](auto compute) {
    using T = decltype(compute);
    const CachedAttention<T> pass{shape,           past, capacity, Data<T>(qkv), Data<T>(k_cache),
                                  Data<T>(v_cache), Data<T>(out)};
    pass.StoreKeysAndValues();
    ParallelRows(n * shape.heads, (past + shape.length) * w, [&](int64_t begin, int64_t end) {
      std::vector<float> scores(RoomForKeys(past + shape.length)), sum(w);
      for (int64_t i = begin; i < end; ++i) {
        pass.Attend(i / shape.heads, i % shape.heads, scores, sum);
      }
    });
  });
}

}  // namespace moesaic
