// moesaic-worker eval: the validation loss of a checkpoint.
#pragma once

#include <CLI/CLI.hpp>

namespace moesaic {

void RegisterEvaluate(CLI::App& program, int& exit_code);

}  // namespace moesaic
