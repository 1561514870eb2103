#include "parallel/data/gradient_tree.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "parallel/data/partial_sums.h"

namespace moesaic {
namespace {

// A partial sum as ranks tell each other of it.
struct NodeName {
  int64_t parameter = 0;
  int64_t level = 0;
  int64_t index = 0;
};

// What this rank has of one parameter.
struct Part {
  PartialSums sums{0};
  std::map<int64_t, at::Tensor> open;  // by leaf
  std::vector<bool> closed;            // by leaf
};

// Consecutive parameters that are exchanged together, and the dense roots among them, laid out by
// owner so that each owner's are one piece.
struct Batch {
  int begin = 0;
  int end = 0;
  at::Tensor dense = {};
  std::vector<MutableBytes> dense_of = {};  // by rank
};

class GradientTree : public GradientReducer {
 public:
  GradientTree(std::span<const HeldParameter> parameters, Communicator* data,
               const GradientTreeOptions& options)
      : parameters_(parameters.begin(), parameters.end()),
        data_(*data),
        parts_(parameters.size()),
        roots_(parameters.size()) {
    CutBatches(options.batch_bytes / static_cast<int64_t>(sizeof(float)));
  }

  void BeginStep(const GradientStep& step) override;
  GradientSlot Open(int parameter, int use, int64_t micro_batch) override;
  void Close(int parameter, int use, int64_t micro_batch) override;
  void Skip(int parameter, int use, int64_t micro_batch) override;
  void Reduce() override;
  at::Tensor Gradient(int parameter) const override;
  int64_t bytes() const override { return bytes_; }

 private:
  void CutBatches(int64_t batch_elements);
  void PlaceRoots(Batch& batch);
  int64_t LeafOf(int parameter, int use, int64_t micro_batch) const;
  // And it has not been reported.
  int64_t NewLeafOf(int parameter, int use, int64_t micro_batch) const;
  void AddLeaf(int parameter, int64_t leaf, at::Tensor value);
  std::vector<std::vector<NodeName>> ShareNames();
  void ReduceBatch(const Batch& batch, const std::vector<std::vector<NodeName>>& names);
  void SendToOwners(const Batch& batch, const std::vector<std::vector<NodeName>>& names);
  void StoreRoot(int parameter);
  at::Tensor Allocate(int64_t elements);
  void Recycle(std::vector<at::Tensor>& freed);

