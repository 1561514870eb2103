#include "trainer/catalog/sizing.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "parallel/layout/balanced_placement.h"
#include "parallel/layout/gradient_layout.h"
#include "parallel/layout/micro_batch_plan.h"
#include "parallel/layout/sum_tree.h"
#include "proto/job_spec.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/write_plan.h"
#include "trainer/metrics/layer_routing.h"

namespace moesaic {
namespace {

constexpr int64_t kFloat = 4;
constexpr int64_t kSumNameBytes = 24;  // parameter, level and index of a partial sum
constexpr int64_t kHeadChunk = int64_t{1} << 23;  // logits of the head that exist at once

int64_t Padded(int64_t elements, int64_t to) { return (elements + to - 1) / to * to; }
// As parameter stores and gradient buckets lay tensors out.
int64_t StoreElements(int64_t elements) { return Padded(elements, 32); }
int64_t BucketElements(int64_t elements) { return Padded(elements, 16); }
int64_t ArenaBytes(int64_t bytes) { return Padded(bytes, 64); }

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
    for (int rank = 0; rank < mesh_.size(); ++rank) ++ranks_on_[mesh_.place(rank).node];
  }

  JobSize Run() {
    const std::vector<int> writers = CheckpointWriters(*in_.catalog, mesh_, placement_);
    for (ParameterId id = 0; id < in_.catalog->size(); ++id) {
      const ParameterSpec& parameter = (*in_.catalog)[id];
      const int64_t bytes = parameter.elements() * kFloat, objects = HasMoments(parameter) ? 3 : 1;
      size_.ranks[writers[id]].snapshot += ArenaBytes(bytes) * objects;
      size_.checkpoint += bytes * objects;
      AddParameter(parameter);
    }
    if (spec_.train().reproducible()) {
      AddSumTrees();
    } else {
      AddBuckets();
    }
    AddActivations();
    AddTokens();
    AddSums();
    AddNodes();
    return std::move(size_);
  }

 private:
  bool HasMoments(const ParameterSpec& parameter) const { return has_moments_ && parameter.learnt; }

