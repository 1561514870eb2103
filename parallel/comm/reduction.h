// Element-wise reduction of the contributions of all ranks, in the order of the ranks. Every kind
// of communicator reduces with it, so all give the same bits.
#pragma once

#include <cstdint>
#include <span>

#include "parallel/comm/communicator.h"

namespace moesaic {

enum class Reduction { kSum, kMax };

// What Communicator's contract allows: sums of all types but kByte, maxima of kFloat64 and kInt64.
bool CanReduce(Reduction reduction, ElementType type);

// out[i] = in[0][i], then in[1][i], ... over `count` elements. kBFloat16 is summed in fp32 and
// rounded once (to nearest, ties to even). A NaN wins a maximum. `out` may be one of `in`;
// otherwise they must not overlap. CanReduce must hold.
void ReduceInOrder(Reduction reduction, ElementType type, std::span<const void* const> in,
                   int64_t count, void* out);

// The part of `count` elements that rank `rank` of `size` reduces: [begin, end).
struct ReductionShare {
  int64_t begin = 0;
  int64_t end = 0;
};
ReductionShare ShareOf(int64_t count, int rank, int size);

}  // namespace moesaic
