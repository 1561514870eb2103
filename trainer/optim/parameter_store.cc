#include "trainer/optim/parameter_store.h"

#include <algorithm>

namespace moesaic {
namespace {

// Zeroed tensors of several shapes in one allocation, each 64-byte aligned.
class Arena {
 public:
  explicit Arena(at::ScalarType type) : type_(type) {}

  void Reserve(int64_t elements) { total_ += Padded(elements); }
  void Allocate() { memory_ = at::zeros({total_}, at::TensorOptions().dtype(type_)); }
  at::Tensor Take(const std::vector<int64_t>& shape, int64_t elements) {
    at::Tensor view = memory_.narrow(0, next_, elements).view(shape);
    next_ += Padded(elements);
    return view;
  }
  int64_t bytes() const { return total_ * static_cast<int64_t>(at::elementSize(type_)); }

 private:
  static int64_t Padded(int64_t elements) { return (elements + 31) / 32 * 32; }

  at::ScalarType type_;
  at::Tensor memory_;
  int64_t total_ = 0;
  int64_t next_ = 0;
};

}  // namespace

std::vector<int> ParameterHolders(const ParameterSpec& spec, const Mesh& mesh,
                                  const ExpertPlacement& placement) {
  const std::span<const int> ranks =
      spec.expert >= 0 ? placement.holders(spec.layer, spec.expert) : mesh.data_ranks();
  return {ranks.begin(), ranks.end()};
}

ParameterStore::ParameterStore(const ParameterCatalog& catalog, const Mesh& mesh,
                               const ExpertPlacement& placement, ParameterStoreOptions options)
    : entries_(catalog.size()) {
  Arena masters(at::kFloat), first(at::kFloat), second(at::kFloat), computes(options.compute),
      fp32_computes(at::kFloat);
  const auto owns = [&](const ParameterSpec& spec) {
    return spec.expert < 0 || placement.primary(spec.layer, spec.expert) == options.rank;
  };
  // The compute weight is the master when both are fp32 and the rank owns it.
  const auto compute_arena = [&](const ParameterSpec& spec) -> Arena* {
    const bool fp32 = spec.fp32 || options.compute == at::kFloat;
    if (fp32) return owns(spec) ? nullptr : &fp32_computes;
    return &computes;
  };
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    const ParameterSpec& spec = catalog[id];
    const std::vector<int> holders = ParameterHolders(spec, mesh, placement);
    if (std::find(holders.begin(), holders.end(), options.rank) == holders.end()) continue;
    held_.push_back(id);
    if (owns(spec)) {
      owned_.push_back(id);
      masters.Reserve(spec.elements());
      if (options.moments && spec.learnt) {
        first.Reserve(spec.elements());
        second.Reserve(spec.elements());
      }
    }
    if (Arena* arena = compute_arena(spec)) arena->Reserve(spec.elements());
  }
  for (Arena* arena : {&masters, &first, &second, &computes, &fp32_computes}) {
    arena->Allocate();
    bytes_ += arena->bytes();
  }
  for (const ParameterId id : held_) {
    const ParameterSpec& spec = catalog[id];
    Entry& entry = entries_[id];
    if (owns(spec)) {
      entry.master = masters.Take(spec.shape, spec.elements());
      if (options.moments && spec.learnt) {
        entry.first_moment = first.Take(spec.shape, spec.elements());
        entry.second_moment = second.Take(spec.shape, spec.elements());
      }
    }
    Arena* arena = compute_arena(spec);
    entry.compute = arena != nullptr ? arena->Take(spec.shape, spec.elements()) : entry.master;
  }
}

void ParameterStore::RefreshCompute(ParameterId id) {
  Entry& entry = entries_[id];
  if (!entry.compute.is_same(entry.master)) entry.compute.copy_(entry.master);
}

}  // namespace moesaic
