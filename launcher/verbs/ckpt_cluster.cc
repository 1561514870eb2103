#include "launcher/verbs/ckpt_cluster.h"

#include <fmt/format.h>

#include <utility>

#include "absl/strings/numbers.h"
#include "base/foreign_text.h"

namespace moesaic {
namespace {

// The service works on a disk, which may be slow or far away.
constexpr absl::Duration kDiskDeadline = absl::Minutes(1);
constexpr absl::Duration kDeleteDeadline = absl::Minutes(10);

}  // namespace

bool NamesJobs(const ConnectionFlags& flags) {
  const TlsFlags& tls = flags.tls;
  return tls.insecure || !flags.coordinator.empty() || !tls.dir.empty() || !tls.ca.empty() ||
         !tls.certificate.empty() || !tls.key.empty();
}

absl::StatusOr<CheckpointRef> ParseJobStep(const std::string& text) {
  const size_t at = text.find('@');
  CheckpointRef ref;
  ref.set_job(text.substr(0, at));
  uint64_t step = 0;
  const bool valid =
      IsName(ref.job()) &&
      (at == std::string::npos || (absl::SimpleAtoi(text.substr(at + 1), &step) && step > 0));
  if (!valid) {
    return absl::InvalidArgumentError(fmt::format(
        "\"{}\": where a coordinator is asked (--coordinator, --tls-dir) write JOB or JOB@STEP",
        text));
  }
  ref.set_step(step);
  return ref;
}

absl::StatusOr<std::unique_ptr<CkptCluster>> CkptCluster::Open(const ConnectionFlags& flags,
                                                               const VerbContext& context) {
  absl::StatusOr<std::unique_ptr<ClusterClient>> client = ClusterClient::Open(flags, context);
  if (!client.ok()) return client.status();
  return std::unique_ptr<CkptCluster>(new CkptCluster(*std::move(client)));
}

absl::StatusOr<std::vector<CheckpointEntry>> CkptCluster::List(const std::string& job) {
  ListCheckpointsRequest request;
  request.set_job(job);
  ListCheckpointsReply reply;
  const absl::Status listed = client_->Call(
      [&](grpc::ClientContext* call) { return stub_->List(call, request, &reply); },
      kDiskDeadline);
  if (!listed.ok()) return listed;
  return std::vector<CheckpointEntry>(reply.checkpoints().begin(), reply.checkpoints().end());
}

absl::StatusOr<CheckpointEntry> CkptCluster::Find(const CheckpointRef& ref) {
  const absl::StatusOr<std::vector<CheckpointEntry>> entries = List(ref.job());
  if (!entries.ok()) return entries.status();
  for (auto entry = entries->rbegin(); entry != entries->rend(); ++entry) {
    if (!entry->quarantined().empty()) continue;
    if (ref.step() == 0 || ref.step() == entry->step()) return *entry;
  }
  return absl::NotFoundError(
      ref.step() == 0 ? fmt::format("job {} has no checkpoint", ref.job())
                      : fmt::format("job {} has no checkpoint of step {}", ref.job(), ref.step()));
}

absl::StatusOr<ShowCheckpointReply> CkptCluster::Show(const CheckpointRef& ref, bool objects) {
  ShowCheckpointRequest request;
  *request.mutable_checkpoint() = ref;
  request.set_objects(objects);
  ShowCheckpointReply reply;
  const absl::Status shown = client_->Call(
      [&](grpc::ClientContext* call) { return stub_->Show(call, request, &reply); },
      kDiskDeadline);
  if (!shown.ok()) return shown;
  return reply;
}

absl::StatusOr<VerifyProgress> CkptCluster::Verify(
    const CheckpointRef& ref, const std::function<void(int64_t, int64_t)>& progress) {
  // No deadline: how long it takes nobody knows. Keep-alive finds a coordinator that is gone.
  grpc::ClientContext call;
  const std::unique_ptr<grpc::ClientReader<VerifyProgress>> stream = stub_->Verify(&call, ref);
  VerifyProgress last;
  while (stream->Read(&last)) {
    progress(static_cast<int64_t>(last.bytes_done()), static_cast<int64_t>(last.bytes_total()));
  }
  const absl::Status verified = client_->Explain(stream->Finish());
  if (!verified.ok()) return verified;
  if (!last.finished()) return absl::InternalError("the verification ended without a result");
  return last;
}

absl::StatusOr<CheckpointEntry> CkptCluster::Pin(const PinCheckpointRequest& request) {
  CheckpointEntry entry;
  const absl::Status changed = client_->Call(
      [&](grpc::ClientContext* call) { return stub_->Pin(call, request, &entry); }, kDiskDeadline);
  if (!changed.ok()) return changed;
  return entry;
}

absl::StatusOr<CheckpointEntry> CkptCluster::Remove(const CheckpointRef& ref, bool force) {
  DeleteCheckpointRequest request;
  *request.mutable_checkpoint() = ref;
  request.set_force(force);
  DeleteCheckpointReply reply;
  const absl::Status removed = client_->Call(
      [&](grpc::ClientContext* call) { return stub_->Delete(call, request, &reply); },
      kDeleteDeadline);
  if (!removed.ok()) return removed;
  return reply.removed();
}

}  // namespace moesaic
