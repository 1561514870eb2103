#include "launcher/agent/orted_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/foreign_text.h"

namespace moesaic {
namespace {

constexpr size_t kMaxWords = 200;
constexpr size_t kMaxWord = 16384;  // node lists of large clusters
constexpr char kPlain[] =
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_=+.,:;/@^%";
constexpr char kInQuotes[] = "()[]{}* ";

// With a login shell of the sh family, mpirun puts this around the command.
const std::vector<std::string>& ProfileWords() {
  static const std::vector<std::string> words = {"(",          "test", "!", "-r",
                                                 "./.profile", "||",   ".", "./.profile;"};
  return words;
}

// What a value of orted's --mca NAME VALUE looks like.
struct Form {
  std::string allowed;  // characters; empty: any value, and the parameter is dropped
  size_t max_size;
};

const std::map<std::string, Form>& Parameters() {
  static const auto* const parameters = [] {
    const std::string digits = "0123456789";
    const std::string letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    const Form number = {digits, 10};
    const Form flag = {"01", 1};
    const Form names = {letters + digits + "_,^", 200};
    const Form networks = {letters + digits + "._:/-,", 400};
    const Form dropped = {"", kMaxWord};
    return new std::map<std::string, Form>{
        {"ess", {"env", 3}},
        {"ess_base_jobid", number},
        {"ess_base_vpid", number},
        {"ess_base_num_procs", number},
        {"orte_node_regex", {letters + digits + "._:,@()[]*-", kMaxWord}},
        {"orte_hnp_uri", {"tcp6" + digits + "abcdefABCDEF.:;,/[]", 1000}},
        {"orte_leave_session_attached", flag},
        {"orte_keep_fqdn_hostnames", flag},
        {"orte_tag_output", flag},
        {"odls_base_sigkill_timeout", number},
        {"hwloc_base_binding_policy", names},
        {"rmaps_base_oversubscribe", flag},
        {"rmaps_base_no_oversubscribe", flag},
        {"btl", names},
        {"pmix", names},
        {"oob_tcp_if_include", networks},
        {"btl_tcp_if_include", networks},
        {"plm", dropped},
        {"plm_rsh_agent", dropped},
        {"plm_rsh_no_tree_spawn", dropped},
    };
  }();
  return *parameters;
}

bool HasForm(const std::string& value, const Form& form) {
  return !value.empty() && value.size() <= form.max_size &&
         (form.allowed.empty() || value.find_first_not_of(form.allowed) == std::string::npos);
}

absl::Status Refused(absl::string_view what) {
  return absl::InvalidArgumentError(fmt::format("not a command that mpirun gives for orted: {}",
                                                EscapeControls(what.substr(0, 200))));
}

absl::StatusOr<std::string> Unquote(absl::string_view word) {
  const bool quoted = word.size() >= 2 && word.front() == '"' && word.back() == '"';
  const absl::string_view inner = quoted ? word.substr(1, word.size() - 2) : word;
  const std::string allowed = quoted ? std::string(kPlain) + kInQuotes : kPlain;
  const size_t bad = std::string(inner).find_first_not_of(allowed);
  // A bare ; ends a command for a shell.
  if (inner.empty() || bad != std::string::npos || (!quoted && inner.find(';') != inner.npos)) {
    return Refused(word);
  }
  return std::string(inner);
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ReadRemoteCommand(const std::vector<std::string>& words) {
  std::vector<std::string> split =
      absl::StrSplit(absl::StrJoin(words, " "), ' ', absl::SkipEmpty());
  const std::vector<std::string>& profile = ProfileWords();
  if (split.size() > profile.size() && std::equal(profile.begin(), profile.end(), split.begin()) &&
      split.back() == ")") {
    split.pop_back();
    split.erase(split.begin(), split.begin() + static_cast<ptrdiff_t>(profile.size()));
  }
  if (split.empty() || split.size() > kMaxWords) return Refused("its number of words");
  std::vector<std::string> command;
  for (const std::string& word : split) {
    absl::StatusOr<std::string> plain = Unquote(word);
    if (!plain.ok()) return plain.status();
    command.push_back(*std::move(plain));
  }
  return command;
}

absl::StatusOr<std::vector<std::string>> CheckOrtedCommand(const std::vector<std::string>& words) {
  if (words.empty() || words.size() > kMaxWords || words.size() % 3 != 1) {
    return Refused(fmt::format("{} words", words.size()));
  }
  if (words[0] != "orted") return Refused(words[0]);
  std::vector<std::string> command = {words[0]};
  for (size_t i = 1; i < words.size(); i += 3) {
    const std::string& name = words[i + 1];
    const std::string& value = words[i + 2];
    if (words[i] != "-mca" && words[i] != "--mca") return Refused(words[i]);
    const auto parameter = Parameters().find(name);
    if (parameter == Parameters().end()) return Refused(name);
    if (!HasForm(value, parameter->second)) {
      return Refused(fmt::format("{} {}", name, value.substr(0, 100)));
    }
    if (!parameter->second.allowed.empty()) command.insert(command.end(), {"--mca", name, value});
  }
  // The head starts every daemon itself.
  command.insert(command.end(), {"--mca", "plm", "rsh", "--mca", "plm_rsh_agent", "/bin/false",
                                 "--mca", "plm_rsh_no_tree_spawn", "1"});
  return command;
}

}  // namespace moesaic
