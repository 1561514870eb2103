// Authority: issues the certificates of one cluster. Meant for clusters of one owner and for tests;
// a site that has an authority of its own uses that (docs/secure.md says what it must put in).
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/roles.pb.h"

namespace moesaic {

// PEM texts.
struct KeyPair {
  std::string certificate;
  std::string key;
};

struct Validity {
  absl::Time from;
  absl::Time until;
};

// Thread-compatible. Keys are of the P-256 curve.
class Authority {
 public:
  static absl::StatusOr<Authority> Create(Validity validity);

  // A certificate of `role`; `node` (may be empty) binds an agent's to one node. InvalidArgument
  // for a node that is no valid name.
  absl::StatusOr<KeyPair> Issue(Role role, const std::string& node, Validity validity) const;

  const KeyPair& pair() const { return pair_; }

 private:
  explicit Authority(KeyPair pair) : pair_(std::move(pair)) {}

  KeyPair pair_;
};

}  // namespace moesaic
