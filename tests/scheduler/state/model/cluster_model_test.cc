// Many seeded histories of a whole cluster. A history that breaks an invariant is told again with
// its log; MOESAIC_MODEL_SEED=<seed> tells one, MOESAIC_MODEL_HISTORIES=<n> sets how many there
// are.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <string>

#include "tests/scheduler/state/model/cluster_model.h"

namespace moesaic {
namespace {

uint64_t FromEnvironment(const char* name, uint64_t otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

void Tell(uint64_t seed) {
  ClusterModel model(seed, true);
  const std::string broken = model.Run();
  std::string log;
  for (const std::string& line : model.log()) log += line + "\n";
  ADD_FAILURE() << "seed " << seed << ": " << broken << "\n" << log;
}

void Check(uint64_t first, uint64_t histories) {
  if (const uint64_t seed = FromEnvironment("MOESAIC_MODEL_SEED", 0); seed != 0) {
    Tell(seed);
    return;
  }
  uint64_t events = 0, moves = 0;
  for (uint64_t seed = first; seed < first + histories; ++seed) {
    ClusterModel model(seed, false);
    const bool whole = model.Run().empty();
    events += model.events();
    moves += model.moves();
    if (!whole) {
      Tell(seed);
      return;
    }
  }
  std::cout << histories << " histories, " << events << " events, experts moved " << moves
            << " times\n";
  if (histories >= 1000) {
    EXPECT_GT(moves, histories / 100);
  }
}

TEST(ClusterModel, M1M2M5C7C11HoldInManyHistories) {
  Check(1, FromEnvironment("MOESAIC_MODEL_HISTORIES", 1500));
}

}  // namespace
}  // namespace moesaic
