// Splits a range over LibTorch's pool of threads (at::set_num_threads). Apart, because it is the
// one file that is compiled with OpenMP.
#pragma once

#include <cstdint>
#include <functional>

namespace moesaic {

// body(begin, end) over [0, n) cut into at most as many ranges as there are threads, each of
// `grain` elements or more; on the calling thread when one range is enough or the caller is itself
// a body. The first exception of a body is thrown again here.
void ParallelFor(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

}  // namespace moesaic
