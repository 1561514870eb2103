// TokenExchange: carries rows of one MoE layer to the ranks that hold their experts, and results
// back, as a DispatchPlan says. Dropless: counts first, then exactly the rows; nothing is padded on
// the wire.
//
// Kinds: "flat" (one all-to-all over the expert communicator).
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "parallel/comm/communicator.h"
#include "parallel/layout/dispatch_plan.h"

namespace at {
class Tensor;
}

namespace moesaic {

// Thread-compatible; collective over the expert communicator: all its ranks make the same calls.
class TokenExchange {
 public:
  virtual ~TokenExchange() = default;
  virtual absl::string_view Name() const = 0;

  // counts: my sorted rows an expert (int64, `experts` of them). Returns all ranks' counts, by
  // (rank of the expert communicator, expert).
  virtual std::vector<int64_t> ShareCounts(std::span<const int64_t> counts) = 0;

  // sorted [send_rows, width], contiguous, any dtype -> [receive_rows, width] in the holder's
  // order.
  virtual at::Tensor Dispatch(const at::Tensor& sorted, const DispatchPlan& plan) = 0;
  // The way back: received [receive_rows, width] -> [send_rows, width] in the sender's order.
  virtual at::Tensor Return(const at::Tensor& received, const DispatchPlan& plan) = 0;
};

// `expert_communicator` must outlive the exchange. InvalidArgument names the known kinds.
absl::StatusOr<std::unique_ptr<TokenExchange>> MakeTokenExchange(absl::string_view kind,
                                                                 Communicator* expert_communicator);

}  // namespace moesaic
