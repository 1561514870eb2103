// NodeBook: what is remembered of nodes whether they are there or not: failures that were blamed on
// them, and whether they are cordoned or being drained. All of it is durable (NodeRecord).
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "proto/record.pb.h"

namespace moesaic {

struct BlameRules {
  uint32_t failures = 3;  // within the window, then the node is cordoned; 0: never
  absl::Duration window = absl::Minutes(10);
  absl::Duration first_cooldown = absl::Seconds(10);  // doubles each time
  absl::Duration longest_cooldown = absl::Hours(1);
};

// Thread-compatible. Times are the caller's.
class NodeBook {
 public:
  NodeBook(BlameRules limits, const std::vector<NodeRecord>& records);

  // Why no new generation may use the node: cordoned or draining; nullopt: it may.
  std::optional<std::string> WhyNot(const std::string& node, absl::Time now) const;
  bool Draining(const std::string& node) const;
  bool DeadlinePassed(const std::string& node, absl::Time now) const;
  uint32_t RecentBlames(const std::string& node, absl::Time now) const;
  // InfiniteFuture: until a person uncordons it; InfinitePast: not cordoned.
  absl::Time CordonedUntil(const std::string& node, absl::Time now) const;
  // Those with something worth remembering.
  std::vector<std::string> remembered(absl::Time now) const;

  // Returns the cool-down when this failure was one too many.
  std::optional<absl::Duration> Blame(const std::string& node, absl::Time now);
  void Drain(const std::string& node, absl::Duration deadline, absl::Time now);
  void Drained(const std::string& node);
  void Cordon(const std::string& node);
  // Forgets its failures too.
  void Uncordon(const std::string& node);
  // Whether the cool-down of some node ended since the last call.
  bool CooledDown(absl::Time now);

  // What changed since the last call.
  std::vector<NodeRecord> TakeChanged();

 private:
  const NodeRecord* Find(const std::string& node) const;
  NodeRecord* Change(const std::string& node);

  BlameRules rules_;
  std::map<std::string, NodeRecord> records_;
  std::set<std::string> changed_;
  absl::Time looked_ = absl::InfinitePast();
};

}  // namespace moesaic
