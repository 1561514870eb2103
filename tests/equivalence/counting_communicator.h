// A communicator that counts what leaves its rank for others, to compare predictions with.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "parallel/comm/communicator.h"

namespace moesaic {

// What one rank sent. An all-reduce counts as a reduce-scatter and an all-gather, whatever the
// communicator below does.
struct SentBytes {
  // By communicator ("data", "expert") and operation, by rank of the world; to itself included.
  std::map<std::pair<std::string, std::string>, std::vector<int64_t>> to;

  // Over all ranks but `self`.
  int64_t ToOthers(const std::string& communicator, const std::string& operation, int self) const;
};

// Passes every call on to `inner`, which must outlive it, and adds to `sent`. Communicators split
// from it count, too.
std::unique_ptr<Communicator> CountSentBytes(Communicator* inner, SentBytes* sent);

}  // namespace moesaic
