#include "trainer/metrics/routing_metrics.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

TEST(MaxVio, IsTheBusiestBeyondTheMeanOverTheMean) {
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<double>{2, 2, 2}), 0);
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<double>{0, 0, 9}), 2);
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<double>{1, 3}), 0.5);
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<double>{0, 0}), 0);
  EXPECT_DOUBLE_EQ(MaxVio(std::vector<double>{}), 0);
}

TEST(RoutingMetrics, AreOfAllTokensOfTheStep) {
  RoutingMetrics metrics;
  // Ten tokens: two chose none, five one, three two; 11 pairs and 9 nulls.
  Add({.layer = 1, .candidates = 3},
      {.counts = {6, 4, 1},
       .fan_out = {2, 5, 3, 0},
       .nulls = 9,
       .dropped = 2,
       .wire_rows = 5,
       .entropy = static_cast<int64_t>(10 * 0.75 * kEntropyUnit)},
      metrics);
  Add({.layer = 2, .candidates = 3}, {.counts = {0, 0, 0}, .fan_out = {0, 0, 0, 0}}, metrics);
  ASSERT_EQ(metrics.layers.size(), 2u);
  const LayerRoutingMetrics& layer = metrics.layers[0];
  EXPECT_DOUBLE_EQ(layer.max_vio, 18.0 / 11 - 1);
  EXPECT_DOUBLE_EQ(layer.entropy, 0.75);
  EXPECT_DOUBLE_EQ(layer.active, 1.1);
  EXPECT_EQ(layer.most_active, 2);
  EXPECT_DOUBLE_EQ(layer.dropped, 2.0 / 11);
  EXPECT_DOUBLE_EQ(layer.null, 0.45);
  EXPECT_EQ(metrics.rows, 9);
  EXPECT_EQ(metrics.wire_rows, 5);
  EXPECT_DOUBLE_EQ(MeanOfLayers(metrics, &LayerRoutingMetrics::entropy), 0.375);
  EXPECT_EQ(metrics.layers[1].entropy, 0);  // no tokens
}

}  // namespace
}  // namespace moesaic
