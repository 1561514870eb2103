#include "parallel/data/gradient_buckets.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <atomic>
#include <future>
#include <utility>

#include "parallel/comm/reduction.h"

namespace moesaic {
namespace {

// Parameters that are reduced together.
struct Bucket {
  bool dense = true;
  std::vector<int>
      parameters;       // equal on all ranks; by primary, so that what goes to one is one piece
  at::Tensor flat;      // fp32, of those this rank holds, in that order
  int64_t pending = 0;  // closes of this step still to come on this rank
  bool issued = false;
  std::future<void> reduced;  // valid while on a lane
};

// What this rank has of one parameter.
struct Part {
  int bucket = -1;       // -1: not held here
  at::Tensor view;       // [elements] in the bucket
  bool written = false;  // in this step
  bool open = false;
};

// Cuts the parameters, last first, into buckets; dense ones and others are filled side by side. A
// pure function of arguments that are equal on all ranks.
class BucketCutter {
 public:
  BucketCutter(std::span<const HeldParameter> parameters, int ranks, int64_t bucket_elements)
      : parameters_(parameters), ranks_(ranks), limit_(bucket_elements) {}

  std::vector<Bucket> Cut() {
    for (int p = static_cast<int>(parameters_.size()) - 1; p >= 0; --p) Place(p);
    for (Bucket& bucket : buckets_) {
      if (bucket.dense) continue;
      std::stable_sort(bucket.parameters.begin(), bucket.parameters.end(), [&](int a, int b) {
        return parameters_[a].holders[0] < parameters_[b].holders[0];
      });
    }
    return std::move(buckets_);
  }

 private:
  // The bucket being filled, and what each rank has in it.
  struct Filling {
    int bucket = -1;
    std::vector<int64_t> elements;
  };

  void Place(int p) {
    const HeldParameter& parameter = parameters_[p];
    Filling& filling = filling_[IsDense(parameter)];
    const int64_t more = PaddedElements(parameter.elements);
    bool full = filling.bucket < 0;
    for (int r = 0; r < ranks_ && !full; ++r) {
      full =
          IsHeldBy(parameter, r) && filling.elements[r] > 0 && filling.elements[r] + more > limit_;
    }
    if (full) {
      filling.bucket = static_cast<int>(buckets_.size());
      filling.elements.assign(ranks_, 0);
      buckets_.emplace_back();
      buckets_.back().dense = IsDense(parameter);
    }
    buckets_[filling.bucket].parameters.push_back(p);
    for (int r = 0; r < ranks_; ++r) {
      if (IsHeldBy(parameter, r)) filling.elements[r] += more;
    }
  }

  const std::span<const HeldParameter> parameters_;
  const int ranks_;
  const int64_t limit_;
  Filling filling_[2];
  std::vector<Bucket> buckets_;
};

class GradientBuckets : public GradientReducer {
 public:
  GradientBuckets(std::span<const HeldParameter> parameters, Communicator* data,
                  const GradientBucketOptions& options)
      : parameters_(parameters.begin(), parameters.end()),
        data_(*data),
        lane_(options.lane),
        parts_(parameters.size()) {
    const int64_t limit = options.bucket_bytes / static_cast<int64_t>(sizeof(float));
    buckets_ = BucketCutter(parameters_, data_.size(), limit).Cut();
    for (size_t b = 0; b < buckets_.size(); ++b) Allocate(static_cast<int>(b));
  }

  ~GradientBuckets() override {
    for (Bucket& bucket : buckets_) {
      if (bucket.reduced.valid()) bucket.reduced.wait();
    }
  }

  void BeginStep(const GradientStep& step) override;
  GradientSlot Open(int parameter, int use, int64_t micro_batch) override;
  void Close(int parameter, int use, int64_t micro_batch) override;
  void Skip(int parameter, int use, int64_t micro_batch) override;
  void Reduce() override;
  at::Tensor Gradient(int parameter) const override;
  int64_t bytes() const override { return bytes_ + received_bytes_; }

