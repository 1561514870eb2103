#include "scheduler/state/node_book.h"

#include <fmt/format.h>

#include <algorithm>

namespace moesaic {

NodeBook::NodeBook(BlameRules limits, const std::vector<NodeRecord>& records) : rules_(limits) {
  for (const NodeRecord& record : records) records_[record.node()] = record;
}

const NodeRecord* NodeBook::Find(const std::string& node) const {
  const auto found = records_.find(node);
  return found == records_.end() ? nullptr : &found->second;
}

NodeRecord* NodeBook::Change(const std::string& node) {
  changed_.insert(node);
  NodeRecord& record = records_[node];
  record.set_node(node);
  return &record;
}

std::optional<std::string> NodeBook::WhyNot(const std::string& node, absl::Time now) const {
  const NodeRecord* record = Find(node);
  if (record == nullptr) return std::nullopt;
  if (record->draining()) return "it is being drained";
  if (record->cordoned()) return fmt::format("cordoned: {}", record->reason());
  const absl::Time until = absl::FromUnixNanos(record->cordoned_until_unix_ns());
  if (now >= until) return std::nullopt;
  return fmt::format("cordoned for another {}: {}",
                     absl::FormatDuration(absl::Ceil(until - now, absl::Seconds(1))),
                     record->reason());
}

bool NodeBook::Draining(const std::string& node) const {
  const NodeRecord* record = Find(node);
  return record != nullptr && record->draining();
}

bool NodeBook::DeadlinePassed(const std::string& node, absl::Time now) const {
  const NodeRecord* record = Find(node);
  return record != nullptr && record->draining() && record->drain_deadline_unix_ns() != 0 &&
         now >= absl::FromUnixNanos(record->drain_deadline_unix_ns());
}

uint32_t NodeBook::RecentBlames(const std::string& node, absl::Time now) const {
  const NodeRecord* record = Find(node);
  if (record == nullptr) return 0;
  const int64_t since = absl::ToUnixNanos(now - rules_.window);
  return static_cast<uint32_t>(std::count_if(record->blamed_unix_ns().begin(),
                                             record->blamed_unix_ns().end(),
                                             [&](int64_t at) { return at >= since; }));
}

absl::Time NodeBook::CordonedUntil(const std::string& node, absl::Time now) const {
  const NodeRecord* record = Find(node);
  if (record == nullptr) return absl::InfinitePast();
  if (record->cordoned()) return absl::InfiniteFuture();
  const absl::Time until = absl::FromUnixNanos(record->cordoned_until_unix_ns());
  return now < until ? until : absl::InfinitePast();
}

std::vector<std::string> NodeBook::remembered(absl::Time now) const {
  std::vector<std::string> names;
  for (const auto& [name, record] : records_) {
    if (WhyNot(name, now) || RecentBlames(name, now) > 0) names.push_back(name);
  }
  return names;
}

std::optional<absl::Duration> NodeBook::Blame(const std::string& node, absl::Time now) {
  if (rules_.failures == 0) return std::nullopt;
  NodeRecord* record = Change(node);
  const int64_t since = absl::ToUnixNanos(now - rules_.window);
  auto* blamed = record->mutable_blamed_unix_ns();
  blamed->erase(
      std::remove_if(blamed->begin(), blamed->end(), [&](int64_t at) { return at < since; }),
      blamed->end());
  blamed->Add(absl::ToUnixNanos(now));
  if (static_cast<uint32_t>(blamed->size()) < rules_.failures) return std::nullopt;
  const absl::Duration cooldown =
      std::min(rules_.longest_cooldown,
               rules_.first_cooldown * static_cast<double>(1 << std::min(record->cordons(), 20u)));
  record->set_reason(fmt::format("{} failures within {} were blamed on it", blamed->size(),
                                 absl::FormatDuration(rules_.window)));
  record->set_cordoned_until_unix_ns(absl::ToUnixNanos(now + cooldown));
  record->set_cordons(record->cordons() + 1);
  blamed->Clear();
  return cooldown;
}

void NodeBook::Drain(const std::string& node, absl::Duration deadline, absl::Time now) {
  NodeRecord* record = Change(node);
  record->set_draining(true);
  record->set_drain_deadline_unix_ns(
      deadline > absl::ZeroDuration() ? absl::ToUnixNanos(now + deadline) : 0);
}

void NodeBook::Drained(const std::string& node) {
  NodeRecord* record = Change(node);
  record->set_draining(false);
  record->set_drain_deadline_unix_ns(0);
  record->set_cordoned(true);
  record->set_reason("drained");
}

void NodeBook::Cordon(const std::string& node) {
  NodeRecord* record = Change(node);
  record->set_cordoned(true);
  record->set_reason("on request");
}

void NodeBook::Uncordon(const std::string& node) {
  Change(node)->Clear();
  records_[node].set_node(node);
}

bool NodeBook::CooledDown(absl::Time now) {
  const bool some = std::any_of(records_.begin(), records_.end(), [&](const auto& entry) {
    const absl::Time until = absl::FromUnixNanos(entry.second.cordoned_until_unix_ns());
    return until > looked_ && until <= now;
  });
  looked_ = now;
  return some;
}

std::vector<NodeRecord> NodeBook::TakeChanged() {
  std::vector<NodeRecord> records;
  for (const std::string& name : changed_) records.push_back(records_[name]);
  changed_.clear();
  return records;
}

}  // namespace moesaic
