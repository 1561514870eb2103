// candidates: which experts of a layer's pool may be chosen at a step. Progressive scaling routing
// (ReXMoE, arXiv 2510.17483, section 3.2): few at first, more and more random ones later.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "proto/job.pb.h"

namespace moesaic {

struct CandidateInputs {
  const CandidatesSpec* rule = nullptr;  // resolved: with steps and `from`
  uint64_t seed = 0;
  uint64_t step = 0;  // 0-based
  int layer = 0;
  // The layer's own experts in its pool of `experts`.
  int64_t own_begin = 0;
  int64_t own = 0;
  int64_t experts = 0;
};

// N_t: how many may be chosen; at most `experts`.
int64_t CandidateCount(const CandidateInputs& inputs);

// bool [experts], a function of the inputs alone, so that it is the same on every rank and after a
// resume; undefined where all may be chosen.
at::Tensor CandidateMask(const CandidateInputs& inputs);

}  // namespace moesaic
