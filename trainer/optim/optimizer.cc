#include "trainer/optim/optimizer.h"

#include <ATen/ATen.h>

#include <cmath>
#include <span>

#include "trainer/model/kernels/optimizer_kernels.h"

namespace moesaic {
namespace {

template <typename T>
std::span<T> Flat(const at::Tensor& tensor) {
  return {static_cast<T*>(tensor.data_ptr()), static_cast<size_t>(tensor.numel())};
}

// Decoupled weight decay (Loshchilov and Hutter 2019).
class AdamW : public Optimizer {
 public:
  explicit AdamW(const AdamWSpec& spec) : spec_(spec) {}

  absl::string_view Name() const override { return "adamw"; }
  bool HasMoments() const override { return true; }
  double base_learning_rate() const override { return spec_.lr(); }

  void Update(const ParameterSpec& spec, ParameterId id, const at::Tensor& gradient,
              const UpdateScalars& scalars, ParameterStore& store) const override {
    const AdamWSpans spans = {.gradient = Flat<const float>(gradient),
                              .master = Flat<float>(store.master(id)),
                              .m = Flat<float>(store.first_moment(id)),
                              .v = Flat<float>(store.second_moment(id))};
    const AdamWCoefficients coefficients = Coefficients(spec, scalars);
    const at::Tensor compute = store.Lease(id);
    if (compute.scalar_type() == at::kBFloat16) {
      AdamWStep(coefficients, spans, Flat<Bf16>(compute));
    } else {
      AdamWStep(coefficients, spans, std::span<float>());  // the compute weight is the master
    }
  }

 private:
  AdamWCoefficients Coefficients(const ParameterSpec& spec, const UpdateScalars& scalars) const {
    const auto t = static_cast<double>(scalars.update);
    return {.lr = static_cast<float>(spec_.lr() * scalars.learning_rate_factor),
            .beta1 = static_cast<float>(spec_.beta1()),
            .beta2 = static_cast<float>(spec_.beta2()),
            .epsilon = static_cast<float>(spec_.epsilon()),
            .weight_decay = spec.decay ? static_cast<float>(spec_.weight_decay()) : 0.0f,
            .bias_correction1 = static_cast<float>(1 - std::pow(spec_.beta1(), t)),
            .bias_correction2 = static_cast<float>(1 - std::pow(spec_.beta2(), t)),
            .gradient_scale = static_cast<float>(scalars.gradient_scale)};
  }

  const AdamWSpec spec_;
};

// Plain gradient descent: no momentum, no decay. What tests compare weights with.
class Sgd : public Optimizer {
 public:
  explicit Sgd(const SgdSpec& spec) : spec_(spec) {}

  absl::string_view Name() const override { return "sgd"; }
  bool HasMoments() const override { return false; }
  double base_learning_rate() const override { return spec_.lr(); }

  void Update(const ParameterSpec&, ParameterId id, const at::Tensor& gradient,
              const UpdateScalars& scalars, ParameterStore& store) const override {
    store.master(id).sub_(gradient,
                          spec_.lr() * scalars.learning_rate_factor * scalars.gradient_scale);
    store.RefreshCompute(id);
  }

 private:
  const SgdSpec spec_;
};

}  // namespace

std::unique_ptr<Optimizer> MakeOptimizer(const OptimizerSpec& spec) {
  switch (spec.kind_case()) {
    case OptimizerSpec::kSgd:
      return std::make_unique<Sgd>(spec.sgd());
    case OptimizerSpec::kAdamw:
    case OptimizerSpec::KIND_NOT_SET:
      return std::make_unique<AdamW>(spec.adamw());
  }
  return nullptr;
}

}  // namespace moesaic