 private:
  void Allocate(int b);
  Part& HeldPart(int parameter);
  // Starts the reduction of the next bucket in order.
  void IssueNext();
  void ReduceBucket(const Bucket& bucket, Communicator& on);
  void ReduceToPrimaries(const Bucket& bucket, Communicator& on);
  void AddParts(const Bucket& bucket, int rank, std::vector<const float*> received) const;

  const std::vector<HeldParameter> parameters_;
  Communicator& data_;
  Lane* const lane_;
  std::vector<Part> parts_;
  std::vector<Bucket> buckets_;
  size_t issued_ = 0;
  bool reduced_ = false;
  int64_t bytes_ = 0;                        // of the buckets
  std::atomic<int64_t> received_bytes_ = 0;  // at most, of others' parts of one
};

void GradientBuckets::Allocate(int b) {
  Bucket& bucket = buckets_[b];
  int64_t total = 0;
  for (int p : bucket.parameters) {
    if (IsHeldBy(parameters_[p], data_.rank())) total += PaddedElements(parameters_[p].elements);
  }
  bucket.flat = at::zeros({total}, at::kFloat);  // the padding between parameters is sent, too
  bytes_ += static_cast<int64_t>(bucket.flat.nbytes());
  int64_t at = 0;
  for (int p : bucket.parameters) {
    if (!IsHeldBy(parameters_[p], data_.rank())) continue;
    parts_[p].bucket = b;
    parts_[p].view = bucket.flat.narrow(0, at, parameters_[p].elements);
    at += PaddedElements(parameters_[p].elements);
  }
}

void GradientBuckets::BeginStep(const GradientStep& step) {
  for (Part& part : parts_) part.written = part.open = false;
  for (Bucket& bucket : buckets_) {
    bucket.pending = 0;
    bucket.issued = false;
    for (int p : bucket.parameters) {
      if (parts_[p].bucket >= 0) bucket.pending += step.rounds * parameters_[p].uses;
    }
  }
  issued_ = 0;
  reduced_ = false;
}

Part& GradientBuckets::HeldPart(int parameter) {
  TORCH_CHECK(parameter >= 0 && parameter < static_cast<int>(parts_.size()),
              "[gradients] there is no parameter ", parameter);
  Part& part = parts_[parameter];
  TORCH_CHECK(part.bucket >= 0, "[gradients] rank ", data_.rank(), " does not hold parameter ",
              parameter);
  return part;
}

GradientSlot GradientBuckets::Open(int parameter, int use, int64_t micro_batch) {
  Part& part = HeldPart(parameter);
  TORCH_CHECK(!part.open && !buckets_[part.bucket].issued, "[gradients] parameter ", parameter,
              ", use ", use, ", micro-batch ", micro_batch,
              part.open ? ": its slot is open already" : ": its bucket has been reduced already");
  part.open = true;
  return {part.view, part.written};
}

void GradientBuckets::Close(int parameter, int use, int64_t micro_batch) {
  Part& part = HeldPart(parameter);
  TORCH_CHECK(part.open, "[gradients] parameter ", parameter, ", use ", use, ", micro-batch ",
              micro_batch, ": its slot is not open");
  part.open = false;
  part.written = true;
  --buckets_[part.bucket].pending;
  if (lane_ == nullptr) return;
  while (issued_ < buckets_.size() && buckets_[issued_].pending == 0) IssueNext();
}

void GradientBuckets::Skip(int parameter, int use, int64_t micro_batch) {
  const GradientSlot slot = Open(parameter, use, micro_batch);
  if (!slot.accumulate) slot.gradient.zero_();
  Close(parameter, use, micro_batch);
}

void GradientBuckets::IssueNext() {
  Bucket& bucket = buckets_[issued_++];
  bucket.issued = true;
  for (int p : bucket.parameters) {
    Part& part = parts_[p];
    TORCH_CHECK(!part.open, "[gradients] parameter ", p, " is reduced while its slot is open");
    if (part.bucket >= 0 && !part.written) part.view.zero_();
  }
  if (lane_ == nullptr) {
    ReduceBucket(bucket, data_);
  } else {
    bucket.reduced = lane_->Submit([this, &bucket](Communicator& on) { ReduceBucket(bucket, on); });
  }
}

void GradientBuckets::Reduce() {
  while (issued_ < buckets_.size()) IssueNext();
  for (Bucket& bucket : buckets_) {
    if (bucket.reduced.valid()) bucket.reduced.get();
  }
  reduced_ = true;
}

void GradientBuckets::ReduceBucket(const Bucket& bucket, Communicator& on) {
  if (bucket.dense) {
    on.AllReduceSum(bucket.flat.data_ptr<float>(), bucket.flat.numel(), ElementType::kFloat32);
  } else {
    ReduceToPrimaries(bucket, on);
  }
}

void GradientBuckets::ReduceToPrimaries(const Bucket& bucket, Communicator& on) {
  const int me = on.rank();
  std::vector<ConstBytes> outgoing(on.size());
  std::vector<int64_t> incoming(on.size(), 0);  // elements
  for (int p : bucket.parameters) {
    const std::vector<int>& holders = parameters_[p].holders;
    const int64_t elements = PaddedElements(parameters_[p].elements);
    if (holders[0] == me) {
      for (size_t h = 1; h < holders.size(); ++h) incoming[holders[h]] += elements;
    } else if (parts_[p].bucket >= 0) {
      ConstBytes& piece = outgoing[holders[0]];
      if (piece.data == nullptr) piece.data = parts_[p].view.data_ptr();
      piece.bytes += elements * static_cast<int64_t>(sizeof(float));
    }
  }
  int64_t received_bytes = 0;
  std::vector<at::Tensor> buffers(on.size());
  std::vector<const float*> received(on.size());
  std::vector<MutableBytes> places(on.size());
  std::vector<std::span<const ConstBytes>> send(on.size());
  std::vector<std::span<const MutableBytes>> receive(on.size());
  for (int r = 0; r < on.size(); ++r) {
    buffers[r] = at::empty({incoming[r]}, at::kFloat);
    received[r] = buffers[r].data_ptr<float>();
    places[r] = {buffers[r].data_ptr(), incoming[r] * static_cast<int64_t>(sizeof(float))};
    send[r] = {&outgoing[r], 1};
    receive[r] = {&places[r], 1};
    received_bytes += places[r].bytes;
  }
  received_bytes_ = std::max(received_bytes_.load(), received_bytes);
  on.AllToAllV(send, receive);
  AddParts(bucket, me, std::move(received));
}

// `received[r]`: what rank r sent, parameter after parameter.
void GradientBuckets::AddParts(const Bucket& bucket, int rank,
                               std::vector<const float*> received) const {
  for (int p : bucket.parameters) {
    std::vector<int> holders = parameters_[p].holders;
    if (holders[0] != rank || holders.size() == 1) continue;
    std::sort(holders.begin(), holders.end());
    float* mine = parts_[p].view.data_ptr<float>();
    std::vector<const void*> contributions;
    for (int holder : holders) {
      contributions.push_back(holder == rank ? mine : received[holder]);
      if (holder != rank) received[holder] += PaddedElements(parameters_[p].elements);
    }
    ReduceInOrder(Reduction::kSum, ElementType::kFloat32, contributions, parameters_[p].elements,
                  mine);
  }
}

at::Tensor GradientBuckets::Gradient(int parameter) const {
  const HeldParameter& held = parameters_.at(parameter);
  TORCH_CHECK(reduced_, "[gradients] parameter ", parameter, ": not reduced yet");
  TORCH_CHECK(IsDense(held) || held.holders[0] == data_.rank(), "[gradients] parameter ", parameter,
              ": its sum is at rank ", held.holders[0], ", this is rank ", data_.rank());
  return parts_[parameter].view;
}

}  // namespace

std::unique_ptr<GradientReducer> MakeGradientBuckets(std::span<const HeldParameter> parameters,
                                                     Communicator* data,
                                                     const GradientBucketOptions& options) {
  return std::make_unique<GradientBuckets>(parameters, data, options);
}

}  // namespace moesaic
