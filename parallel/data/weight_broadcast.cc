#include "parallel/data/weight_broadcast.h"

#include <ATen/ATen.h>

#include <vector>

namespace moesaic {

void BroadcastWeights(std::span<const HeldParameter> parameters, Communicator& data,
                      const std::function<at::Tensor(int parameter)>& weight) {
  std::vector<std::vector<ConstBytes>> outgoing(data.size());
  std::vector<std::vector<MutableBytes>> incoming(data.size());
  std::vector<at::Tensor> leased;
  for (int p = 0; p < static_cast<int>(parameters.size()); ++p) {
    const std::vector<int>& holders = parameters[p].holders;
    if (holders.size() < 2 || !IsHeldBy(parameters[p], data.rank())) continue;
    const at::Tensor& tensor = leased.emplace_back(weight(p));
    TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == parameters[p].elements,
                "[weights] parameter ", p, " has ", parameters[p].elements, " elements, given ",
                tensor.sizes());
    const int64_t bytes = static_cast<int64_t>(tensor.nbytes());
    if (holders[0] == data.rank()) {
      for (size_t h = 1; h < holders.size(); ++h) {
        outgoing[holders[h]].push_back({tensor.data_ptr(), bytes});
      }
    } else {
      incoming[holders[0]].push_back({tensor.data_ptr(), bytes});
    }
  }
  const std::vector<std::span<const ConstBytes>> send(outgoing.begin(), outgoing.end());
  const std::vector<std::span<const MutableBytes>> receive(incoming.begin(), incoming.end());
  data.AllToAllV(send, receive);
}

}  // namespace moesaic