  // What is not learnt has no gradient.
  static int64_t SummedElements(const ParameterSpec& parameter) {
    return parameter.learnt ? parameter.elements() : 0;
  }

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
      if (owns && HasMoments(parameter)) memory.moments += 2 * elements * kFloat;
      if (!fp32 || !owns) memory.weights += elements * (fp32 ? kFloat : compute_bytes_);
    }
    if (dense) return;
    for (size_t i = 1; i < holders.size(); ++i) {
      Send(holders.front(), holders[i], static_cast<double>(parameter.elements() * compute_bytes_),
           &size_.traffic.weights);
    }
  }

  // Fast mode: a place for every parameter that a rank holds; dense ones are all-reduced, parts of
  // experts go to their primary, which receives those of a bucket at a time.
  void AddBuckets() {
    std::map<std::pair<int, int>, int64_t> received;  // by (to, from)
    int64_t dense = 0;
    for (const ParameterSpec& parameter : in_.catalog->parameters()) {
      const std::vector<int> holders = HoldersOf(parameter);
      const int64_t bytes = BucketElements(SummedElements(parameter)) * kFloat;
      for (const int rank : holders) size_.ranks[rank].gradients += bytes;
      if (parameter.expert < 0) {
        dense += bytes;
        continue;
      }
      for (size_t i = 1; i < holders.size(); ++i) {
        Send(holders[i], holders.front(), static_cast<double>(bytes), &size_.traffic.gradients);
        received[{holders.front(), holders[i]}] += bytes;
      }
    }
    for (const auto& [pair, bytes] : received) {
      size_.ranks[pair.first].gradients += std::min(bytes, kGradientBucketBytes);
    }
    AllReduce(static_cast<double>(dense), &size_.traffic.gradients);
  }

  // How many nodes of a parameter's tree of sums a rank has.
  struct TreeNodes {
    int64_t most = 0;  // between two uses
    int64_t last = 0;  // after the last one
    int64_t open = 0;  // leaves that a round adds, at most
  };

  // The tree's nodes over leaves that come as ascending ranges.
  class Nodes {
   public:
    explicit Nodes(int64_t leaves) : tree_(leaves) {}
    void Add(int64_t begin, int64_t end) {
      if (begin != end_) Flush(begin);
      end_ = end;
    }
    int64_t Count() {
      Flush(end_);
      return count_;
    }

   private:
    void Flush(int64_t next) {
      if (begin_ < end_) count_ += static_cast<int64_t>(tree_.Cover(begin_, end_).size());
      begin_ = end_ = next;
    }

    const SumTree tree_;
    int64_t begin_ = 0, end_ = 0, count_ = 0;
  };

  // Of the micro-batches of `sources` up to round `rounds`, of whose own micro-batches the last
  // `used` of `uses` leaves are there: backward comes to the last use first.
  int64_t NodesAfter(std::span<const int> sources, int uses, int64_t rounds, int used) const {
    Nodes nodes(plan_.micro_batches * uses);
    for (const int data : sources) {
      const int64_t first = plan_.begin(data), last = std::min(first + rounds, plan_.end(data));
      const bool partly = last == first + rounds && used < uses;
      nodes.Add(first * uses, (partly ? last - 1 : last) * uses);
      if (partly) nodes.Add(last * uses - used, last * uses);
    }
    return nodes.Count();
  }

  // Of the micro-batches of `sources`, each of which brings one a round.
  TreeNodes NodesOf(std::span<const int> sources, int uses) const {
    TreeNodes nodes;
    for (int64_t rounds = 1; rounds <= plan_.rounds(); ++rounds) {
      int64_t active = 0;
      for (const int data : sources) active += plan_.begin(data) + rounds <= plan_.end(data);
      nodes.open = std::max(nodes.open, active);
      for (int used = 1; used <= uses; ++used) {
        nodes.last = NodesAfter(sources, uses, rounds, used);
        nodes.most = std::max(nodes.most, nodes.last);
      }
    }
    return nodes;
  }

  // The data coordinates of the ranks whose rows of an expert `rank` computes, ascending.
  std::vector<int> Served(const ParameterSpec& parameter, int rank) const {
    if (parameter.expert < 0) return {mesh_.place(rank).data};
    std::vector<int> sources;
    for (const int source : mesh_.expert_ranks(mesh_.place(rank).expert_group)) {
      if (placement_.Destination(mesh_, source, parameter.layer, parameter.expert) == rank) {
        sources.push_back(mesh_.place(source).data);
      }
    }
    std::sort(sources.begin(), sources.end());
    return sources;
  }

  // Memory that is taken for leaves and for received sums and used again: sums of one size share it.
  struct SharedSums {
    std::map<int, int64_t> open;      // leaves, by pool (dense ones, -1, come one at a time)
    std::map<int, int64_t> received;  // nodes, by batch

    int64_t most() const {
      int64_t most = 0;
      for (const auto& [layer, leaves] : open) most = std::max(most, leaves);
      for (const auto& [batch, nodes] : received) most = std::max(most, nodes);
      return most;
    }
  };

  // Reproducible mode: partial sums go to the rank that computes a parameter's root, with their
  // names to all, and the roots of dense parameters to all.
  void AddSumTrees() {
    std::vector<SummedParameter> summed;
    for (const ParameterSpec& parameter : in_.catalog->parameters()) {
      summed.push_back({SummedElements(parameter),
                        parameter.expert < 0 ? -1 : HoldersOf(parameter).front()});
    }
    const std::vector<int> owners = RootOwners(summed, mesh_.size());
    std::vector<std::map<int64_t, SharedSums>> shared(mesh_.size());  // by elements
    int batch = 0;
    for (const ParameterRange& range :
         GradientBatches(summed, kGradientBatchBytes / kFloat)) {
      for (ParameterId id = range.begin; id < range.end; ++id) {
        if (!(*in_.catalog)[id].learnt) continue;
        AddSumTree((*in_.catalog)[id], owners[id], batch, shared);
      }
      ++batch;
    }
    for (int rank = 0; rank < mesh_.size(); ++rank) {
      for (const auto& [elements, sums] : shared[rank]) {
        size_.ranks[rank].gradients += elements * kFloat * sums.most();
      }
    }
  }

  void AddSumTree(const ParameterSpec& parameter, int owner, int batch,
                  std::vector<std::map<int64_t, SharedSums>>& shared) {
    const int64_t bytes = parameter.elements() * kFloat;
    const bool dense = parameter.expert < 0;
    for (const int rank : HoldersOf(parameter)) {
      const TreeNodes nodes = NodesOf(Served(parameter, rank), parameter.uses);
      RankMemory& memory = size_.ranks[rank];
      memory.gradients += bytes * nodes.most;
      SharedSums& sums = shared[rank][parameter.elements()];
      // A layer's leaves of all experts of its pool are open at once.
      int64_t& open = sums.open[dense ? -1 : in_.catalog->PoolLayers(parameter.layer).front()];
      open = dense ? std::max(open, nodes.open) : open + nodes.open;
      if (rank != owner) {
        shared[owner][parameter.elements()].received[batch] += nodes.last;
        Send(rank, owner, static_cast<double>(bytes * nodes.last), &size_.traffic.gradients);
      }
      SendToAll(rank, static_cast<double>(nodes.last * kSumNameBytes), &size_.traffic.gradients);
      if (dense) memory.gradients += BucketElements(parameter.elements()) * kFloat;
    }
    const auto root = static_cast<double>(BucketElements(parameter.elements()) * kFloat);
    if (dense) {
      SendToAll(owner, root, &size_.traffic.gradients);
    } else {
      size_.ranks[owner].gradients += bytes;
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
    const int64_t head_norms =
        model.qk_norm()
            ? compute_bytes_ * (q + kv) + kFloat * (int64_t{model.heads()} + model.kv_heads())
            : 0;
    return tokens * (compute_bytes_ * (2 * int64_t{model.hidden()} + 2 * q + 2 * kv) +
                     kFloat * (int64_t{model.heads()} + 1) + head_norms);
  }
  int64_t SwiGluBytes(int64_t rows, int64_t width) const {
    return rows * compute_bytes_ * 3 * width;
  }
  // Scores, what they came from, and of a recurrent router the cell's input, gates and state.
  int64_t RouterBytes(int64_t tokens, int layer) const {
    const int64_t p = spec_.recipe().router().state().width();
    const int64_t choices = in_.catalog->pool_experts(layer) + in_.catalog->null_experts();
    return tokens * kFloat * (2 * choices + 6 * p);
  }
  int64_t HeadBytes(int64_t tokens) const {
    const int64_t vocabulary = spec_.model().vocabulary(), hidden = spec_.model().hidden();
    const int64_t logits = std::min(tokens * vocabulary, std::max(kHeadChunk, 32 * vocabulary));
    return tokens * compute_bytes_ * 3 * hidden + vocabulary * hidden * kFloat +
           logits * (kFloat + compute_bytes_);
  }

  // Experts that a token takes of a layer with experts: all while a dense-to-sparse gate is dense.
  double FanOut(int layer) const {
    return spec_.recipe().router().select().has_dense_to_sparse()
               ? in_.catalog->pool_experts(layer)
               : in_.catalog->expected_active(layer);
  }

  void AddActivations() {
    const ModelSpec& model = spec_.model();
    const int64_t tokens = MicroBatchTokens(), hidden = model.hidden();
    for (RankMemory& rank : size_.ranks) rank.activations = HeadBytes(tokens);
    std::vector<int64_t> backward(mesh_.size(), 0);  // on top, of the layer that takes most
    for (int layer = 0; layer < in_.catalog->layers(); ++layer) {
      for (RankMemory& rank : size_.ranks) {
        // Attention, and the norm before the feed-forward.
        rank.activations += AttentionBytes(tokens) + tokens * compute_bytes_ * 2 * hidden;
      }
      const MoeSpec& moe = model.moe();
      if (!in_.catalog->IsMoe(layer)) {
        // A layer whose experts are still one is dense, of that expert's width.
        const int64_t width = IsMoeLayer(model, layer)
                                  ? int64_t{moe.expert_width()} + moe.shared_width()
                                  : int64_t{model.dense_width()};
        for (RankMemory& rank : size_.ranks) rank.activations += SwiGluBytes(tokens, width);
        continue;
      }
      const std::vector<double> shares = Shares(layer);
      const double active = FanOut(layer);
      for (int r = 0; r < mesh_.size(); ++r) {
        // A round brings the micro-batches of the whole group.
        const auto received = static_cast<int64_t>(
            std::ceil(shares[r] * static_cast<double>(mesh_.size() * tokens) * active));
        size_.ranks[r].activations +=
            received * compute_bytes_ * hidden + SwiGluBytes(received, moe.expert_width()) +
            SwiGluBytes(tokens, moe.shared_width()) +
            static_cast<int64_t>(std::ceil(static_cast<double>(tokens) * active)) * compute_bytes_ *
                hidden +
            RouterBytes(tokens, layer);
        const int64_t row = (mesh_.expert_size() > 1 ? 2 : 1) * hidden + moe.expert_width();
        backward[r] = std::max(backward[r], received * compute_bytes_ * row);
      }
    }
    for (int r = 0; r < mesh_.size(); ++r) size_.ranks[r].activations += backward[r];
  }

  // Of the (token, expert) pairs of a layer, what each rank takes; they add up to 1. Layers that
  // share a pool are taken to choose alike.
  std::vector<double> Shares(int layer) const {
    std::vector<double> shares(mesh_.size(), 0);
    for (const int owner : in_.catalog->PoolLayers(layer)) {
      const auto tokens = ExpectedTokens(mesh_, placement_, owner, *in_.load);
      for (size_t r = 0; r < shares.size(); ++r) shares[r] += tokens[r];
    }
    const double sum = PoolTokens(layer);
    for (double& share : shares) share = sum > 0 ? share / sum : 1.0 / mesh_.size();
    return shares;
  }
  double PoolTokens(int layer) const {
    double sum = 0;
    for (const int owner : in_.catalog->PoolLayers(layer)) {
      for (int e = 0; e < placement_.experts(owner); ++e) sum += ExpertTokens(owner, e);
    }
    return sum;
  }
  double ExpertTokens(int layer, int expert) const {
    return in_.load->empty() ? 1.0 : (*in_.load)[layer][expert];
  }

  void AddTokens() {
    for (int layer = 0; layer < placement_.layers(); ++layer) {
      const double sum = PoolTokens(layer);
      if (sum == 0 || mesh_.expert_size() == 1) continue;
      for (int source = 0; source < mesh_.size(); ++source) {
        const int data = mesh_.place(source).data;
        const auto pairs =
            static_cast<double>((plan_.end(data) - plan_.begin(data)) * MicroBatchTokens()) *
            FanOut(layer);
        // There and back, in forward and in backward.
        const double bytes =
            4 * pairs * static_cast<double>(spec_.model().hidden() * compute_bytes_);
        for (const int owner : in_.catalog->PoolLayers(layer)) {
          for (int e = 0; e < placement_.experts(owner); ++e) {
            Send(source, placement_.Destination(mesh_, source, owner, e),
                 bytes * ExpertTokens(owner, e) / sum, &size_.traffic.tokens);
          }
        }
        const int64_t counts = plan_.rounds() * in_.catalog->pool_experts(layer) * 8;
        for (const int other : mesh_.expert_ranks(mesh_.place(source).expert_group)) {
          Send(source, other, static_cast<double>(counts), &size_.traffic.counts);
        }
      }
    }
  }

  void AddSums() {
    int64_t layers = 0, experts = 0;  // with experts; of the largest pool
    for (int layer = 0; layer < in_.catalog->layers(); ++layer) {
      layers += in_.catalog->IsMoe(layer);
      experts = std::max<int64_t>(experts, in_.catalog->pool_experts(layer));
    }
    const int64_t words = 2 * plan_.micro_batches + in_.catalog->size() + layers * LayerRoutingWords(experts) + 3;
    AllReduce(static_cast<double>(words * 8), &size_.traffic.sums);
    if (!spec_.train().reproducible()) return;
    for (int rank = 0; rank < mesh_.size(); ++rank) {  // how many partial sums it names
      SendToAll(rank, sizeof(int64_t), &size_.traffic.sums);
    }
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
  void SendToAll(int from, double bytes, double* kind) {
    *kind += bytes * (mesh_.size() - 1);
    const int here = ranks_on_.at(mesh_.place(from).node);
    size_.traffic.between_nodes += bytes * (mesh_.size() - here);
  }
  void AllReduce(double bytes, double* kind) {
    for (int from = 0; from < mesh_.size(); ++from) {
      SendToAll(from, 2 * bytes / mesh_.size(), kind);
    }
  }

  const SizingInput& in_;
  const JobSpec& spec_;
  const Mesh& mesh_;
  const ExpertPlacement& placement_;
  const MicroBatchPlan plan_;
  const int64_t compute_bytes_;
  const bool has_moments_;
  std::map<std::string, int> ranks_on_;  // by node
  JobSize size_;
};

// What the ranks and nodes of `size` need until all experts are made of those of `before`.
void CountSpawn(const JobSize& before, const Mesh& mesh, JobSize* size) {
  std::map<std::string, int64_t> processes;  // by node
  for (int r = 0; r < mesh.size(); ++r) {
    RankMemory& rank = size->ranks[r];
    rank.at_spawn = before.ranks[r].parameters() + rank.parameters();
    processes[mesh.place(r).node] += rank.at_spawn;
  }
  for (size_t n = 0; n < size->nodes.size(); ++n) {
    const NodeMemory& then = before.nodes[n];
    size->nodes[n].until_spawn = std::max(then.processes, processes[then.node]) + then.snapshots();
  }
}

}  // namespace

