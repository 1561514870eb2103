#include "parallel/layout/balanced_placement.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <string>
#include <tuple>
#include <utility>

namespace moesaic {
namespace {

double TokensOf(const ExpertLoad& load, int layer, int expert) {
  return load.empty() ? 1.0 : load[layer][expert];
}

// Adds what `holders` of one expert take from the sources of one expert group.
void AddTokens(const Mesh& mesh, int group, std::span<const int> holders, double tokens,
               std::vector<double>& by_rank) {
  const double each = tokens / mesh.size();
  for (const int source : mesh.expert_ranks(group)) {
    by_rank[NearestHolder(mesh, source, holders)] += each;
  }
}

class Balancer {
 public:
  explicit Balancer(const BalanceInput& input)
      : in_(input),
        mesh_(*input.mesh),
        held_(mesh_.expert_size(), 0),
        owned_(mesh_.size(), 0),
        holders_(input.experts.size()) {}

  ExpertPlacement Run() {
    int64_t before = 0;
    for (size_t layer = 0; layer < in_.experts.size(); ++layer) {
      layer_ = static_cast<int>(layer);
      experts_ = in_.experts[layer];
      before += experts_;
      holders_[layer].resize(experts_);
      limit_ = (before + mesh_.expert_size() - 1) / mesh_.expert_size() + 1;
      tokens_.assign(mesh_.size(), 0);
      room_.assign(mesh_.size(), in_.copies);
      Place();
      for (int group = 0; group < mesh_.expert_groups(); ++group) CopyToSecondNode(group);
      for (int group = 0; group < mesh_.expert_groups(); ++group) {
        while (CopyFromBusiest(group)) {
        }
      }
      ChoosePrimaries();
    }
    return *ExpertPlacement::Create(mesh_, in_.epoch, std::move(holders_));
  }

 private:
  double Tokens(int expert) const { return TokensOf(*in_.load, layer_, expert); }
  std::vector<int>& Holders(int expert) { return holders_[layer_][expert]; }
  const std::string& NodeOf(int rank) const { return mesh_.place(rank).node; }

  bool OnOneNode(int expert) {
    const std::vector<int>& holders = Holders(expert);
    return !holders.empty() && std::all_of(holders.begin(), holders.end(), [&](int rank) {
      return NodeOf(rank) == NodeOf(holders.front());
    });
  }
  // Whether a copy at `rank` would bring the expert to a second node.
  bool AddsNode(int expert, int rank) {
    return OnOneNode(expert) && NodeOf(Holders(expert).front()) != NodeOf(rank);
  }

  std::vector<int> BusiestFirst() const {
    std::vector<int> order(experts_);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return Tokens(a) > Tokens(b); });
    return order;
  }

  // The same coordinate in every group. Ranks of one coordinate are so far apart that, of several
  // groups on several nodes, two always are on different nodes.
  void Place() {
    std::vector<double> tokens(mesh_.expert_size(), 0);
    for (const int expert : BusiestFirst()) {
      int best = -1;
      for (int at = 0; at < mesh_.expert_size(); ++at) {
        if (held_[at] >= limit_) continue;
        if (best < 0 || std::tie(tokens[at], held_[at]) < std::tie(tokens[best], held_[best])) {
          best = at;
        }
      }
      ++held_[best];
      tokens[best] += Tokens(expert);
      for (int group = 0; group < mesh_.expert_groups(); ++group) {
        const int rank = mesh_.expert_ranks(group)[best];
        Holders(expert).push_back(rank);
        tokens_[rank] += Tokens(expert) / mesh_.expert_groups();
      }
    }
  }

  std::vector<int> InGroup(int expert, int group) {
    std::vector<int> ranks;
    for (const int rank : Holders(expert)) {
      if (mesh_.place(rank).expert_group == group) ranks.push_back(rank);
    }
    return ranks;
  }

  // Tokens by rank if `rank` (of `group`) held a copy of `expert`, too.
  std::vector<double> TokensWith(int expert, int rank, int group) {
    std::vector<double> tokens = tokens_;
    std::vector<int> holders = InGroup(expert, group);
    AddTokens(mesh_, group, holders, -Tokens(expert), tokens);
    holders.push_back(rank);
    AddTokens(mesh_, group, holders, Tokens(expert), tokens);
    return tokens;
  }

  void Copy(int expert, int rank, int group) {
    tokens_ = TokensWith(expert, rank, group);
    Holders(expert).push_back(rank);
    --room_[rank];
  }

