// One small training run over any layout, and everything it computed: what equality tests compare.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "parallel/comm/communicator.h"
#include "parallel/layout/mesh.h"
#include "proto/checkpoint.pb.h"
#include "proto/job.pb.h"
#include "trainer/loop/trainer.h"

namespace moesaic {

struct RunResult {
  std::vector<double> losses;  // by step
  std::vector<double> aux_losses;
  std::vector<double> norms;
  std::vector<StepOutcome> steps;  // as rank 0 saw them
  double validation_loss = 0;
  // Routing metrics as JSON, without what depends on the layout: by step, and of the validation.
  std::vector<std::string> routing;
  std::string validation_routing;
  // By parameter name, from its owner: the last step's gradient and the weights after it.
  std::map<std::string, at::Tensor> gradients;
  std::map<std::string, at::Tensor> weights;
  std::map<std::string, at::Tensor> first_moments;  // where the optimizer has them
  std::map<std::string, at::Tensor> second_moments;
  TrainingState state;  // the same on every rank
};

struct RunLayout {
  int ranks = 1;
  int expert = 1;          // ranks that hold one copy of the experts; ranks / expert copies
  int ranks_per_node = 0;  // 0: all on one node
  // Holders by layer and expert; empty: ExpertPlacement::Even.
  std::vector<std::vector<std::vector<int>>> holders = {};
};

Mesh MeshOf(const RunLayout& layout);

// A resolved job of a tiny model (2 layers, hidden 32, grouped-query attention, a shared expert) on
// a random corpus written under `folder`. Ten micro-batches of 2 samples a step, so most rank
// counts get uneven numbers.
JobSpec TinyJob(const std::string& folder, int experts);

// `spec` with another recipe: `preset`, and what `more` changes of it. Resolved and valid.
JobSpec WithRecipe(JobSpec spec, const std::string& preset,
                   const std::function<void(RecipeSpec&)>& more);

// Trains over in-process ranks (threads of this process), from where `from` ended where it is
// given.
RunResult TrainInProcess(const JobSpec& spec, const RunLayout& layout, int steps,
                         const RunResult* from = nullptr);

// Trains as one rank of `world`; the result holds what this rank owns.
RunResult TrainAsRank(const JobSpec& spec, const RunLayout& layout, int steps, Communicator& world,
                      const RunResult* from = nullptr);

// Expects every loss, gradient, weight and moment, and the state, to have equal bits.
void ExpectSameBits(const RunResult& a, const RunResult& b);

// Expects losses within `tolerance` (relative), gradients within `tolerance` of each tensor's
// largest element, and the same of weights where `weights`.
void ExpectClose(const RunResult& a, const RunResult& b, double tolerance, bool weights);

}  // namespace moesaic
