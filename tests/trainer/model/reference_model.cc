#include "tests/trainer/model/reference_model.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "trainer/model/router/candidates.h"

namespace moesaic {
namespace {

class Reference {
 public:
  Reference(const JobSpec& spec, const ParameterCatalog& catalog,
            const std::vector<at::Tensor>& weights, const MicroBatch& batch,
            const PassOptions& options)
      : spec_(spec), model_(spec.model()), catalog_(catalog), batch_(batch), options_(options) {
    for (const at::Tensor& w : weights) {
      weights_.push_back(w.to(at::kDouble).detach().clone().requires_grad_());
    }
  }

  ReferenceResult Run() {
    at::Tensor h = at::embedding(W("embedding"), batch_.tokens);
    for (int layer = 0; layer < static_cast<int>(model_.layers()); ++layer) {
      const std::string prefix = absl::StrCat("layers.", layer, ".");
      h = h + AttentionOf(Norm(h, W(prefix + "attention_norm")), prefix);
      const at::Tensor x = Norm(h, W(prefix + "feed_forward_norm"));
      h = h + (catalog_.IsMoe(layer) ? Moe(x, layer) : FeedForward(x, prefix + "dense."));
    }
    const at::Tensor head = model_.tie_head() ? W("embedding") : W("head");
    const at::Tensor logits = at::matmul(Norm(h, W("norm")), head.t());
    const at::Tensor wanted = batch_.targets.ge(0);
    const at::Tensor each =
        -at::log_softmax(logits, 1).gather(1, batch_.targets.clamp_min(0).unsqueeze(1)).squeeze(1);
    const at::Tensor loss = (each * wanted).sum();
    (loss * options_.loss_scale + aux_ * options_.aux_scale).backward();

    result_.loss_sum = loss.item<double>();
    result_.aux_loss = aux_.item<double>();
    result_.logits = logits.detach();
    for (const at::Tensor& w : weights_) {
      result_.gradients.push_back(w.grad().defined() ? w.grad() : at::zeros_like(w));
    }
    return result_;
  }

 private:
  const at::Tensor& W(const std::string& name) const { return weights_[catalog_.Find(name)]; }

  at::Tensor Norm(const at::Tensor& x, const at::Tensor& w) const {
    return x * at::rsqrt(x.square().mean(-1, true) + model_.norm_epsilon()) * w;
  }

  at::Tensor FeedForward(const at::Tensor& x, const std::string& prefix) const {
    const auto parts = at::matmul(x, W(prefix + "gate_up").t()).chunk(2, 1);
    return at::matmul(at::silu(parts[0]) * parts[1], W(prefix + "down").t());
  }

  // x [sequences, heads, length, width]
  at::Tensor Rotate(const at::Tensor& x) const {
    const int64_t width = x.size(3);
    const at::Tensor frequency = at::pow(
        model_.rope_base(), -at::arange(0, width, 2, at::kDouble) / static_cast<double>(width));
    const at::Tensor angle = at::outer(at::arange(x.size(2), at::kDouble), frequency);
    const at::Tensor c = at::cat({angle.cos(), angle.cos()}, 1);
    const at::Tensor s = at::cat({angle.sin(), angle.sin()}, 1);
    const auto half = x.chunk(2, 3);
    return x * c + at::cat({-half[1], half[0]}, 3) * s;
  }

  at::Tensor AttentionOf(const at::Tensor& x, const std::string& prefix) const {
    const int64_t heads = model_.heads(), kv = model_.kv_heads(), width = model_.head_width();
    const int64_t length = batch_.length;
    const at::Tensor qkv = at::matmul(x, W(prefix + "attention.qkv").t())
                               .view({batch_.sequences, length, heads + 2 * kv, width})
                               .transpose(1, 2);
    const auto normed = [&](const at::Tensor& each, const char* name) {
      return model_.qk_norm() ? Norm(each, W(prefix + name)) : each;
    };
    const at::Tensor q = Rotate(normed(qkv.narrow(1, 0, heads), "attention.q_norm"));
    const at::Tensor k = Rotate(normed(qkv.narrow(1, heads, kv), "attention.k_norm"))
                             .repeat_interleave(heads / kv, 1);
    const at::Tensor v = qkv.narrow(1, heads + kv, kv).repeat_interleave(heads / kv, 1);
    at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt(static_cast<double>(width));
    const at::Tensor position = at::arange(length, at::kLong);
    at::Tensor hidden =
        position.unsqueeze(0).gt(position.unsqueeze(1)).view({1, 1, length, length});
    if (batch_.document_starts.defined()) {
      const at::Tensor starts =
          batch_.document_starts.to(at::kLong).view({batch_.sequences, 1, length, 1});
      hidden = hidden.logical_or(position.view({1, 1, 1, length}).lt(starts));
    }
    scores = scores.masked_fill(hidden, -INFINITY);
    return at::matmul(
        at::matmul(at::softmax(scores, 3), v).transpose(1, 2).reshape({x.size(0), heads * width}),
        W(prefix + "attention.output").t());
  }

