// TokenIndex::Parse on any bytes: it refuses them, or all that it then says is consistent.
// The input is the size of the .bin file (u32, little endian) and the .idx file.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>

#include "trainer/data/indexed_tokens.h"

namespace moesaic {
namespace {

void Require(bool holds) {
  if (!holds) std::abort();
}

void CheckIndex(const TokenIndex& index, int64_t bin_bytes) {
  Require(index.tokens() * TokenBytes(index.type()) == bin_bytes);
  Require(index.DocumentStart(index.documents()) == index.tokens());
  for (int64_t d = 0; d < index.documents(); ++d) {
    Require(index.DocumentStart(d) >= 0);
    Require(index.DocumentStart(d) <= index.DocumentStart(d + 1));
  }
  const auto all = index.DocumentStarts(0, index.tokens());
  Require(std::is_sorted(all.begin(), all.end()));
  Require(std::adjacent_find(all.begin(), all.end()) == all.end());
  const int64_t middle = index.tokens() / 2;
  Require(index.DocumentStarts(0, middle).size() +
              index.DocumentStarts(middle, index.tokens() - middle).size() ==
          all.size());
}

}  // namespace
}  // namespace moesaic

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  uint32_t bin_bytes = 0;
  if (size < sizeof(bin_bytes)) return 0;
  std::memcpy(&bin_bytes, data, sizeof(bin_bytes));
  const auto idx = std::as_bytes(std::span(data, size)).subspan(sizeof(bin_bytes));
  const auto index = moesaic::TokenIndex::Parse(idx, bin_bytes, "input");
  if (index.ok()) moesaic::CheckIndex(*index, bin_bytes);
  return 0;
}
