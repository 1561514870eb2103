// Names that nobody can guess: tokens of generations, incarnations of processes.
#pragma once

#include <string>

namespace moesaic {

// 32 hexadecimal digits from the system's source of randomness.
std::string RandomToken();

}  // namespace moesaic
