#include "tests/equivalence/counted_memory.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace moesaic {

struct CountedMemory::Counts {
  std::atomic<int64_t> bytes = 0;
  std::atomic<int64_t> most = 0;

  void Add(int64_t more) {
    const int64_t now = bytes.fetch_add(more) + more;
    int64_t known = most.load();
    while (now > known && !most.compare_exchange_weak(known, now)) {
    }
  }
};

namespace {

thread_local CountedMemory::Counts* counting = nullptr;

constexpr size_t kAlignment = 64;

// Before each block, a line that says how large it is and who counts it.
struct Header {
  CountedMemory::Counts* counts;
  int64_t bytes;
};

class CountingAllocator : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const size_t whole = (bytes + 2 * kAlignment - 1) / kAlignment * kAlignment;
    void* block = std::aligned_alloc(kAlignment, whole);
    if (block == nullptr) throw std::bad_alloc();
    new (block) Header{counting, static_cast<int64_t>(bytes)};
    if (counting != nullptr) counting->Add(static_cast<int64_t>(bytes));
    return {static_cast<char*>(block) + kAlignment, block, &Free, c10::DeviceType::CPU};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

 private:
  static void Free(void* block) {
    const Header header = *static_cast<Header*>(block);
    if (header.counts != nullptr) header.counts->Add(-header.bytes);
    std::free(block);
  }
};

void Install() {
  static CountingAllocator allocator;
  static const bool done = [] {
    c10::SetCPUAllocator(&allocator, /*priority=*/1);
    return true;
  }();
  (void)done;
}

}  // namespace

CountedMemory::CountedMemory() : counts_(new Counts) {
  Install();
  counting = counts_;
}
CountedMemory::~CountedMemory() {
  counting = nullptr;
  delete counts_;
}
int64_t CountedMemory::bytes() const { return counts_->bytes; }
int64_t CountedMemory::most() const { return counts_->most; }
void CountedMemory::ForgetMost() { counts_->most = counts_->bytes.load(); }

}  // namespace moesaic
