// A tiny job and checkpoints of it, for tests.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "proto/agent.pb.h"
#include "proto/job.pb.h"
#include "trainer/catalog/parameter_catalog.h"
#include "trainer/checkpoint/format/commit.h"
#include "trainer/checkpoint/format/shard_files.h"

namespace moesaic {

JobSpec TinyJob();
ParameterCatalog TinyCatalog();

// The value of every element: distinct for every (kind, parameter, element, step).
float TinyValue(ObjectKind kind, ParameterId parameter, uint64_t element, uint64_t step);
// The whole object, row-major.
std::vector<float> TinyObject(ObjectKind kind, ParameterId parameter, uint64_t step);

TrainingState TinyState(uint64_t step);

// What `ranks` ranks write of a step: expert e lies on rank e % ranks, and every other object is
// cut into flat ranges of about equal size, one a rank, as boxes. Experts below `frozen` have the
// values of step 0 for ever.
std::vector<std::vector<ShardSource>> TinySources(uint32_t ranks, uint64_t step, int frozen = 0);

// What a rank says of the shards that it wrote.
ShardsPersisted TinyReport(const WrittenShards& written, uint32_t rank, uint64_t step,
                           uint64_t generation);

// Writes the shard files of all ranks, as agents do, incrementally.
absl::StatusOr<std::vector<ShardsPersisted>> PersistTiny(FileSystem* files,
                                                         const std::string& staging,
                                                         uint32_t ranks, uint64_t step,
                                                         uint64_t generation, int frozen = 0);

// The request that goes with them.
CommitRequest TinyRequest(const std::string& staging, const std::vector<ShardsPersisted>& reports,
                          uint64_t generation);

// BeginStaging, PersistTiny, Commit.
absl::StatusOr<CommittedStep> CommitTiny(FileSystem* files, CheckpointRoot* root, uint32_t ranks,
                                         uint64_t step, uint64_t generation, int frozen = 0);
// With a recorded load of layer 1's experts, in tokens.
absl::StatusOr<CommittedStep> CommitTinyWithLoad(FileSystem* files, CheckpointRoot* root,
                                                 uint32_t ranks, uint64_t step, uint64_t generation,
                                                 const std::vector<double>& tokens);

// Changes the last byte of expert 0's file of a step. Other steps that share the file keep it
// sound.
void DamageTiny(const std::string& step_folder);

}  // namespace moesaic
