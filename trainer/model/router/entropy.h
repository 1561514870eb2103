// How undecided a router is: the entropy of each token's probabilities over the experts.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace moesaic {

// By token: -sum_i p_i log p_i in nats, p_i the score of expert i divided by the sum of all.
// scores fp32 [n, E], none negative.
std::vector<double> Entropies(const at::Tensor& scores);

// dscores += factor * the gradient of the sum of all tokens' entropies, fp32 [n, E].
void AddEntropyGradient(const at::Tensor& scores, double factor, at::Tensor& dscores);

}  // namespace moesaic
