#include "trainer/metrics/validation_routing.h"

namespace moesaic {

nlohmann::ordered_json ValidationRoutingJson(const ValidationRouting& validation) {
  nlohmann::ordered_json json = RoutingJson(validation.routing, /*loads=*/true);
  nlohmann::ordered_json& pairs = json["mutual_information"] = nlohmann::ordered_json::array();
  for (const LayerPairInformation& pair : validation.information) {
    pairs.push_back({{"layers", {pair.first, pair.second}},
                     {"nats", pair.information},
                     {"shuffled", pair.shuffled}});
  }
  return json;
}

}  // namespace moesaic
