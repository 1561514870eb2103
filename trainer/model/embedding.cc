#include "trainer/model/embedding.h"

#include <ATen/ATen.h>

#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

struct EmbeddingSaved : SavedForBackward {
  at::Tensor dy;
};

}  // namespace

Bundle EmbeddingBlock::Forward(const Bundle& /*in*/, PassContext& context) {
  const ProfiledScope scope(context.options->profile, Part::kEmbedding);
  const at::Tensor table = context.weights->Lease(table_);
  const MicroBatch& batch = *context.micro_batch;
  Bundle out;
  out.hidden = at::empty({batch.sequences * batch.length, table.size(1)}, table.options());
  if (out.hidden.size(0) > 0) EmbeddingLookup(table, batch.tokens, out.hidden);
  return out;
}

Bundle EmbeddingBlock::BackwardInput(const Bundle& grad_out, PassContext& context) {
  auto saved = std::make_unique<EmbeddingSaved>();
  saved->dy = grad_out.hidden;
  context.saved = std::move(saved);
  return {};
}

void EmbeddingBlock::BackwardWeight(PassContext& context, GradientSink& sink) {
  const MicroBatch& batch = *context.micro_batch;
  if (batch.sequences == 0) return;
  const ProfiledScope scope(context.options->profile, Part::kEmbedding);
  const auto& saved = static_cast<const EmbeddingSaved&>(*context.saved);
  GradientSink::Slot slot = sink.Open(table_, 0, batch.id);
  EmbeddingBackward(saved.dy, batch.tokens, slot.accumulate, slot.gradient);
  sink.Close(table_, 0, batch.id);
}

}  // namespace moesaic