  at::Tensor Moe(const at::Tensor& x, int layer) {
    const std::string prefix = absl::StrCat("layers.", layer, ".moe.");
    const RouterSpec& rule = spec_.recipe().router();
    const int64_t experts = catalog_.pool_experts(layer), active = model_.moe().active();
    const int64_t tokens = x.size(0), nulls = catalog_.null_experts();
    const at::Tensor z = at::matmul(Seen(x, prefix), W(prefix + "router").t());
    const bool softmax = rule.score() == SOFTMAX;
    const at::Tensor s = softmax ? at::softmax(z, 1) : at::sigmoid(z);
    candidates_ = CandidatesOf(layer);
    const at::Tensor chosen =
        rule.select().has_top_p()
            ? ShareMask(s.detach(), rule.select().top_p(), active)
            : TopMask(Suited(s, prefix).masked_fill(candidates_ == 0, -INFINITY), active);
    at::Tensor mask = chosen.narrow(1, 0, experts);
    at::Tensor weight = s.narrow(1, 0, experts) * mask;
    if (rule.weight().renormalize()) weight = weight / weight.sum(1, true).clamp_min(1e-20);
    weight = weight * rule.weight().scale();
    const bool biased = catalog_.Find(prefix + "router_bias") != kNoParameter;
    AddAux(z, s, mask,
           biased ? TopMask(s.detach().masked_fill(candidates_ == 0, -INFINITY), active) : chosen,
           prefix);
    AddPoolAux(s, mask, layer);

    if (rule.select().has_capacity_factor()) {
      const double capacity =
          std::ceil(rule.select().capacity_factor() * static_cast<double>(tokens * active) /
                    static_cast<double>(experts + nulls));
      const at::Tensor kept = mask * mask.cumsum(0).le(capacity);
      result_.dropped += static_cast<int64_t>((mask - kept).sum().item<double>());
      mask = kept;
    }
    weight = weight * mask;
    at::Tensor y = at::zeros_like(x);
    int64_t id = 0;
    for (const int owner : catalog_.PoolLayers(layer)) {
      for (int e = 0; e < catalog_.experts(owner); ++e, ++id) {
        y = y + weight.select(1, id).unsqueeze(1) *
                    FeedForward(x, absl::StrCat("layers.", owner, ".moe.experts.", e, "."));
      }
    }
    if (model_.moe().shared_width() > 0) y = y + FeedForward(x, prefix + "shared.");
    return y;
  }

  // 1 for what can be chosen. (Which experts those are is the production code's; what follows from
  // it is not.)
  at::Tensor CandidatesOf(int layer) const {
    const SelectSpec& select = spec_.recipe().router().select();
    const int64_t pool = catalog_.pool_experts(layer);
    const at::Tensor all = at::ones({pool + catalog_.null_experts()}, at::kDouble);
    if (!select.has_candidates()) return all;
    const std::vector<int>& layers = catalog_.PoolLayers(layer);
    const int64_t own = catalog_.experts(layer);
    const auto place = std::find(layers.begin(), layers.end(), layer) - layers.begin();
    const at::Tensor mask = CandidateMask({.rule = &select.candidates(),
                                           .seed = spec_.train().seed(),
                                           .step = options_.step,
                                           .layer = layer,
                                           .own_begin = own * place,
                                           .own = own,
                                           .experts = pool});
    return mask.defined() ? mask.to(at::kDouble) : all;
  }

  // What the router's logits are linear in.
  at::Tensor Seen(const at::Tensor& x, const std::string& prefix) {
    const RouterSpec& rule = spec_.recipe().router();
    if (!rule.has_state()) return x;
    const at::Tensor u = at::matmul(x, W(prefix + "router_projection").t());
    if (!state_.defined() || rule.state().mode() == NOT_PASSED) state_ = at::zeros_like(u);
    if (rule.state().mode() == DETACH) state_ = state_.detach();
    state_ = at::gru_cell(u, state_, W("router_cell.input_weight"), W("router_cell.hidden_weight"),
                          W("router_cell.input_bias"), W("router_cell.hidden_bias"));
    return state_;
  }

  at::Tensor TopMask(const at::Tensor& scores, int64_t active) const {
    const at::Tensor chosen = std::get<1>(scores.topk(active, 1));
    return at::zeros_like(scores).scatter_(1, chosen, 1.0);
  }

  // The best experts whose betters do not yet sum up to the share.
  at::Tensor ShareMask(const at::Tensor& s, double share, int64_t most) const {
    const auto [best, order] = s.sort(1, /*descending=*/true);
    const at::Tensor taken = (best.cumsum(1) - best).lt(share).to(at::kDouble);
    taken.narrow(1, most, s.size(1) - most).zero_();
    return at::zeros_like(s).scatter_(1, order, taken);
  }

