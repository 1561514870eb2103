// The gRPC edge of the checkpoint archive: service Checkpoints of proto/checkpoint_service.proto.
#pragma once

#include <grpcpp/impl/service_type.h>

#include <memory>

#include "scheduler/service/coordinator.h"

namespace moesaic {

// Its calls wait for the disk, in threads that gRPC makes for them. `core` must outlive it.
std::unique_ptr<grpc::Service> MakeCheckpointService(CoordinatorCore* core);

}  // namespace moesaic
