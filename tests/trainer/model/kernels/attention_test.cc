#include "tests/trainer/model/kernels/close.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

int64_t QkvWidth(const AttentionShape& s) { return (s.heads + 2 * s.kv_heads) * s.head_width; }

// Plain attention in fp64 on a leaf, differentiable.
at::Tensor Reference(const AttentionShape& s, const at::Tensor& qkv, const at::Tensor& starts) {
  at::Tensor all = qkv.view({s.sequences, s.length, s.heads + 2 * s.kv_heads, s.head_width})
                       .transpose(1, 2);
  const int64_t group = s.heads / s.kv_heads;
  at::Tensor q = all.narrow(1, 0, s.heads);
  at::Tensor k = all.narrow(1, s.heads, s.kv_heads).repeat_interleave(group, 1);
  at::Tensor v = all.narrow(1, s.heads + s.kv_heads, s.kv_heads).repeat_interleave(group, 1);
  at::Tensor index = at::arange(s.length);
  at::Tensor hidden = (index.unsqueeze(0) > index.unsqueeze(1)).view({1, 1, s.length, s.length});
  if (starts.defined()) {
    hidden =
        hidden.logical_or(index.view({1, 1, 1, -1}) < starts.view({s.sequences, 1, s.length, 1}));
  }
  at::Tensor scores = at::matmul(q, k.transpose(2, 3)) / std::sqrt((double)s.head_width);
  at::Tensor p = at::softmax(scores.masked_fill(hidden, -INFINITY), -1);
  return at::matmul(p, v).transpose(1, 2).reshape({s.sequences * s.length, s.heads * s.head_width});
}

struct Passes {
  at::Tensor out, lse, dqkv;
};

Passes RunKernels(const AttentionShape& s, const at::Tensor& qkv, const at::Tensor& starts,
               const at::Tensor& dout) {
  Passes r{at::empty_like(dout), at::empty({s.sequences, s.heads, s.length}), at::empty_like(qkv)};
  Attention(s, qkv, starts, r.out, r.lse);
  AttentionBackward(s, dout, qkv, starts, r.out, r.lse, r.dqkv);
  return r;
}

// bf16: probabilities and score gradients are rounded to 8 bits on the way.
double AttentionTolerance(at::ScalarType type) { return type == at::kFloat ? 5e-6 : 0.02; }

void ExpectMatches(const AttentionShape& s, at::ScalarType type, const at::Tensor& starts) {
  const int64_t n = s.sequences * s.length;
  at::Tensor qkv = (at::randn({n, QkvWidth(s)}) * 1.5).to(type);
  at::Tensor dout = at::randn({n, s.heads * s.head_width}).to(type);
  Passes run = RunKernels(s, qkv, starts, dout);
  at::Tensor leaf = Leaf(qkv);
  at::Tensor want = Reference(s, leaf, starts);
  (want * dout.to(at::kDouble)).sum().backward();
  ExpectClose(run.out, want.detach(), AttentionTolerance(type));
  ExpectClose(run.dqkv, leaf.grad(), AttentionTolerance(type));
}

TEST(Attention, MatchesAutograd) {
  at::manual_seed(8);
  for (at::ScalarType type : kComputeTypes) {
    for (AttentionShape s : {AttentionShape{1, 1, 1, 1, 2}, AttentionShape{2, 7, 2, 2, 6},
                             AttentionShape{1, 64, 2, 1, 64}, AttentionShape{1, 65, 1, 1, 20},
                             AttentionShape{2, 150, 4, 2, 32}, AttentionShape{1, 256, 6, 2, 64},
                             AttentionShape{1, 130, 1, 1, 128}, AttentionShape{0, 16, 2, 1, 8}}) {
      SCOPED_TRACE(testing::Message() << type << " length " << s.length << " heads " << s.heads
                                      << "/" << s.kv_heads << " width " << s.head_width);
      ExpectMatches(s, type, at::Tensor());
    }
  }
}

TEST(Attention, StopsAtDocumentStarts) {
  at::manual_seed(9);
  const AttentionShape s{2, 200, 4, 2, 16};
  at::Tensor starts = at::zeros({400}, at::kInt);
  for (int64_t t = 0; t < 400; ++t) {
    const int64_t i = t % 200;
    starts[t] = t < 200 ? (i < 5 ? 0 : i < 90 ? 5 : i < 91 ? 90 : 91) : (i < 128 ? 0 : 128);
  }
  for (at::ScalarType type : kComputeTypes) {
    ExpectMatches(s, type, starts);
    // A token that starts a document sees itself alone: its output is its v.
    at::Tensor qkv = at::randn({400, QkvWidth(s)}).to(type), out = at::empty({400, 64}, type);
    Attention(s, qkv, starts, out, at::Tensor());
    at::Tensor v = qkv[90].narrow(0, 6 * 16, 32).view({2, 1, 16}).expand({2, 2, 16}).reshape({64});
    ExpectClose(out[90], v, Tolerance(type));
  }
}

