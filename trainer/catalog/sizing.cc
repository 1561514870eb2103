#include "trainer/catalog/sizing.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "parallel/layout/balanced_placement.h"
#include "parallel/layout/micro_batch_plan.h"
#include "parallel/layout/sum_tree.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/write_plan.h"

namespace moesaic {
namespace {

constexpr int64_t kFloat = 4;
constexpr int64_t kHeadChunk = int64_t{1} << 23;  // logits of the head that exist at once

int64_t Padded(int64_t elements, int64_t to) { return (elements + to - 1) / to * to; }
// As parameter stores and gradient buckets lay tensors out.
int64_t StoreElements(int64_t elements) { return Padded(elements, 32); }
int64_t BucketElements(int64_t elements) { return Padded(elements, 16); }

class Sizer {
 public:
  explicit Sizer(const SizingInput& input)
      : in_(input),
        spec_(*input.spec),
        mesh_(*input.mesh),
        placement_(*input.placement),
        plan_{spec_.train().global_batch() / spec_.train().micro_batch(), mesh_.size()},
        compute_bytes_(spec_.train().precision() == BF16 ? 2 : kFloat),
        has_moments_(spec_.train().optimizer().has_adamw()) {
    size_.ranks.resize(mesh_.size());
    dense_sums_.resize(mesh_.size());
  }

  JobSize Run() {
    const std::vector<int> writers = CheckpointWriters(*in_.catalog, mesh_, placement_);
    for (ParameterId id = 0; id < in_.catalog->size(); ++id) {
      const ParameterSpec& parameter = (*in_.catalog)[id];
      size_.ranks[writers[id]].snapshot += parameter.elements() * kFloat * (has_moments_ ? 3 : 1);
      AddParameter(parameter);
    }
    AddDenseTraffic();
    AddActivations();
    AddTokens();
    AddSums();
    AddNodes();
    return std::move(size_);
  }

 private:
  std::vector<int> HoldersOf(const ParameterSpec& parameter) const {
    const std::span<const int> ranks = parameter.expert >= 0
                                           ? placement_.holders(parameter.layer, parameter.expert)
                                           : mesh_.data_ranks();
    return {ranks.begin(), ranks.end()};
  }

  void AddParameter(const ParameterSpec& parameter) {
    const std::vector<int> holders = HoldersOf(parameter);
    const bool dense = parameter.expert < 0;
    const int64_t elements = StoreElements(parameter.elements());
    for (const int rank : holders) {
      RankMemory& memory = size_.ranks[rank];
      const bool owns = dense || rank == holders.front();
      const bool fp32 = parameter.fp32 || compute_bytes_ == kFloat;
      if (owns) memory.weights += elements * kFloat;
      if (owns && has_moments_) memory.moments += 2 * elements * kFloat;
      if (!fp32 || !owns) memory.weights += elements * (fp32 ? kFloat : compute_bytes_);
    }
    if (spec_.train().reproducible()) {
      AddLeaves(parameter, holders);
    } else {
      AddBuckets(parameter, holders);
    }
    if (dense) return;
    for (size_t i = 1; i < holders.size(); ++i) {
      Send(holders.front(), holders[i], static_cast<double>(parameter.elements() * compute_bytes_),
           &size_.traffic.weights);
    }
  }

  void AddBuckets(const ParameterSpec& parameter, const std::vector<int>& holders) {
    const int64_t bytes = BucketElements(parameter.elements()) * kFloat;
    for (const int rank : holders) size_.ranks[rank].gradients += bytes;
    if (parameter.expert < 0) {
      dense_bytes_ += bytes;
      return;
    }
    for (size_t i = 1; i < holders.size(); ++i) {
      Send(holders[i], holders.front(), static_cast<double>(bytes), &size_.traffic.gradients);
    }
  }

  int64_t Sums(int64_t begin, int64_t end, int uses) const {
    if (begin >= end) return 0;
    return static_cast<int64_t>(
        SumTree(plan_.micro_batches * uses).Cover(begin * uses, end * uses).size());
  }

