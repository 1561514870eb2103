// A root of checkpoints of the tiny job, for tests.
#pragma once

#include <memory>
#include <string>

#include "proto/job.pb.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/file_system.h"

namespace moesaic {

inline constexpr char kRoot[] = "/disk/checkpoints";

std::unique_ptr<CheckpointRoot> OpenRoot(FileSystem* files);

KeepSpec KeepLast(uint32_t last);

// Every step folder that can be seen verifies in full (C2).
void ExpectAllVerify(FileSystem* files, const std::string& where);

}  // namespace moesaic