  const std::vector<HeldParameter> parameters_;
  Communicator& data_;
  std::vector<int> owners_;  // the rank that computes the root: the primary, or one for balance
  std::vector<Batch> batches_;
  std::vector<Part> parts_;
  std::vector<at::Tensor> roots_;  // where this rank gets one; kept from step to step
  std::unordered_map<int64_t, std::vector<at::Tensor>> spare_;  // memory of past sums, by size
  int64_t micro_batches_ = 0;
  bool reduced_ = false;
  int64_t bytes_ = 0;  // of roots and sums, which are kept for later ones
};

void GradientTree::CutBatches(int64_t batch_elements) {
  std::vector<SummedParameter> parameters;
  for (const HeldParameter& parameter : parameters_) {
    parameters.push_back(
        {parameter.elements, IsDense(parameter) ? -1 : parameter.holders.front()});
  }
  owners_ = RootOwners(parameters, data_.size());
  for (const ParameterRange& range : GradientBatches(parameters, batch_elements)) {
    batches_.push_back({.begin = range.begin, .end = range.end});
    PlaceRoots(batches_.back());
  }
}

void GradientTree::PlaceRoots(Batch& batch) {
  std::vector<int64_t> begin(data_.size() + 1, 0);
  for (int p = batch.begin; p < batch.end; ++p) {
    if (IsDense(parameters_[p])) begin[owners_[p] + 1] += PaddedElements(parameters_[p].elements);
  }
  for (int r = 0; r < data_.size(); ++r) begin[r + 1] += begin[r];
  batch.dense = at::zeros({begin.back()}, at::kFloat);
  bytes_ += static_cast<int64_t>(batch.dense.nbytes());
  float* base = batch.dense.data_ptr<float>();
  for (int r = 0; r < data_.size(); ++r) {
    batch.dense_of.push_back(
        {base + begin[r], (begin[r + 1] - begin[r]) * static_cast<int64_t>(sizeof(float))});
  }
  for (int p = batch.begin; p < batch.end; ++p) {
    const int64_t elements = parameters_[p].elements;
    if (IsDense(parameters_[p])) {
      roots_[p] = batch.dense.narrow(0, begin[owners_[p]], elements);
      begin[owners_[p]] += PaddedElements(elements);
    } else if (owners_[p] == data_.rank()) {
      roots_[p] = at::empty({elements}, at::kFloat);
      bytes_ += static_cast<int64_t>(roots_[p].nbytes());
    }
  }
}

void GradientTree::BeginStep(const GradientStep& step) {
  micro_batches_ = step.micro_batches;
  reduced_ = false;
  for (size_t p = 0; p < parts_.size(); ++p) {
    const int64_t leaves = micro_batches_ * parameters_[p].uses;
    parts_[p] = Part{.sums = PartialSums(leaves), .open = {}, .closed = {}};
    if (IsHeldBy(parameters_[p], data_.rank())) parts_[p].closed.assign(leaves, false);
  }
}

int64_t GradientTree::LeafOf(int parameter, int use, int64_t micro_batch) const {
  const HeldParameter& held = parameters_.at(parameter);
  TORCH_CHECK(IsHeldBy(held, data_.rank()), "[gradients] rank ", data_.rank(),
              " does not hold parameter ", parameter);
  TORCH_CHECK(use >= 0 && use < held.uses && micro_batch >= 0 && micro_batch < micro_batches_,
              "[gradients] parameter ", parameter, " has ", held.uses, " uses and the step ",
              micro_batches_, " micro-batches, given use ", use, " of micro-batch ", micro_batch);
  return micro_batch * held.uses + use;
}

int64_t GradientTree::NewLeafOf(int parameter, int use, int64_t micro_batch) const {
  const int64_t leaf = LeafOf(parameter, use, micro_batch);
  const Part& part = parts_[parameter];
  TORCH_CHECK(!part.closed[leaf] && !part.open.contains(leaf), "[gradients] parameter ", parameter,
              ", use ", use, ", micro-batch ", micro_batch, " is reported twice");
  return leaf;
}

GradientSlot GradientTree::Open(int parameter, int use, int64_t micro_batch) {
  const int64_t leaf = NewLeafOf(parameter, use, micro_batch);
  const at::Tensor memory = Allocate(parameters_[parameter].elements);
  parts_[parameter].open[leaf] = memory;
  return {memory, false};
}

void GradientTree::Close(int parameter, int use, int64_t micro_batch) {
  const int64_t leaf = LeafOf(parameter, use, micro_batch);
  Part& part = parts_[parameter];
  const auto opened = part.open.find(leaf);
  TORCH_CHECK(opened != part.open.end(), "[gradients] parameter ", parameter, ", use ", use,
              ", micro-batch ", micro_batch, ": its slot is not open");
  at::Tensor value = std::move(opened->second);
  part.open.erase(opened);
  AddLeaf(parameter, leaf, std::move(value));
}

void GradientTree::Skip(int parameter, int use, int64_t micro_batch) {
  AddLeaf(parameter, NewLeafOf(parameter, use, micro_batch), {});
}

void GradientTree::AddLeaf(int parameter, int64_t leaf, at::Tensor value) {
  std::vector<at::Tensor> freed;
  parts_[parameter].sums.Add(SumTree::Leaf(leaf), std::move(value), freed);
  parts_[parameter].closed[leaf] = true;
  Recycle(freed);
}

at::Tensor GradientTree::Allocate(int64_t elements) {
  std::vector<at::Tensor>& spare = spare_[elements];
  if (spare.empty()) {
    bytes_ += elements * static_cast<int64_t>(sizeof(float));
    return at::empty({elements}, at::kFloat);
  }
  at::Tensor memory = std::move(spare.back());
  spare.pop_back();
  return memory;
}

void GradientTree::Recycle(std::vector<at::Tensor>& freed) {
  for (at::Tensor& memory : freed) spare_[memory.numel()].push_back(std::move(memory));
  freed.clear();
}

void GradientTree::Reduce() {
  for (size_t p = 0; p < parts_.size(); ++p) {
    TORCH_CHECK(parts_[p].open.empty(), "[gradients] parameter ", p,
                " is reduced while a slot is open");
  }
  const std::vector<std::vector<NodeName>> names = ShareNames();
  for (const Batch& batch : batches_) ReduceBatch(batch, names);
  reduced_ = true;
}

// By rank: its partial sums, by parameter.
std::vector<std::vector<NodeName>> GradientTree::ShareNames() {
  std::vector<NodeName> mine;
  for (size_t p = 0; p < parts_.size(); ++p) {
    for (const auto& [node, value] : parts_[p].sums.nodes()) {
      if (value.defined()) mine.push_back({static_cast<int64_t>(p), node.first, node.second});
    }
  }
  const int64_t count = static_cast<int64_t>(mine.size());
  std::vector<int64_t> counts(data_.size());
  data_.AllGather(&count, sizeof count, counts.data());
  std::vector<std::vector<NodeName>> names(data_.size());
  std::vector<MutableBytes> out;
  for (int r = 0; r < data_.size(); ++r) {
    names[r].resize(counts[r]);
    out.push_back({names[r].data(), counts[r] * static_cast<int64_t>(sizeof(NodeName))});
  }
  data_.AllGatherV({mine.data(), count * static_cast<int64_t>(sizeof(NodeName))}, out);
  return names;
}

void GradientTree::ReduceBatch(const Batch& batch,
                               const std::vector<std::vector<NodeName>>& names) {
  SendToOwners(batch, names);
  for (int p = batch.begin; p < batch.end; ++p) {
    if (owners_[p] == data_.rank()) StoreRoot(p);
  }
  const MutableBytes mine = batch.dense_of[data_.rank()];
  data_.AllGatherV({mine.data, mine.bytes}, batch.dense_of);
}

// Afterwards each owner's trees hold the partial sums of all ranks, the others' none.
void GradientTree::SendToOwners(const Batch& batch,
                                const std::vector<std::vector<NodeName>>& names) {
  const int ranks = data_.size(), me = data_.rank();
  std::vector<std::vector<ConstBytes>> outgoing(ranks);
  std::vector<std::vector<MutableBytes>> incoming(ranks);
  std::vector<std::pair<NodeName, at::Tensor>> received;
  for (int r = 0; r < ranks; ++r) {
    for (const NodeName& name : names[r]) {
      if (name.parameter < batch.begin || name.parameter >= batch.end) continue;
      const int owner = owners_[name.parameter];
      const int64_t elements = parameters_[name.parameter].elements;
      const int64_t bytes = elements * static_cast<int64_t>(sizeof(float));
      if (r == me && owner != me) {
        const auto& nodes = parts_[name.parameter].sums.nodes();
        const at::Tensor& value = nodes.at({static_cast<int>(name.level), name.index});
        outgoing[owner].push_back({value.data_ptr(), bytes});
      } else if (r != me && owner == me) {
        received.emplace_back(name, Allocate(elements));
        incoming[r].push_back({received.back().second.data_ptr(), bytes});
      }
    }
  }
  std::vector<std::span<const ConstBytes>> send(outgoing.begin(), outgoing.end());
  std::vector<std::span<const MutableBytes>> receive(incoming.begin(), incoming.end());
  data_.AllToAllV(send, receive);
  std::vector<at::Tensor> freed;
  for (auto& [name, value] : received) {
    const SumNode node{static_cast<int>(name.level), name.index};
    parts_[name.parameter].sums.Add(node, std::move(value), freed);
  }
  for (int p = batch.begin; p < batch.end; ++p) {
    if (owners_[p] != me) parts_[p].sums.Clear(freed);
  }
  Recycle(freed);
}

void GradientTree::StoreRoot(int parameter) {
  at::Tensor& root = roots_[parameter];
  std::vector<at::Tensor> freed;
  const at::Tensor value = parts_[parameter].sums.TakeRoot(freed);
  if (value.defined()) {
    at::add_out(root, value, at::zeros({}, at::kFloat));  // -0 becomes +0
    freed.push_back(value);
  } else {
    root.zero_();
  }
  Recycle(freed);
}

at::Tensor GradientTree::Gradient(int parameter) const {
  const at::Tensor& root = roots_.at(parameter);
  TORCH_CHECK(reduced_, "[gradients] parameter ", parameter, ": not reduced yet");
  TORCH_CHECK(root.defined(), "[gradients] parameter ", parameter, ": its sum is at rank ",
              owners_[parameter], ", this is rank ", data_.rank());
  return root;
}

}  // namespace

std::unique_ptr<GradientReducer> MakeGradientTree(std::span<const HeldParameter> parameters,
                                                  Communicator* data,
                                                  const GradientTreeOptions& options) {
  return std::make_unique<GradientTree>(parameters, data, options);
}

}  // namespace moesaic