  // Partial sums of the tree that a holder is left with: those of the micro-batches of the sources
  // that it serves.
  int64_t ExpertSums(const ParameterSpec& parameter, int rank) const {
    int64_t begin = 0, end = 0, sums = 0;
    for (const int source : mesh_.expert_ranks(mesh_.place(rank).expert_group)) {
      if (placement_.Destination(mesh_, source, parameter.layer, parameter.expert) != rank)
        continue;
      const int data = mesh_.place(source).data;
      if (plan_.begin(data) != end) {
        sums += Sums(begin, end, parameter.uses);
        begin = plan_.begin(data);
      }
      end = plan_.end(data);
    }
    return sums + Sums(begin, end, parameter.uses);
  }

  void AddLeaves(const ParameterSpec& parameter, const std::vector<int>& holders) {
    const int64_t bytes = parameter.elements() * kFloat;
    const bool dense = parameter.expert < 0;
    for (const int rank : holders) {
      const int data = mesh_.place(rank).data;
      const int64_t sums = dense ? Sums(plan_.begin(data), plan_.end(data), parameter.uses)
                                 : ExpertSums(parameter, rank);
      const bool has_root = dense || rank == holders.front();
      size_.ranks[rank].gradients += bytes * (sums + 1 + (has_root ? 1 : 0));
      if (dense) {
        dense_sums_[rank] += static_cast<double>(bytes * sums);
      } else {
        Send(rank, holders.front(), static_cast<double>(bytes * sums), &size_.traffic.gradients);
      }
    }
    if (dense) dense_bytes_ += bytes;
  }

  // Dense gradients. In reproducible mode partial sums go to the owner of each parameter's root, of
  // which ranks own about as many bytes each, and the roots to all.
  void AddDenseTraffic() {
    const auto bytes = static_cast<double>(dense_bytes_);
    if (!spec_.train().reproducible()) return AllReduce(bytes, &size_.traffic.gradients);
    for (int from = 0; from < mesh_.size(); ++from) {
      for (int to = 0; to < mesh_.size(); ++to) {
        Send(from, to, (dense_sums_[from] + bytes) / mesh_.size(), &size_.traffic.gradients);
      }
    }
  }

  int64_t MicroBatchTokens() const {
    return int64_t{spec_.train().micro_batch()} * spec_.model().sequence();
  }

  // What blocks keep of one micro-batch from forward to backward.
  int64_t AttentionBytes(int64_t tokens) const {
    const ModelSpec& model = spec_.model();
    const int64_t q = int64_t{model.heads()} * model.head_width();
    const int64_t kv = int64_t{model.kv_heads()} * model.head_width();
    return tokens * (compute_bytes_ * (2 * int64_t{model.hidden()} + 2 * q + 2 * kv) +
                     kFloat * (int64_t{model.heads()} + 1));
  }
  int64_t SwiGluBytes(int64_t rows, int64_t width) const {
    return rows * compute_bytes_ * 3 * width;
  }
  int64_t HeadBytes(int64_t tokens) const {
    const int64_t vocabulary = spec_.model().vocabulary(), hidden = spec_.model().hidden();
    const int64_t logits = std::min(tokens * vocabulary, std::max(kHeadChunk, 32 * vocabulary));
    return tokens * compute_bytes_ * 3 * hidden + vocabulary * hidden * kFloat +
           logits * (kFloat + compute_bytes_);
  }

  void AddActivations() {
    const ModelSpec& model = spec_.model();
    const int64_t tokens = MicroBatchTokens(), hidden = model.hidden();
    for (RankMemory& rank : size_.ranks) rank.activations = HeadBytes(tokens);
    for (int layer = 0; layer < in_.catalog->layers(); ++layer) {
      for (RankMemory& rank : size_.ranks) {
        // Attention, and the norm before the feed-forward.
        rank.activations += AttentionBytes(tokens) + tokens * compute_bytes_ * 2 * hidden;
      }
      if (!in_.catalog->IsMoe(layer)) {
        for (RankMemory& rank : size_.ranks) {
          rank.activations += SwiGluBytes(tokens, model.dense_width());
        }
        continue;
      }
      const MoeSpec& moe = model.moe();
      const std::vector<double> shares = Shares(layer);
      for (int r = 0; r < mesh_.size(); ++r) {
        // A round brings the micro-batches of the whole group.
        const auto received = static_cast<int64_t>(
            std::ceil(shares[r] * static_cast<double>(mesh_.size() * tokens * moe.active())));
        size_.ranks[r].activations +=
            received * compute_bytes_ * hidden + SwiGluBytes(received, moe.expert_width()) +
            SwiGluBytes(tokens, moe.shared_width()) +
            tokens * moe.active() * compute_bytes_ * hidden + tokens * moe.experts() * 2 * kFloat;
      }
    }
  }

