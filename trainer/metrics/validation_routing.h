// ValidationRouting: what routers did with the tokens of a validation pass.
#pragma once

#include <nlohmann/json.hpp>
#include <vector>

#include "trainer/metrics/mutual_information.h"
#include "trainer/metrics/routing_metrics.h"

namespace moesaic {

struct ValidationRouting {
  RoutingMetrics routing = {};  // without layers for a model without experts
  std::vector<LayerPairInformation> information = {};
};

// RoutingJson with loads, and mutual_information: a list of objects with layers (two), nats and
// shuffled. A value that is not finite is null.
nlohmann::ordered_json ValidationRoutingJson(const ValidationRouting& validation);

}  // namespace moesaic
