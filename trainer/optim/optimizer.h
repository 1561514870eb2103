// Optimizer: how one parameter steps, given its reduced gradient. Kinds: adamw, sgd.
#pragma once

#include <cstdint>
#include <memory>

#include <ATen/core/Tensor.h>

#include "absl/strings/string_view.h"
#include "proto/job.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/optim/parameter_store.h"

namespace moesaic {

// What is the same for every parameter of a step.
struct UpdateScalars {
  double learning_rate_factor = 1;  // of the schedule
  double gradient_scale = 1;        // clipping: every gradient is multiplied by it
  uint64_t update = 1;              // 1-based count of steps that were not skipped
};

// Stateless: moments live in the store. Thread-compatible.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  virtual absl::string_view Name() const = 0;
  // Whether a parameter has m and v (and the checkpoint ADAM_M and ADAM_V objects).
  virtual bool HasMoments() const = 0;
  virtual double base_learning_rate() const = 0;

  // Steps an owned parameter: `gradient` fp32, of its shape. Rewrites the compute weight too.
  virtual void Update(const ParameterSpec& spec, ParameterId id, const at::Tensor& gradient,
                      const UpdateScalars& scalars, ParameterStore& store) const = 0;
};

// The optimizer of a resolved job.
std::unique_ptr<Optimizer> MakeOptimizer(const OptimizerSpec& spec);

}  // namespace moesaic
