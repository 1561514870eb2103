// moesaic, run in process.
#pragma once

#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "launcher/verbs/verb_list.h"

namespace moesaic {

struct Outcome {
  int exit_code;
  std::string out;
  std::string err;
};

inline Outcome RunMoesaic(std::vector<std::string> arguments) {
  std::ostringstream out;
  std::ostringstream err;
  VerbContext context{
      .out = out, .err = err, .environment = {}, .program_path = "", .vocabulary_of = {}};
  const int exit_code = RunProgram(std::move(arguments), context);
  return {exit_code, out.str(), err.str()};
}

}  // namespace moesaic