  // What the selection looks at: the scores with their bias, masked to the best groups.
  at::Tensor Suited(const at::Tensor& s, const std::string& prefix) const {
    const SelectSpec& select = spec_.recipe().router().select();
    at::Tensor suited = s.detach();
    const ParameterId bias = catalog_.Find(prefix + "router_bias");
    if (bias != kNoParameter) suited = suited + weights_[bias].detach();
    if (!select.has_group_limit()) return suited;
    const int64_t active = model_.moe().active(), limit = select.group_limit();
    const at::Tensor groups = suited.view({s.size(0), select.groups(), -1});
    const int64_t counted = select.group_score() == BEST ? 1 : std::max<int64_t>(1, active / limit);
    const at::Tensor best =
        std::get<0>(groups.topk(std::min(counted, groups.size(2)), 2)).sum(2);
    const at::Tensor allowed = TopMask(best, limit).unsqueeze(2).expand_as(groups);
    return groups.masked_fill(allowed == 0, -INFINITY).reshape(s.sizes());
  }

  void AddAux(const at::Tensor& z, const at::Tensor& s, const at::Tensor& mask,
              const at::Tensor& balanced, const std::string& prefix) {
    const BalanceSpec& rule = spec_.recipe().router().balance();
    const int64_t parts = rule.scope() == SEQUENCE ? batch_.sequences : 1;
    const at::Tensor available = s * candidates_;
    const at::Tensor p = available / available.sum(1, true);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t tokens = s.size(0) / parts;
      aux_ = aux_ + AuxOfPart(p.narrow(0, part * tokens, tokens),
                              balanced.narrow(0, part * tokens, tokens), prefix) /
                        static_cast<double>(parts);
    }
    aux_ = aux_ - rule.entropy() * (p * p.clamp_min(1e-300).log()).sum(1).mean();
    aux_ = aux_ + rule.z_loss() * at::logsumexp(z, {1}).square().mean();
    std::vector<int64_t>& counts = result_.counts.emplace_back();
    const at::Tensor by_expert = mask.sum(0);
    for (int64_t e = 0; e < by_expert.size(0); ++e) {
      counts.push_back(static_cast<int64_t>(by_expert[e].item<double>()));
    }
  }

  // beta * U * sum_e f_e P_e over the tokens of all layers of a pool of U experts, once its last
  // layer is there.
  void AddPoolAux(const at::Tensor& s, const at::Tensor& mask, int layer) {
    const double beta = spec_.recipe().router().balance().pool_coefficient();
    if (beta == 0) return;
    const at::Tensor available = s * candidates_;
    pool_p_.push_back(available / available.sum(1, true));
    pool_mask_.push_back(mask);
    if (pool_p_.size() < catalog_.PoolLayers(layer).size()) return;
    const at::Tensor f = at::cat(pool_mask_).sum(0) / at::cat(pool_mask_).sum();
    aux_ = aux_ + beta * static_cast<double>(s.size(1)) * (f * at::cat(pool_p_).mean(0)).sum();
    pool_p_.clear();
    pool_mask_.clear();
  }

  // DeepSeekMoE eq. 12-17 and DeepSeek-V2 eq. 29-31, over the tokens given.
  at::Tensor AuxOfPart(const at::Tensor& p, const at::Tensor& mask,
                       const std::string& prefix) const {
    const RouterSpec& router = spec_.recipe().router();
    const BalanceSpec& rule = router.balance();
    const double experts = candidates_.sum().item<double>(),
                 tokens = static_cast<double>(p.size(0));
    at::Tensor counts = mask.sum(0);
    const ParameterId load = catalog_.Find(prefix + "router_load");
    if (load != kNoParameter) counts = weights_[load].detach();
    if (const int64_t nulls = catalog_.null_experts(); nulls > 0) {
      const at::Tensor shared = counts.narrow(0, counts.size(0) - nulls, nulls);
      shared.fill_(shared.mean());
    }
    const at::Tensor f = counts * experts / counts.sum();
    const at::Tensor mean = p.mean(0);
    const int64_t groups = rule.has_groups() ? rule.groups() : router.select().groups();
    const double limit = router.select().has_group_limit() && !rule.has_groups()
                             ? router.select().group_limit()
                             : static_cast<double>(groups);
    const at::Tensor group_p = mean.view({groups, -1}).sum(1);
    const at::Tensor sent =
        std::get<0>(mask.view({mask.size(0), groups, -1}).max(2)).sum(0);
    return rule.coefficient() * (f * mean).sum() +
           rule.group_coefficient() * (f.view({groups, -1}).mean(1) * group_p).sum() +
           rule.communication() *
               (sent * static_cast<double>(groups) / (limit * tokens) * group_p).sum();
  }

  at::Tensor state_;       // of the recurrent router
  at::Tensor candidates_;  // of the layer
  // Of the layers of the pool so far.
  std::vector<at::Tensor> pool_p_;
  std::vector<at::Tensor> pool_mask_;
  const JobSpec& spec_;
  const ModelSpec& model_;
  const ParameterCatalog& catalog_;
  const MicroBatch& batch_;
  const PassOptions& options_;
  std::vector<at::Tensor> weights_;
  at::Tensor aux_ = at::zeros({}, at::kDouble);
  ReferenceResult result_;
};

}  // namespace

ReferenceResult RunReference(const JobSpec& spec, const ParameterCatalog& catalog,
                             const std::vector<at::Tensor>& weights, const MicroBatch& batch,
                             const PassOptions& options) {
  return Reference(spec, catalog, weights, batch, options).Run();
}

}  // namespace moesaic
