// moesaic, run in process.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <ostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "launcher/verbs/verb_list.h"

namespace moesaic {

struct VerbOutcome {
  int exit_code = 0;
  std::string out;
  std::string err;

  // What a verb prints with -o json.
  nlohmann::json json() const { return nlohmann::json::parse(out); }
};

// Prints to `out` while it runs; the outcome's stays empty.
inline VerbOutcome RunMoesaicInto(std::ostream& out, std::vector<std::string> arguments,
                                  std::map<std::string, std::string> environment = {}) {
  std::ostringstream err;
  VerbContext context{.out = out,
                      .err = err,
                      .environment = std::move(environment),
                      .program_path = "",
                      .vocabulary_of = {}};
  const int exit_code = RunProgram(std::move(arguments), context);
  return {exit_code, "", err.str()};
}

inline VerbOutcome RunMoesaic(std::vector<std::string> arguments,
                              std::map<std::string, std::string> environment = {}) {
  std::ostringstream out;
  VerbOutcome outcome = RunMoesaicInto(out, std::move(arguments), std::move(environment));
  outcome.out = out.str();
  return outcome;
}

}  // namespace moesaic
