// AttentionBlock: x + output(attention(rope(qkv(norm(x))))), with model.qk_norm the queries and
// keys of each head normed before the rotation.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "trainer/model/block.h"
#include "trainer/model/kernels/kernels.h"
#include "trainer/model/norm.h"

namespace moesaic {

struct AttentionConfig {
  std::string name;  // of the block, for diagnosis: "layers.3.attention"
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_width = 0;
  double norm_epsilon = 0;
  ParameterId norm = kNoParameter;
  ParameterId qkv = kNoParameter;
  ParameterId output = kNoParameter;
  ParameterId q_norm = kNoParameter;  // both or none
  ParameterId k_norm = kNoParameter;
  std::shared_ptr<const RopeTable> rope;  // at least as many positions as a sequence has tokens
};

// Keys and values of one layer, rotated: compute [sequences, capacity, kv_heads, head_width].
struct LayerCache {
  at::Tensor keys;
  at::Tensor values;
};

class AttentionBlock : public Block {
 public:
  explicit AttentionBlock(AttentionConfig config);

  const std::string& name() const override { return config_.name; }
  std::vector<ParameterId> parameters() const override;
  Bundle Forward(const Bundle& in, PassContext& context) override;
  Bundle BackwardInput(const Bundle& grad_out, PassContext& context) override;
  void BackwardWeight(PassContext& context, GradientSink& sink) override;

  // For generation: the tokens of `context.micro_batch` follow `past` cached ones in each sequence,
  // and join the cache. No backward.
  Bundle ForwardWithCache(const Bundle& in, PassContext& context, int64_t past,
                          LayerCache& cache) const;

 private:
  AttentionShape Shape(const MicroBatch& batch) const;
  bool has_head_norms() const { return config_.q_norm != kNoParameter; }
  HeadGains Gains(WeightSource& weights) const;
  // Norms (where the model has them) and rotation of the queries and keys, in place.
  void Rotate(const AttentionShape& shape, WeightSource& weights, int64_t first_position,
              at::Tensor& qkv, HeadNormSaved* saved) const;

  AttentionConfig config_;
  NormLayer norm_;
};

}  // namespace moesaic