JobSize SizeJob(const SizingInput& input) {
  JobSize size = Sizer(input).Run();
  if (input.before_spawn == nullptr) return size;
  SizingInput before = input;
  before.catalog = input.before_spawn;
  CountSpawn(Sizer(before).Run(), *input.mesh, &size);
  return size;
}

namespace {

// Multiplications of a step's forward pass.
struct Products {
  double expert = 0;  // of a (token, expert) pair
  double other = 0;   // of a token, without its experts
};

Products ProductsOf(const JobSpec& spec, const ParameterCatalog& catalog) {
  const ModelSpec& model = spec.model();
  Products products;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    if (parameter.expert < 0) products.other += static_cast<double>(parameter.elements());
  }
  // Three matrices; all experts have one size.
  products.expert = 3.0 * model.moe().expert_width() * model.hidden();
  // Rows of the embedding are looked up, not multiplied; a tied one is the head, too.
  if (!model.tie_head()) {
    products.other -= static_cast<double>(model.vocabulary()) * model.hidden();
  }
  // Scores and their products with values, each over half of the positions.
  products.other +=
      static_cast<double>(model.layers()) * model.heads() * model.head_width() * model.sequence();
  return products;
}

}  // namespace

double ExpertShare(const JobSpec& spec, const ParameterCatalog& catalog) {
  if (!spec.model().has_moe()) return 0;
  const Products products = ProductsOf(spec, catalog);
  double experts = 0;
  for (int layer = 0; layer < catalog.layers(); ++layer) {
    if (catalog.IsMoe(layer)) experts += products.expert * catalog.expected_active(layer);
  }
  const double all = experts + products.other;
  return all > 0 ? experts / all : 0;
}

double StepOperations(const JobSpec& spec, const ParameterCatalog& catalog, double tokens,
                      double pairs) {
  const Products products = ProductsOf(spec, catalog);
  return 6 * (tokens * products.other + pairs * products.expert);
}

}  // namespace moesaic