  void CopyToSecondNode(int group) {
    for (const int expert : BusiestFirst()) {
      int best = -1;
      for (const int rank : mesh_.expert_ranks(group)) {
        if (room_[rank] == 0 || !AddsNode(expert, rank)) continue;
        if (best < 0 || tokens_[rank] < tokens_[best]) best = rank;
      }
      if (best >= 0) Copy(expert, best, group);
    }
  }

  double Most(const std::vector<double>& tokens, int group) const {
    double most = 0;
    for (const int rank : mesh_.expert_ranks(group)) most = std::max(most, tokens[rank]);
    return most;
  }

  // One copy of an expert of the group's busiest rank, where it helps; whether there was one.
  bool CopyFromBusiest(int group) {
    const std::span<const int> ranks = mesh_.expert_ranks(group);
    const int busiest = *std::max_element(ranks.begin(), ranks.end(),
                                          [&](int a, int b) { return tokens_[a] < tokens_[b]; });
    double least = Most(tokens_, group) * kWorthwhile;
    std::pair<int, int> best{-1, -1};
    for (int expert = 0; expert < experts_; ++expert) {
      const std::vector<int>& holders = Holders(expert);
      if (std::find(holders.begin(), holders.end(), busiest) == holders.end()) continue;
      for (const int rank : ranks) {
        if (room_[rank] == 0 || std::find(holders.begin(), holders.end(), rank) != holders.end()) {
          continue;
        }
        const double most = Most(TokensWith(expert, rank, group), group);
        if (most < least) {
          least = most;
          best = {expert, rank};
        }
      }
    }
    if (best.first < 0) return false;
    Copy(best.first, best.second, group);
    return true;
  }

  void ChoosePrimaries() {
    for (int expert = 0; expert < experts_; ++expert) {
      std::vector<int>& holders = Holders(expert);
      const int groups = mesh_.expert_groups();
      const auto key = [&](int rank) {
        const RankPlace& place = mesh_.place(rank);
        const int turn = (place.expert_group - expert % groups + groups) % groups;
        return std::make_tuple(owned_[rank], turn, place.expert);
      };
      std::sort(holders.begin(), holders.end(), [&](int a, int b) { return key(a) < key(b); });
      std::sort(holders.begin() + 1, holders.end());
      ++owned_[holders.front()];
    }
  }

  // A copy costs memory and traffic: it must take one part in fifty off the busiest rank.
  static constexpr double kWorthwhile = 0.98;

  const BalanceInput& in_;
  const Mesh& mesh_;
  std::vector<int64_t> held_;   // by coordinate, in the layers so far, without copies
  std::vector<int64_t> owned_;  // by rank, in the layers so far
  std::vector<std::vector<std::vector<int>>> holders_;
  // Of the layer in work:
  int layer_ = 0;
  int experts_ = 0;
  int64_t limit_ = 0;
  std::vector<double> tokens_;  // by rank
  std::vector<int> room_;       // for copies, by rank
};

}  // namespace

ExpertPlacement BalancedPlacement(const BalanceInput& input) { return Balancer(input).Run(); }

std::vector<double> ExpectedTokens(const Mesh& mesh, const ExpertPlacement& placement, int layer,
                                   const ExpertLoad& load) {
  std::vector<double> tokens(mesh.size(), 0);
  for (int expert = 0; expert < placement.experts(layer); ++expert) {
    const std::span<const int> holders = placement.holders(layer, expert);
    const double of_expert = TokensOf(load, layer, expert);
    if (holders.size() == static_cast<size_t>(mesh.expert_groups())) {  // one in each
      for (const int rank : holders) tokens[rank] += of_expert / mesh.expert_groups();
      continue;
    }
    for (int source = 0; source < mesh.size(); ++source) {
      tokens[placement.Destination(mesh, source, layer, expert)] += of_expert / mesh.size();
    }
  }
  return tokens;
}

double ExpectedImbalance(const Mesh& mesh, const ExpertPlacement& placement,
                         const ExpertLoad& load) {
  double most = 0, mean = 0;
  for (int layer = 0; layer < placement.layers(); ++layer) {
    const std::vector<double> tokens = ExpectedTokens(mesh, placement, layer, load);
    most += *std::max_element(tokens.begin(), tokens.end());
    mean += std::accumulate(tokens.begin(), tokens.end(), 0.0) / mesh.size();
  }
  return mean > 0 ? most / mean : 1.0;
}

}  // namespace moesaic
