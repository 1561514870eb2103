#include "tests/trainer/model/kernels/close.h"
#include "trainer/model/kernels/kernels.h"

namespace moesaic {
namespace {

at::Tensor Index(std::vector<int64_t> values) { return at::tensor(values, at::kLong); }

TEST(Rows, GatherAndEmbeddingCopyRows) {
  at::manual_seed(3);
  for (at::ScalarType type : kComputeTypes) {
    at::Tensor x = at::randn({5, 19}).to(type), index = Index({4, 0, 0, 3});
    at::Tensor out = at::empty({4, 19}, type);
    GatherRows(x, index, out);
    EXPECT_TRUE(at::equal(out, x.index_select(0, index)));
    EmbeddingLookup(x, index, out);
    EXPECT_TRUE(at::equal(out, x.index_select(0, index)));
    at::Tensor none = at::empty({0, 19}, type);
    GatherRows(x, at::empty({0}, at::kLong), none);
    EXPECT_THROW(GatherRows(x, Index({0, 1, 2, 5}), out), c10::Error);
  }
}

struct Combination {
  at::Tensor rows, position, weights, add, dout;
};

// 4 tokens, fan-out 3; token 2 has no row at all.
Combination MakeCombination(at::ScalarType type, int64_t d) {
  at::manual_seed(4);
  return {at::randn({7, d}).to(type),
          Index({6, 0, -1, 1, 2, 3, -1, -1, -1, -1, 5, 4}).view({4, 3}),
          at::randn({4, 3}), at::randn({4, d}).to(type), at::randn({4, d}).to(type)};
}

at::Tensor Reference(const at::Tensor& rows, const at::Tensor& position,
                     const at::Tensor& weights) {
  at::Tensor chosen = rows.index_select(0, position.clamp_min(0).flatten())
                          .view({position.size(0), position.size(1), rows.size(1)});
  return (chosen * (weights * position.ge(0)).unsqueeze(-1)).sum(1);
}

TEST(Rows, CombineMatchesAutogradAndSkipsMinusOne) {
  for (at::ScalarType type : kComputeTypes) {
    for (int64_t d : {1, 23, 256}) {
      SCOPED_TRACE(testing::Message() << type << " width " << d);
      Combination c = MakeCombination(type, d);
      at::Tensor out = at::empty({4, d}, type);
      at::Tensor drows = at::full({7, d}, 7.0).to(type), dweights = at::full({4, 3}, 7.0f);
      CombineRows(c.rows, c.position, c.weights, c.add, out);
      CombineRowsBackward(c.dout, c.rows, c.position, c.weights, drows, dweights);

      at::Tensor rows = Leaf(c.rows), weights = Leaf(c.weights);
      at::Tensor want = Reference(rows, c.position, weights);
      (want * c.dout.to(at::kDouble)).sum().backward();
      ExpectClose(out, want.detach() + c.add.to(at::kDouble), Tolerance(type));
      ExpectClose(drows, rows.grad(), Tolerance(type));
      ExpectClose(dweights, weights.grad(), 3e-6);

      CombineRows(c.rows, c.position, at::Tensor(), at::Tensor(), out);
      ExpectClose(out, Reference(rows.detach(), c.position, at::ones({4, 3})), Tolerance(type));
    }
  }
}

TEST(Rows, CombineOfNoTokensOrNoRows) {
  at::Tensor rows = at::empty({0, 8}), out = at::empty({2, 8}), none;
  CombineRows(rows, at::full({2, 2}, -1, at::kLong), at::ones({2, 2}), none, out);
  EXPECT_TRUE(at::equal(out, at::zeros({2, 8})));
  at::Tensor empty = at::empty({0, 8});
  CombineRows(rows, at::empty({0, 2}, at::kLong), at::empty({0, 2}), none, empty);
  EXPECT_THROW(CombineRows(rows, at::zeros({2, 2}, at::kLong), none, none, out), c10::Error);
}

TEST(Rows, EmbeddingBackwardAddsRepeatedTokensInOrder) {
  at::manual_seed(5);
  for (at::ScalarType type : kComputeTypes) {
    at::Tensor dy = at::randn({6, 37}).to(type), tokens = Index({2, 9, 2, 0, 2, 9});
    at::Tensor gradient = at::full({10, 37}, 0.25f);
    EmbeddingBackward(dy, tokens, /*accumulate=*/true, gradient);
    at::Tensor want = at::full({10, 37}, 0.25).index_add(0, tokens, dy.to(at::kFloat));
    ExpectClose(gradient, want, 1e-6);
    EmbeddingBackward(dy, tokens, /*accumulate=*/false, gradient);
    ExpectClose(gradient, at::zeros({10, 37}).index_add(0, tokens, dy.to(at::kFloat)), 1e-6);
    EXPECT_THROW(EmbeddingBackward(dy, Index({2, 9, 2, 0, 2, 10}), true, gradient), c10::Error);
  }
}

}  // namespace
}  // namespace moesaic
