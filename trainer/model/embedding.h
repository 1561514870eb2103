// EmbeddingBlock: token ids -> hidden states. The first block; its input bundle is empty.
#pragma once

#include <string>
#include <vector>

#include "trainer/model/block.h"

namespace moesaic {

class EmbeddingBlock : public Block {
 public:
  // Use 0 of `table`; a tied head is its use 1.
  explicit EmbeddingBlock(ParameterId table) : table_(table) {}

  const std::string& name() const override { return name_; }
  std::vector<ParameterId> parameters() const override { return {table_}; }
  Bundle Forward(const Bundle& in, PassContext& context) override;
  Bundle BackwardInput(const Bundle& grad_out, PassContext& context) override;
  void BackwardWeight(PassContext& context, GradientSink& sink) override;

 private:
  const std::string name_ = "embedding";
  ParameterId table_;
};

}  // namespace moesaic
