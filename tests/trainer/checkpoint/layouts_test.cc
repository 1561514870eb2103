// C4 over the layouts that count: saved at one, loaded at each other.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "parallel/layout/expert_placement.h"
#include "parallel/layout/mesh.h"
#include "proto/job_spec.h"
#include "tests/trainer/checkpoint/memory_file_system.h"
#include "tests/trainer/checkpoint/tiny_job.h"
#include "trainer/catalog/write_plan.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/checksum.h"
#include "trainer/checkpoint/format/load_plan.h"
#include "trainer/checkpoint/format/manifest.h"

namespace moesaic {
namespace {

constexpr ObjectKind kKinds[] = {MASTER, ADAM_M, ADAM_V};

struct Layout {
  int data = 1;    // copies of the experts
  int expert = 1;  // ranks that hold one copy

  std::string Name() const {
    return "DP " + std::to_string(data) + " x EP " + std::to_string(expert);
  }
};

JobSpec EightExperts() {
  JobSpec spec = TinyJob();
  spec.mutable_model()->mutable_moe()->set_experts(8);
  spec.mutable_model()->mutable_moe()->mutable_pattern()->set_every(1);
  spec.mutable_model()->mutable_moe()->mutable_pattern()->set_first(0);
  return spec;
}

using ObjectName = std::pair<ObjectKind, std::string>;
using Values = std::vector<float>;

class LayoutsTest : public ::testing::Test {
 protected:
  ExpertPlacement Place(const Layout& layout) const {
    std::vector<int> experts(catalog_.layers());
    for (int layer = 0; layer < catalog_.layers(); ++layer) {
      experts[layer] = catalog_.experts(layer);
    }
    return ExpertPlacement::Even(Mesh::Flat(layout.data * layout.expert, layout.expert), experts);
  }

  static Values ValuesOf(ObjectKind kind, ParameterId id, int64_t elements) {
    Values values(static_cast<size_t>(elements));
    for (size_t i = 0; i < values.size(); ++i) values[i] = TinyValue(kind, id, i, 9);
    return values;
  }

  // What a rank writes; dense parameters larger than 100 elements are cut among all ranks, so that
  // shards of parts occur too.
  std::vector<ShardSource> Sources(const Layout& layout, int rank) const {
    const int ranks = layout.data * layout.expert;
    const ExpertPlacement placement = Place(layout);
    const std::vector<int> writers =
        CheckpointWriters(catalog_, Mesh::Flat(ranks, layout.expert), placement);
    std::vector<ShardSource> sources;
    for (ParameterId id = 0; id < catalog_.size(); ++id) {
      const ParameterSpec& parameter = catalog_[id];
      const auto elements = static_cast<uint64_t>(parameter.elements());
      const bool cut = parameter.expert < 0 && elements > 100;
      if (!cut && writers[id] != rank) continue;
      const uint64_t begin = cut ? elements * rank / ranks : 0;
      const uint64_t end = cut ? elements * (rank + 1) / ranks : elements;
      for (ObjectKind kind : kKinds) AddSource(kind, id, begin, end, &sources);
    }
    return sources;
  }

  void AddSource(ObjectKind kind, ParameterId id, uint64_t begin, uint64_t end,
                 std::vector<ShardSource>* sources) const {
    const ParameterSpec& parameter = catalog_[id];
    const std::vector<uint64_t> shape(parameter.shape.begin(), parameter.shape.end());
    for (const Box& box : BoxesOfFlatRange(shape, begin, end)) {
      ShardSource& source = sources->emplace_back();
      source.kind = kind;
      source.name = parameter.name;
      source.shape = shape;
      source.box = box;
      source.layer = parameter.expert < 0 ? -1 : parameter.layer;
      source.expert = parameter.expert;
      const uint64_t count = *CheckedElements(AsShape(box.length()));
      source.produce = [values = ValuesOf(kind, id, parameter.elements()), begin,
                        count](const ByteSink& sink) {
        return sink(std::as_bytes(std::span(values).subspan(begin, count)));
      };
      begin += count;
    }
  }

