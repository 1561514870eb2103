// Names that nobody can guess: tokens of generations, incarnations of processes.
#pragma once

#include <string>

namespace moesaic {

// 32 hexadecimal digits from the system's source of randomness.
std::string RandomToken();

// Whether they are equal, in a time that does not depend on where they differ.
bool SameToken(const std::string& left, const std::string& right);

}  // namespace moesaic
