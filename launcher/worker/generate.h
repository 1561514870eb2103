// moesaic-worker generate: text from a checkpoint.
#pragma once

#include <CLI/CLI.hpp>

namespace moesaic {

void RegisterGenerate(CLI::App& program, int& exit_code);

}  // namespace moesaic
