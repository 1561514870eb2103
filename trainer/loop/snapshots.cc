#include "trainer/loop/snapshots.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/snapshot_arena.h"

namespace moesaic {
namespace {

struct StoredTensor {
  ObjectKind kind;
  ParameterId id;
  at::Tensor tensor;
};

std::vector<StoredTensor> TensorsToWrite(const SnapshotterInputs& inputs) {
  std::vector<StoredTensor> tensors;
  for (const ParameterId id : inputs.store->owned()) {
    if (inputs.writers[id] != static_cast<int>(inputs.rank)) continue;
    tensors.push_back({MASTER, id, inputs.store->master(id)});
    if (inputs.store->first_moment(id).defined()) {
      tensors.push_back({ADAM_M, id, inputs.store->first_moment(id)});
      tensors.push_back({ADAM_V, id, inputs.store->second_moment(id)});
    }
  }
  return tensors;
}

void Describe(const ParameterSpec& spec, const StoredTensor& tensor, ArenaObject* object) {
  object->set_kind(tensor.kind);
  object->set_name(spec.name);
  object->set_element(ELEMENT_F32);
  for (const int64_t length : spec.shape) {
    object->add_shape(length);
    object->mutable_box()->add_offset(0);
    object->mutable_box()->add_length(length);
  }
  object->set_bytes(spec.elements() * sizeof(float));
  object->set_layer(spec.expert >= 0 ? spec.layer : -1);
  object->set_expert(spec.expert);
}

}  // namespace

bool Snapshotter::InFlight(const Control& control) const {
  return last_step_ > std::max(control.committed_step(), control.aborted_snapshot_step());
}

absl::StatusOr<Snapshotter::Taken> Snapshotter::Take(const TrainingState& state) {
  const std::vector<StoredTensor> tensors = TensorsToWrite(inputs_);
  SnapshotIndex index;
  index.set_job(inputs_.job);
  index.set_generation(inputs_.generation);
  index.set_rank(inputs_.rank);
  *index.mutable_state() = state;
  for (const StoredTensor& tensor : tensors) {
    Describe((*inputs_.catalog)[tensor.id], tensor, index.add_objects());
  }
  auto writer = SnapshotWriter::Create(absl::StrCat(inputs_.arena_path, ".", next_buffer_),
                                       std::move(index));
  if (!writer.ok()) return writer.status();
  Taken taken = {.buffer = next_buffer_, .bytes = 0};
  for (size_t i = 0; i < tensors.size(); ++i) {
    const std::span<std::byte> to = (*writer)->object(static_cast<int>(i));
    std::memcpy(to.data(), tensors[i].tensor.const_data_ptr(), to.size());
    taken.bytes += to.size();
  }
  if (absl::Status status = (*writer)->Finish(); !status.ok()) return status;
  last_step_ = state.step();
  next_buffer_ ^= 1;
  return taken;
}

}  // namespace moesaic
