// The second half of a transformer layer: x + f(norm(x)), with f the sum of SwiGLUs that all tokens
// pass (DenseBlock; mostly one) or a mixture of experts (MoeBlock).
#pragma once

#include <string>
#include <vector>

#include "trainer/model/block.h"
#include "trainer/model/linear.h"
#include "trainer/model/moe_layer.h"
#include "trainer/model/norm.h"

namespace moesaic {

class DenseBlock : public Block {
 public:
  // At least one part.
  DenseBlock(std::string name, NormLayer norm, std::vector<SwiGluLayer> parts);

  const std::string& name() const override { return name_; }
  std::vector<ParameterId> parameters() const override;
  Bundle Forward(const Bundle& in, PassContext& context) override;
  Bundle BackwardInput(const Bundle& grad_out, PassContext& context) override;
  void BackwardWeight(PassContext& context, GradientSink& sink) override;

 private:
  std::string name_;
  NormLayer norm_;
  std::vector<SwiGluLayer> parts_;
};

class MoeBlock : public Block {
 public:
  MoeBlock(std::string name, NormLayer norm, MoeLayer moe);

  const std::string& name() const override { return name_; }
  std::vector<ParameterId> parameters() const override;
  Bundle Forward(const Bundle& in, PassContext& context) override;
  Bundle BackwardInput(const Bundle& grad_out, PassContext& context) override;
  void BackwardWeight(PassContext& context, GradientSink& sink) override;

  // What the router decided in a training pass that has not been through BackwardInput; for
  // diagnosis.
  static const Routing& RoutingOf(const PassContext& context);

 private:
  at::Tensor Normed(const at::Tensor& x, PassContext& context, NormLayer::Saved& saved) const;

  std::string name_;
  NormLayer norm_;
  MoeLayer moe_;
};

}  // namespace moesaic
