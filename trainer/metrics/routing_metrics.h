// RoutingMetrics: what is said of the routing of a step or of a validation pass.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "trainer/metrics/layer_routing.h"

namespace moesaic {

// (busiest - mean) / mean, 0 for no load: MaxVio (Wang et al., arXiv 2408.15664). Of a step's loads
// it is the paper's MaxVio_batch, of those of a whole validation pass its MaxVio_global.
double MaxVio(std::span<const double> loads);

struct LayerRoutingMetrics {
  int layer = 0;             // of the model
  double max_vio = 0;
  double entropy = 0;  // of a token's probabilities over the experts, in nats; the tokens' mean
  double active = 0;         // experts a token, before any drop; the tokens' mean
  int64_t most_active = 0;   // experts of the token with the most
  double dropped = 0;        // share of the pairs of tokens and experts that was beyond capacity
  double null = 0;           // share of what was chosen that is a null expert
  int64_t candidates = 0;    // experts that could be chosen
  std::vector<double> loads = {};  // by expert of the layer's pool: pairs, before any drop
};

struct RoutingMetrics {
  std::vector<LayerRoutingMetrics> layers = {};  // those with experts
  int64_t rows = 0;       // pairs of tokens and experts that were computed
  int64_t wire_rows = 0;  // of them, those that another rank computed
  // What these rows cost on the wire: their hidden states there and back, and in a training step
  // the gradients of both.
  int64_t wire_bytes = 0;
};

// Appends a layer whose `layer` and `candidates` are given, with what its counts say.
void Add(LayerRoutingMetrics layer, const LayerRouting& counts, RoutingMetrics& metrics);

// Mean over the layers; 0 for none.
double MeanOfLayers(const RoutingMetrics& metrics, double LayerRoutingMetrics::*field);

// An object of lists by layer: layers, max_vio, entropy, active, most_active, dropped, null,
// candidates, and, where `loads`, loads; and the numbers rows, wire_rows, wire_bytes.
nlohmann::ordered_json RoutingJson(const RoutingMetrics& metrics, bool loads);

}  // namespace moesaic
