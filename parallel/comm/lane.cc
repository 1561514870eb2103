#include "parallel/comm/lane.h"

#include <deque>
#include <optional>
#include <thread>
#include <utility>

#include "base/mutex.h"

namespace moesaic {

class Lane::Impl {
 public:
  explicit Impl(std::unique_ptr<Communicator> communicator)
      : communicator_(std::move(communicator)), thread_([this] { Run(); }) {}

  ~Impl() {
    {
      MutexLock lock(&mu_);
      closing_ = true;
    }
    changed_.NotifyOne();
    thread_.join();
  }

  std::future<void> Submit(std::function<void(Communicator&)> work) {
    std::packaged_task<void(Communicator&)> task(std::move(work));
    std::future<void> done = task.get_future();
    {
      MutexLock lock(&mu_);
      tasks_.push_back(std::move(task));
    }
    changed_.NotifyOne();
    return done;
  }

 private:
  void Run() {
    while (std::optional<std::packaged_task<void(Communicator&)>> task = Next()) {
      (*task)(*communicator_);
    }
  }

  // Waits for a task; nothing once closing and empty.
  std::optional<std::packaged_task<void(Communicator&)>> Next() {
    MutexLock lock(&mu_);
    while (tasks_.empty() && !closing_) changed_.Wait(&mu_);
    if (tasks_.empty()) return std::nullopt;
    std::packaged_task<void(Communicator&)> task = std::move(tasks_.front());
    tasks_.pop_front();
    return task;
  }

  const std::unique_ptr<Communicator> communicator_;
  Mutex mu_;
  CondVar changed_;
  std::deque<std::packaged_task<void(Communicator&)>> tasks_ ABSL_GUARDED_BY(mu_);
  bool closing_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;  // last: it uses all of the above
};

Lane::Lane(std::unique_ptr<Communicator> communicator)
    : impl_(std::make_unique<Impl>(std::move(communicator))) {}

Lane::~Lane() = default;

std::future<void> Lane::Submit(std::function<void(Communicator&)> work) {
  return impl_->Submit(std::move(work));
}

}  // namespace moesaic
