// HeadBlock: final norm, logits and cross-entropy. The last block; its output bundle is empty, the
// loss is in PassContext::scalars.
//
// Logits are made in chunks of rows, so that the fp32 logits of a whole micro-batch never exist at
// once. In training a chunk's gradient is taken at once, in Forward (PassOptions::loss_scale must
// be set by then): logits are neither kept nor made again. The price is one fp32 copy of the head's
// gradient until BackwardWeight.
#pragma once

#include <string>
#include <vector>

#include "trainer/model/block.h"
#include "trainer/model/norm.h"

namespace moesaic {

class HeadBlock : public Block {
 public:
  // `projection` is [vocabulary, hidden]; `use` is 1 for a tied embedding, else 0.
  HeadBlock(NormLayer norm, ParameterId projection, int use);

  const std::string& name() const override { return name_; }
  std::vector<ParameterId> parameters() const override;
  Bundle Forward(const Bundle& in, PassContext& context) override;
  Bundle BackwardInput(const Bundle& grad_out, PassContext& context) override;
  void BackwardWeight(PassContext& context, GradientSink& sink) override;

  // hidden [n, hidden] -> fp32 logits [n, vocabulary]; for generation.
  at::Tensor Logits(const at::Tensor& hidden, WeightSource& weights) const;

 private:
  const std::string name_ = "head";
  NormLayer norm_;
  ParameterId projection_;
  int use_;
};

}  // namespace moesaic
