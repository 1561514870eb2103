// observe: what there is to say of a routing, in the whole numbers that are added over
// micro-batches and ranks.
#pragma once

#include "trainer/metrics/layer_routing.h"
#include "trainer/model/router/routing.h"

namespace moesaic {

// All but wire_rows, which the router cannot know; `best` only where asked.
LayerRouting Observe(const Routing& routing, bool best);

}  // namespace moesaic
