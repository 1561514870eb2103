#include "trainer/loop/trained_model.h"

#include <utility>

#include "trainer/catalog/write_plan.h"

namespace moesaic {

TrainedModel::TrainedModel(const TrainedModelInputs& in, ParameterCatalog all)
    : catalog(std::move(all)),
      store(catalog, *in.mesh, *in.placement,
            {.rank = in.rank, .compute = in.compute, .moments = in.moments}),
      transformer({.spec = in.spec,
                   .catalog = &catalog,
                   .recipe = RecipeAt(*in.spec, 0),
                   .parallel = {.mesh = in.mesh,
                                .placement = in.placement,
                                .rank = in.rank,
                                .exchange = in.exchange},
                   .positions = 0}),
      gradients({.catalog = &catalog,
                 .mesh = in.mesh,
                 .placement = in.placement,
                 .data = in.data,
                 .reproducible = in.spec->train().reproducible()}),
      writers(CheckpointWriters(catalog, *in.mesh, *in.placement)) {
  for (int layer = 0; layer < catalog.layers(); ++layer) {
    if (catalog.IsMoe(layer)) moe_layers.push_back(layer);
  }
}

}  // namespace moesaic
