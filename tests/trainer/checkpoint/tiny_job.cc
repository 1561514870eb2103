#include "tests/trainer/checkpoint/tiny_job.h"

#include <google/protobuf/text_format.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "proto/job_spec.h"
#include "trainer/checkpoint/format/box.h"

namespace moesaic {

JobSpec TinyJob() {
  JobSpec spec;
  const bool parsed = google::protobuf::TextFormat::ParseFromString(R"(
    name: "tiny"
    model { layers: 2 hidden: 8 heads: 2 kv_heads: 1 sequence: 8 dense_width: 12 vocabulary: 16
            moe { experts: 3 active: 2 expert_width: 4 pattern { every: 2 first: 1 } } }
    data { train { path: "x" } }
    train { steps: 100 global_batch: 1 micro_batch: 1 }
  )", &spec);
  EXPECT_TRUE(parsed);
  ApplyDefaults(&spec);
  return spec;
}

ParameterCatalog TinyCatalog() { return *ParameterCatalog::Build(TinyJob()); }

float TinyValue(ObjectKind kind, ParameterId parameter, uint64_t element, uint64_t step) {
  return static_cast<float>(element) + 0.01f * static_cast<float>(parameter) +
         1000.0f * static_cast<float>(kind) + 5000.0f * static_cast<float>(step % 100);
}

std::vector<float> TinyObject(ObjectKind kind, ParameterId parameter, uint64_t step) {
  const auto elements = static_cast<uint64_t>(TinyCatalog()[parameter].elements());
  std::vector<float> values(elements);
  for (uint64_t i = 0; i < elements; ++i) values[i] = TinyValue(kind, parameter, i, step);
  return values;
}

TrainingState TinyState(uint64_t step) {
  TrainingState state;
  state.set_step(step);
  state.set_samples(step * 4);
  state.set_optimizer_updates(step);
  return state;
}

std::vector<std::vector<ShardSource>> TinySources(uint32_t ranks, uint64_t step,
                                                  int frozen) {
  const ParameterCatalog catalog = TinyCatalog();
  std::vector<std::vector<ShardSource>> sources(ranks);
  for (ParameterId id = 0; id < catalog.size(); ++id) {
    const ParameterSpec& parameter = catalog[id];
    for (ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
      ShardSource source;
      source.kind = kind;
      source.name = parameter.name;
      source.shape.assign(parameter.shape.begin(), parameter.shape.end());
      source.layer = parameter.expert < 0 ? -1 : parameter.layer;
      source.expert = parameter.expert;
      const auto elements = static_cast<uint64_t>(parameter.elements());
      for (uint32_t rank = 0; rank < ranks; ++rank) {
        uint64_t begin = elements * rank / ranks, end = elements * (rank + 1) / ranks;
        if (parameter.expert >= 0) {
          if (static_cast<uint32_t>(parameter.expert) % ranks != rank) continue;
          begin = 0;
          end = elements;
        }
        for (const Box& box : BoxesOfFlatRange(source.shape, begin, end)) {
          const uint64_t count = *CheckedElements(AsShape(box.length()));
          source.box = box;
          const uint64_t of = parameter.expert >= 0 && parameter.expert < frozen ? 0 : step;
          source.produce = [kind, id, begin, count, of](const ByteSink& sink) {
            std::vector<float> values(count);
            for (uint64_t i = 0; i < count; ++i) values[i] = TinyValue(kind, id, begin + i, of);
            return sink(std::as_bytes(std::span<const float>(values)));
          };
          sources[rank].push_back(source);
          begin += count;
        }
      }
    }
  }
  return sources;
}

ShardsPersisted TinyReport(const WrittenShards& written, uint32_t rank, uint64_t step,
                           uint64_t generation) {
  ShardsPersisted report;
  report.set_job("tiny");
  report.set_generation(generation);
  report.set_step(step);
  report.set_rank(rank);
  *report.mutable_state() = TinyState(step);
  report.mutable_files()->Assign(written.files.begin(), written.files.end());
  report.mutable_objects()->Assign(written.objects.begin(), written.objects.end());
  return report;
}

absl::StatusOr<std::vector<ShardsPersisted>> PersistTiny(FileSystem* files,
                                                         const std::string& staging,
                                                         uint32_t ranks, uint64_t step,
                                                         uint64_t generation, int frozen) {
  absl::StatusOr<std::unique_ptr<Folder>> folder = OpenStaging(files, staging);
  if (!folder.ok()) return folder.status();
  const std::vector<std::vector<ShardSource>> sources = TinySources(ranks, step, frozen);
  const std::unique_ptr<EarlierStep> earlier = OpenEarlierStep(files, staging, step);
  std::vector<ShardsPersisted> reports;
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    absl::StatusOr<WrittenShards> written = WriteShardFiles(
        sources[rank],
        {.rank = rank, .step = step, .max_file_bytes = 4000, .earlier = earlier.get()},
        folder->get());
    if (!written.ok()) return written.status();
    reports.push_back(TinyReport(*written, rank, step, generation));
    reports.back().set_staging(staging);
  }
  return reports;
}

CommitRequest TinyRequest(const std::string& staging, const std::vector<ShardsPersisted>& reports,
                          uint64_t generation) {
  CommitRequest request;
  request.staging = staging;
  request.generation = generation;
  request.ranks = static_cast<uint32_t>(reports.size());
  request.reports = reports;
  request.spec = TinyJob();
  request.binary = "test";
  request.layout = "data " + std::to_string(reports.size());
  request.created = absl::FromUnixSeconds(1);
  return request;
}

namespace {

// Records no load where `tokens` is empty.
absl::StatusOr<CommittedStep> Commit(FileSystem* files, CheckpointRoot* root, uint32_t ranks,
                                     uint64_t step, uint64_t generation, int frozen,
                                     const std::vector<double>& tokens) {
  absl::StatusOr<std::string> staging = root->BeginStaging(step, generation);
  if (!staging.ok()) return staging.status();
  absl::StatusOr<std::vector<ShardsPersisted>> reports =
      PersistTiny(files, *staging, ranks, step, generation, frozen);
  if (!reports.ok()) return reports.status();
  for (ShardsPersisted& report : *reports) {
    if (tokens.empty()) break;
    LayerLoad* load = report.mutable_state()->add_expert_load();
    load->set_layer(1);
    load->mutable_tokens()->Assign(tokens.begin(), tokens.end());
  }
  return root->Commit(TinyRequest(*staging, *reports, generation));
}

}  // namespace

absl::StatusOr<CommittedStep> CommitTiny(FileSystem* files, CheckpointRoot* root, uint32_t ranks,
                                         uint64_t step, uint64_t generation, int frozen) {
  return Commit(files, root, ranks, step, generation, frozen, {});
}

absl::StatusOr<CommittedStep> CommitTinyWithLoad(FileSystem* files, CheckpointRoot* root,
                                                 uint32_t ranks, uint64_t step, uint64_t generation,
                                                 const std::vector<double>& tokens) {
  return Commit(files, root, ranks, step, generation, /*frozen=*/0, tokens);
}

void DamageTiny(const std::string& step_folder) {
  const std::string file = step_folder + "/x-L001-E0000.safetensors";
  std::filesystem::copy_file(file, file + ".copy");
  std::filesystem::rename(file + ".copy", file);
  std::fstream stream(file, std::ios::in | std::ios::out | std::ios::binary);
  stream.seekp(-1, std::ios::end);
  stream.put('\x7f');
}

}  // namespace moesaic