  void Save(const Layout& layout) {
    files_ = MemoryFileSystem();
    const auto root = *CheckpointRoot::Open(&files_, "/c");
    const std::string staging = *root->BeginStaging(9, 1);
    const auto folder = *files_.OpenFolder(staging);
    std::vector<ShardsPersisted> reports;
    for (int rank = 0; rank < layout.data * layout.expert; ++rank) {
      const auto written =
          WriteShardFiles(Sources(layout, rank),
                          {.rank = static_cast<uint32_t>(rank), .step = 9}, folder.get());
      ASSERT_TRUE(written.ok()) << written.status();
      reports.push_back(TinyReport(*written, static_cast<uint32_t>(rank), 9, 1));
    }
    CommitRequest request = TinyRequest(staging, reports, 1);
    request.spec = spec_;
    const auto committed = root->Commit(request);
    ASSERT_TRUE(committed.ok()) << committed.status();
    folder_ = *files_.OpenFolder(committed->path);
    manifest_ = *ReadManifest(*folder_);
  }

  // Reads what the plan says, checks each shard, and puts the parts where they belong.
  std::map<ObjectName, Values> LoadRank(const Layout& layout, int rank) {
    const ExpertPlacement placement = Place(layout);
    std::vector<LoadTarget> targets;
    std::vector<Values> values;
    for (const ParameterSpec& parameter : catalog_.parameters()) {
      if (parameter.expert >= 0 && !placement.Holds(rank, parameter.layer, parameter.expert)) {
        continue;
      }
      const std::vector<uint64_t> shape(parameter.shape.begin(), parameter.shape.end());
      for (ObjectKind kind : kKinds) {
        targets.push_back({kind, parameter.name, WholeBox(shape)});
        values.emplace_back(static_cast<size_t>(parameter.elements()), -1.0f);
      }
    }
    const auto plan = PlanLoad(manifest_, targets);
    EXPECT_TRUE(plan.ok()) << plan.status();
    for (const ShardRead& read : plan->reads) {
      std::vector<std::byte> bytes(read.shard.bytes());
      EXPECT_TRUE((*folder_->Open(read.file))->ReadAt(read.shard.begin(), bytes).ok());
      EXPECT_EQ(Xxh3(bytes), read.shard.xxh3());
      for (int target : read.targets) {
        RunCursor cursor(read.shard.box(), targets[target].box);
        for (ElementRun run; cursor.Next(&run);) {
          std::memcpy(&values[target][run.target], &bytes[run.source * sizeof(float)],
                      run.count * sizeof(float));
        }
      }
    }
    std::map<ObjectName, Values> loaded;
    for (size_t i = 0; i < targets.size(); ++i) {
      loaded[{targets[i].kind, targets[i].name}] = std::move(values[i]);
    }
    return loaded;
  }

  JobSpec spec_ = EightExperts();
  ParameterCatalog catalog_ = *ParameterCatalog::Build(spec_);
  MemoryFileSystem files_;
  std::unique_ptr<Folder> folder_;
  Manifest manifest_;
};

TEST_F(LayoutsTest, C4_SavedAtOneLayoutLoadsAtEachOther) {
  std::map<ObjectName, Values> wanted;
  for (ParameterId id = 0; id < catalog_.size(); ++id) {
    for (ObjectKind kind : kKinds) {
      wanted[{kind, catalog_[id].name}] = ValuesOf(kind, id, catalog_[id].elements());
    }
  }
  std::vector<Layout> layouts;
  for (int data : {1, 2, 4}) {
    for (int expert : {1, 2, 3, 4}) layouts.push_back({data, expert});
  }
  for (const Layout& saved : layouts) {
    Save(saved);
    if (HasFatalFailure()) return;
    for (const Layout& loaded : layouts) {
      std::map<ObjectName, int> holders;
      for (int rank = 0; rank < loaded.data * loaded.expert; ++rank) {
        const std::map<ObjectName, Values> state = LoadRank(loaded, rank);
        for (const auto& [name, values] : state) {
          ++holders[name];
          ASSERT_EQ(values, wanted.at(name))
              << name.second << ", saved at " << saved.Name() << ", rank " << rank << " of "
              << loaded.Name();
        }
      }
      // Together the ranks of every copy hold everything.
      ASSERT_EQ(holders.size(), wanted.size()) << loaded.Name();
      for (const auto& [name, count] : holders) {
        const bool expert = catalog_[catalog_.Find(name.second)].expert >= 0;
        ASSERT_EQ(count, expert ? loaded.data : loaded.data * loaded.expert) << name.second;
      }
    }
  }
}

}  // namespace
}  // namespace moesaic
