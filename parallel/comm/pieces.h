// Cutting a list of pieces of memory into messages of bounded size. MPI counts are ints, and a
// sender and a receiver whose pieces differ must still cut at the same bytes.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "parallel/comm/communicator.h"

namespace moesaic {

int64_t TotalBytes(std::span<const ConstBytes> pieces);
int64_t TotalBytes(std::span<const MutableBytes> pieces);

// Copies bytes in order; the cuts may differ, TotalBytes must not, and nothing may overlap.
void CopyPieces(std::span<const ConstBytes> from, std::span<const MutableBytes> to);

// The same memory in order as messages of `limit` bytes, the last one smaller; empty pieces are
// left out. Zero bytes make no message.
std::vector<std::vector<ConstBytes>> CutMessages(std::span<const ConstBytes> pieces, int64_t limit);
std::vector<std::vector<MutableBytes>> CutMessages(std::span<const MutableBytes> pieces,
                                                   int64_t limit);

}  // namespace moesaic
