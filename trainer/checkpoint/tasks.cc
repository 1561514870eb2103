#include "trainer/checkpoint/tasks.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

namespace moesaic {

absl::Status RunTasks(int count, int threads, const std::function<absl::Status(int)>& task) {
  std::vector<absl::Status> results(static_cast<size_t>(count));
  std::atomic<int> next = 0;
  std::atomic<bool> failed = false;
  const auto work = [&] {
    while (!failed.load(std::memory_order_relaxed)) {
      const int i = next.fetch_add(1, std::memory_order_relaxed);
      if (i >= count) return;
      results[static_cast<size_t>(i)] = task(i);
      if (!results[static_cast<size_t>(i)].ok()) failed.store(true, std::memory_order_relaxed);
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
  work();
  for (std::thread& other : others) other.join();
  const auto failure = std::ranges::find_if_not(results, &absl::Status::ok);
  return failure == results.end() ? absl::OkStatus() : *failure;
}

}  // namespace moesaic
