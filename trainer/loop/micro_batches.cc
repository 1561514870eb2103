#include "trainer/loop/micro_batches.h"

#include <ATen/ATen.h>

#include <memory>
#include <utility>

namespace moesaic {
namespace {

// A tensor that owns the vector's memory.
template <typename T>
at::Tensor TakeVector(std::vector<T> values, at::ScalarType type) {
  auto owner = std::make_shared<std::vector<T>>(std::move(values));
  return at::from_blob(
      owner->data(), {static_cast<int64_t>(owner->size())}, [owner](void*) {}, type);
}

}  // namespace

std::vector<int64_t> RoundIds(const Mesh& mesh, int rank, const MicroBatchPlan& plan,
                              int64_t round) {
  std::vector<int64_t> ids;
  for (const int member : mesh.expert_ranks(mesh.place(rank).expert_group)) {
    ids.push_back(plan.At(round, mesh.place(member).data).value_or(-1));
  }
  return ids;
}

MicroBatch MakeMicroBatch(SampleBatch samples, int64_t length, MicroBatchPlace place) {
  MicroBatch batch;
  batch.id = place.id;
  batch.first_sample = place.first_sample;
  batch.round_ids = std::move(place.round_ids);
  batch.sequences = static_cast<int64_t>(samples.tokens.size()) / length;
  batch.length = length;
  if (!samples.document_starts.empty()) {
    batch.document_starts = TakeVector(std::move(samples.document_starts), at::kInt);
  }
  batch.tokens = TakeVector(std::move(samples.tokens), at::kLong);
  batch.targets = TakeVector(std::move(samples.targets), at::kLong);
  return batch;
}

}  // namespace moesaic
