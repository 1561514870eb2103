// Profile: where the time of a rank goes, by part of the step. Blocks and the loop note their parts
// when a profile is given; otherwise nothing is measured.
#pragma once

#include <array>
#include <chrono>

#include "absl/strings/string_view.h"

namespace moesaic {

enum class Part {
  kEmbedding,
  kNorm,         // of the attention and feed-forward blocks
  kAttention,    // projections, rotation and attention itself
  kRouter,       // logits, scores, selection, weights, balance
  kPermute,      // sorting, gathering and combining rows
  kExchange,     // counts and rows among ranks, with the waiting
  kExperts,      // routed and shared experts, dense feed-forward
  kLoss,         // final norm, logits, cross-entropy, and their gradients
  kReduction,    // gradients among ranks, norms, and the waiting
  kOptimizer,
  kPartCount,
};

inline absl::string_view PartName(Part part) {
  constexpr const char* kNames[] = {"embedding", "norm",     "attention", "router",    "permute",
                                    "exchange",  "experts",  "loss",      "reduction", "optimizer"};
  return kNames[static_cast<int>(part)];
}

// Wall seconds by part, summed over passes. Thread-compatible.
struct Profile {
  std::array<double, static_cast<int>(Part::kPartCount)> seconds = {};
  double& of(Part part) { return seconds[static_cast<int>(part)]; }
};

// Counts the time of a scope, up to now when `Switch` names the next part. Parts do not nest.
class ProfiledScope {
 public:
  // `profile` may be null.
  ProfiledScope(Profile* profile, Part part) : profile_(profile), part_(part) {
    if (profile_ != nullptr) since_ = std::chrono::steady_clock::now();
  }
  ~ProfiledScope() { Count(); }
  ProfiledScope(const ProfiledScope&) = delete;
  ProfiledScope& operator=(const ProfiledScope&) = delete;

  void Switch(Part next) {
    Count();
    part_ = next;
  }

 private:
  void Count() {
    if (profile_ == nullptr) return;
    const auto now = std::chrono::steady_clock::now();
    profile_->of(part_) += std::chrono::duration<double>(now - since_).count();
    since_ = now;
  }

  Profile* profile_;
  Part part_;
  std::chrono::steady_clock::time_point since_;
};

}  // namespace moesaic
