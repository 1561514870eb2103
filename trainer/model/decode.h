// Decoder: incremental forward for generation, with a cache of keys and values.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "trainer/model/transformer.h"

namespace moesaic {

// `sequences` sequences of equal length that grow together. Single process: every expert must be on
// this rank. Routing is dropless. The model and the weights outlive the decoder.
class Decoder {
 public:
  // `capacity`: the most tokens a sequence may reach; at most model.positions().
  Decoder(const Transformer& model, WeightSource& weights, int64_t sequences, int64_t capacity,
          at::ScalarType compute);

  // Appends `tokens` (int64 [sequences, n], n >= 1) to the sequences and returns the fp32 logits of
  // the token after the last one: [sequences, vocabulary]. TORCH_CHECKs that they fit.
  at::Tensor Append(const at::Tensor& tokens);

  int64_t length() const { return length_; }

 private:
  const Transformer& model_;
  WeightSource& weights_;
  int64_t sequences_;
  int64_t capacity_;
  int64_t length_ = 0;
  PassOptions options_;
  std::vector<LayerCache> cache_;
};

}  // namespace moesaic