TEST(Attention, TiesGiveTheMean) {
  const AttentionShape s{1, 48, 1, 1, 16};
  at::Tensor qkv = at::zeros({48, 48});
  qkv.narrow(1, 32, 16).copy_(at::randn({48, 16}));
  at::Tensor out = at::empty({48, 16});
  Attention(s, qkv, at::Tensor(), out, at::Tensor());
  ExpectClose(out[47], qkv.narrow(1, 32, 16).mean(0), 1e-6);
}

TEST(Attention, HugeScoresStayFinite) {
  const AttentionShape s{1, 40, 1, 1, 8};
  at::Tensor qkv = at::randn({40, 24}) * 200;
  at::Tensor dout = at::randn({40, 8});
  Passes run = RunKernels(s, qkv, at::Tensor(), dout);
  EXPECT_TRUE(run.out.isfinite().all().item<bool>());
  EXPECT_TRUE(run.dqkv.isfinite().all().item<bool>());
}

TEST(Attention, DecodingWithACacheEqualsTheWhole) {
  at::manual_seed(10);
  for (at::ScalarType type : kComputeTypes) {
    const AttentionShape whole{2, 30, 4, 2, 16};
    at::Tensor qkv = at::randn({60, QkvWidth(whole)}).to(type), want = at::empty({60, 64}, type);
    Attention(whole, qkv, at::Tensor(), want, at::Tensor());
    at::Tensor k = at::zeros({2, 33, 2, 16}, type), v = at::zeros({2, 33, 2, 16}, type);
    int64_t past = 0;
    for (int64_t length : {17, 1, 1, 11}) {  // a prompt, two tokens, and a few at once
      AttentionShape part = whole;
      part.length = length;
      at::Tensor rows =
          qkv.view({2, 30, -1}).narrow(1, past, length).reshape({2 * length, -1}).contiguous();
      at::Tensor out = at::empty({2 * length, 64}, type);
      AttentionWithCache(part, rows, past, k, v, out);
      ExpectClose(out.view({2, length, 64}), want.view({2, 30, 64}).narrow(1, past, length),
                  type == at::kFloat ? 3e-6 : 0.02);
      past += length;
    }
    AttentionShape too_much = whole;
    too_much.length = 4;
    at::Tensor rows = at::zeros({8, QkvWidth(whole)}, type), out = at::zeros({8, 64}, type);
    EXPECT_THROW(AttentionWithCache(too_much, rows, 30, k, v, out), c10::Error);
  }
}

TEST(Rope, RotatesAsHuggingFaceAndBack) {
  at::manual_seed(11);
  for (at::ScalarType type : kComputeTypes) {
    for (int64_t w : {2, 20, 64}) {
      const AttentionShape s{2, 9, 4, 2, w};
      RopeTable table = MakeRopeTable(16, w, 10000.0);
      at::Tensor qkv = at::randn({18, QkvWidth(s)}).to(type), rotated = qkv.clone();
      ApplyRope(s, table, /*first_position=*/5, /*inverse=*/false, rotated);

      at::Tensor x = qkv.to(at::kDouble).view({2, 9, 8, w});
      at::Tensor frequency = at::pow(10000.0, -at::arange(0, w, 2).to(at::kDouble) / w);
      at::Tensor angle = at::outer(at::arange(5, 14).to(at::kDouble), frequency);
      angle = at::cat({angle, angle}, 1).view({1, 9, 1, w});
      at::Tensor turned = at::cat({-x.narrow(3, w / 2, w / 2), x.narrow(3, 0, w / 2)}, 3);
      at::Tensor want = x * angle.cos() + turned * angle.sin();
      want.narrow(2, 6, 2).copy_(x.narrow(2, 6, 2));  // v is not rotated
      ExpectClose(rotated, want.view({18, -1}), Tolerance(type));

      ApplyRope(s, table, 5, /*inverse=*/true, rotated);
      ExpectClose(rotated, qkv, Tolerance(type));
      EXPECT_THROW(ApplyRope(s, table, 8, false, rotated), c10::Error);
    }
  }
}

}  // namespace
}  // namespace moesaic
