#include "trainer/model/decode.h"

#include <ATen/ATen.h>

namespace moesaic {

Decoder::Decoder(const Transformer& model, WeightSource& weights, int64_t sequences,
                 int64_t capacity, at::ScalarType compute)
    : model_(model), weights_(weights), sequences_(sequences), capacity_(capacity) {
  TORCH_CHECK(capacity >= 1 && capacity <= model.positions(), "decode: ", capacity,
              " positions asked of a model made for ", model.positions());
  options_.training = false;
  options_.compute = compute;
  for (int layer = 0; layer < model.layers(); ++layer) {
    const auto make = [&] {
      return at::empty({sequences, capacity, model.kv_heads(), model.head_width()}, compute);
    };
    cache_.push_back({make(), make()});
  }
}

at::Tensor Decoder::Append(const at::Tensor& tokens) {
  TORCH_CHECK(tokens.dim() == 2 && tokens.size(0) == sequences_ && tokens.size(1) >= 1,
              "decode: tokens of ", sequences_, " sequences are needed, got ", tokens.sizes());
  const int64_t added = tokens.size(1);
  TORCH_CHECK(length_ + added <= capacity_, "decode: ", length_ + added, " tokens in a cache of ",
              capacity_);
  MicroBatch batch;
  batch.id = 0;
  batch.sequences = sequences_;
  batch.length = added;
  batch.tokens = tokens.contiguous().view({-1});
  PassScalars scalars;
  PassContext context{&batch, &options_, &weights_, &scalars, nullptr};

  Bundle bundle = model_.embedding().Forward({}, context);
  for (int layer = 0; layer < model_.layers(); ++layer) {
    bundle = model_.attention(layer).ForwardWithCache(bundle, context, length_, cache_[layer]);
    bundle = model_.feed_forward(layer).Forward(bundle, context);
  }
  length_ += added;
  const int64_t hidden = bundle.hidden.size(1);
  const at::Tensor last =
      bundle.hidden.view({sequences_, added, hidden}).select(1, added - 1).contiguous();
  return model_.head().Logits(last, weights_);
}

}  // namespace moesaic
