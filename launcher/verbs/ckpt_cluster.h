// The checkpoints of a coordinator's jobs. Verbs of `moesaic ckpt` that are given a flag of a
// connection take JOB or JOB@STEP in place of a path, and ask the coordinator's checkpoint service.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "launcher/verbs/cluster_client.h"
#include "proto/checkpoint_service.grpc.pb.h"

namespace moesaic {

inline constexpr char kJobsFooter[] =
    "With --coordinator (or a flag of TLS) the argument is JOB or JOB@STEP, a job of that\n"
    "coordinator, and nothing is read here.\n\n";

// Whether a flag of the connection was given: then arguments name jobs. The environment alone does
// not make a path a job.
bool NamesJobs(const ConnectionFlags& flags);

// "JOB" (step 0: its newest) or "JOB@STEP". InvalidArgument for anything else, as a path.
absl::StatusOr<CheckpointRef> ParseJobStep(const std::string& text);

// Thread-compatible. Errors are the service's: NotFound (no such job or step), FailedPrecondition
// (it refuses), and those of ClusterClient.
class CkptCluster {
 public:
  static absl::StatusOr<std::unique_ptr<CkptCluster>> Open(const ConnectionFlags& flags,
                                                           const VerbContext& context);

  // By step; those in quarantine too.
  absl::StatusOr<std::vector<CheckpointEntry>> List(const std::string& job);
  // The one that `ref` names, which is not in quarantine.
  absl::StatusOr<CheckpointEntry> Find(const CheckpointRef& ref);
  absl::StatusOr<ShowCheckpointReply> Show(const CheckpointRef& ref, bool objects);
  // The last message, which is `finished`. `progress` gets bytes done and in all.
  absl::StatusOr<VerifyProgress> Verify(const CheckpointRef& ref,
                                        const std::function<void(int64_t, int64_t)>& progress);
  absl::StatusOr<CheckpointEntry> Pin(const PinCheckpointRequest& request);
  // What was there.
  absl::StatusOr<CheckpointEntry> Remove(const CheckpointRef& ref, bool force);

 private:
  explicit CkptCluster(std::unique_ptr<ClusterClient> client)
      : client_(std::move(client)), stub_(Checkpoints::NewStub(client_->channel())) {}

  const std::unique_ptr<ClusterClient> client_;
  const std::unique_ptr<Checkpoints::Stub> stub_;
};

}  // namespace moesaic