  // Of the (token, expert) pairs of a layer, what each rank takes; they add up to 1.
  std::vector<double> Shares(int layer) const {
    std::vector<double> shares = ExpectedTokens(mesh_, placement_, layer, *in_.load);
    const double sum = LayerTokens(layer);
    for (double& share : shares) share = sum > 0 ? share / sum : 1.0 / mesh_.size();
    return shares;
  }
  double LayerTokens(int layer) const {
    double sum = 0;
    for (int e = 0; e < placement_.experts(layer); ++e) sum += ExpertTokens(layer, e);
    return sum;
  }
  double ExpertTokens(int layer, int expert) const {
    return in_.load->empty() ? 1.0 : (*in_.load)[layer][expert];
  }

  void AddTokens() {
    const MoeSpec& moe = spec_.model().moe();
    for (int layer = 0; layer < placement_.layers(); ++layer) {
      const double sum = LayerTokens(layer);
      if (sum == 0 || mesh_.expert_size() == 1) continue;
      for (int source = 0; source < mesh_.size(); ++source) {
        const int data = mesh_.place(source).data;
        const auto pairs = static_cast<double>((plan_.end(data) - plan_.begin(data)) *
                                               MicroBatchTokens() * moe.active());
        // There and back, in forward and in backward.
        const double bytes =
            4 * pairs * static_cast<double>(spec_.model().hidden() * compute_bytes_);
        for (int e = 0; e < placement_.experts(layer); ++e) {
          Send(source, placement_.Destination(mesh_, source, layer, e),
               bytes * ExpertTokens(layer, e) / sum, &size_.traffic.tokens);
        }
        for (const int other : mesh_.expert_ranks(mesh_.place(source).expert_group)) {
          Send(source, other, static_cast<double>(plan_.rounds() * moe.experts() * 8),
               &size_.traffic.counts);
        }
      }
    }
  }

  void AddSums() {
    int64_t words = 2 * plan_.micro_batches + in_.catalog->size() + 3;
    for (int layer = 0; layer < placement_.layers(); ++layer) words += placement_.experts(layer);
    AllReduce(static_cast<double>(words * 8), &size_.traffic.sums);
  }

  void AddNodes() {
    std::map<std::string, size_t> known;
    for (int rank = 0; rank < mesh_.size(); ++rank) {
      const std::string& node = mesh_.place(rank).node;
      const auto [at, fresh] = known.emplace(node, size_.nodes.size());
      if (fresh) size_.nodes.push_back({.node = node});
      NodeMemory& memory = size_.nodes[at->second];
      memory.processes += size_.ranks[rank].process();
      memory.snapshot += size_.ranks[rank].snapshot;
      memory.in_flight += size_.ranks[rank].snapshot;
    }
    const size_t nodes = size_.nodes.size();
    if (nodes == 1 || !spec_.checkpoint().peer_copies()) return;
    for (size_t n = 0; n < nodes; ++n) {
      size_.nodes[n].peer_copy = size_.nodes[(n + nodes - 1) % nodes].snapshot;
    }
  }

  void Send(int from, int to, double bytes, double* kind) {
    if (from == to) return;
    *kind += bytes;
    if (mesh_.place(from).node != mesh_.place(to).node) size_.traffic.between_nodes += bytes;
  }
  void AllReduce(double bytes, double* kind) {
    for (int from = 0; from < mesh_.size(); ++from) {
      for (int to = 0; to < mesh_.size(); ++to) Send(from, to, 2 * bytes / mesh_.size(), kind);
    }
  }

  const SizingInput& in_;
  const JobSpec& spec_;
  const Mesh& mesh_;
  const ExpertPlacement& placement_;
  const MicroBatchPlan plan_;
  const int64_t compute_bytes_;
  const bool has_moments_;
  int64_t dense_bytes_ = 0;         // of gradients
  std::vector<double> dense_sums_;  // by rank, bytes of partial sums of dense gradients
  JobSize size_;
};

}  // namespace

JobSize SizeJob(const SizingInput& input) { return Sizer(input).Run(); }

}  // namespace moesaic
