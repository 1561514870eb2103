#include "parallel/expert/token_exchange.h"

#include <ATen/ATen.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moesaic {
namespace {

// By rank: the pieces of memory behind ranges of rows of `tensor`.
template <typename Piece>
class RowPieces {
 public:
  RowPieces(const at::Tensor& tensor, const std::vector<std::vector<RowRange>>& ranges)
      : lists_(ranges.size()), spans_(ranges.size()) {
    const int64_t row_bytes = tensor.size(1) * tensor.element_size();
    char* base = static_cast<char*>(tensor.data_ptr());
    for (size_t rank = 0; rank < ranges.size(); ++rank) {
      for (const RowRange& range : ranges[rank]) {
        lists_[rank].push_back({base + range.begin * row_bytes, range.rows * row_bytes});
      }
      spans_[rank] = lists_[rank];
    }
  }

  std::span<const std::span<const Piece>> get() const { return spans_; }

 private:
  std::vector<std::vector<Piece>> lists_;
  std::vector<std::span<const Piece>> spans_;
};

// One all-to-all over the expert communicator, straight from rows to rows.
class FlatExchange : public TokenExchange {
 public:
  explicit FlatExchange(Communicator* communicator) : communicator_(*communicator) {}

  absl::string_view Name() const override { return "flat"; }

  std::vector<int64_t> ShareCounts(std::span<const int64_t> counts) override {
    std::vector<int64_t> all(counts.size() * communicator_.size());
    communicator_.AllGather(counts.data(), counts.size_bytes(), all.data());
    return all;
  }

  at::Tensor Dispatch(const at::Tensor& sorted, const DispatchPlan& plan) override {
    return Move(sorted, plan.send, plan.send_rows, plan.receive, plan.receive_rows);
  }

  at::Tensor Return(const at::Tensor& received, const DispatchPlan& plan) override {
    return Move(received, plan.receive, plan.receive_rows, plan.send, plan.send_rows);
  }

 private:
  at::Tensor Move(const at::Tensor& rows, const std::vector<std::vector<RowRange>>& from,
                  int64_t from_rows, const std::vector<std::vector<RowRange>>& to,
                  int64_t to_rows) {
    TORCH_CHECK(rows.dim() == 2 && rows.is_contiguous() && rows.size(0) == from_rows,
                "[exchange] the plan has ", from_rows, " contiguous rows, given ", rows.sizes());
    TORCH_CHECK(static_cast<int>(from.size()) == communicator_.size(),
                "[exchange] the plan is for ", from.size(), " ranks, ", communicator_.name(),
                " has ", communicator_.size());
    at::Tensor moved = at::empty({to_rows, rows.size(1)}, rows.options());
    const RowPieces<ConstBytes> send(rows, from);
    const RowPieces<MutableBytes> receive(moved, to);
    communicator_.AllToAllV(send.get(), receive.get());
    return moved;
  }

  Communicator& communicator_;
};

struct ExchangeKind {
  absl::string_view name;
  std::unique_ptr<TokenExchange> (*make)(Communicator*);
};

constexpr ExchangeKind kKinds[] = {
    {"flat",
     [](Communicator* communicator) -> std::unique_ptr<TokenExchange> {
       return std::make_unique<FlatExchange>(communicator);
     }},
};

}  // namespace

absl::StatusOr<std::unique_ptr<TokenExchange>> MakeTokenExchange(
    absl::string_view kind, Communicator* expert_communicator) {
  std::vector<absl::string_view> known;
  for (const ExchangeKind& one : kKinds) {
    if (one.name == kind) return one.make(expert_communicator);
    known.push_back(one.name);
  }
  return absl::InvalidArgumentError(absl::StrCat("[exchange] there is no kind \"", kind,
                                                 "\"; known: ", absl::StrJoin(known, ", ")));
}

}  // namespace moesaic
