// Trains a job of configs/bench/ on random tokens and says how fast, at what CPU cost, and where the
// time goes, beside the floor: the CPU time that the step's matrix products alone take at the best
// rate measured for their shapes in the same run.
//
//   mpirun -n 2 moesaic-train-bench --job configs/bench/coarse.yaml --precision bf16
//
// One computing thread a rank. Every rank holds experts / ranks experts. bench/train.sh runs all
// combinations and prints one table; docs/design/performance.md says what was measured.
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "bench/product_rates.h"
#include "launcher/config/job_file.h"
#include "parallel/comm/mpi.h"
#include "proto/job_spec.h"
#include "trainer/catalog/expert_state.h"
#include "trainer/catalog/random_stream.h"
#include "trainer/data/indexed_tokens.h"
#include "trainer/loop/trainer.h"

namespace moesaic {
namespace {

struct BenchOptions {
  std::string job;
  std::string precision = "fp32";
  std::vector<std::string> sets;
  int steps = 8;
  int warmup = 3;
  bool floor = true;
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double CpuSeconds() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

double PeakMiB() {
  rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024;
}

// Sums the time inside collectives: copying, and waiting for others (MPI polls, so it is CPU time).
class CollectiveTime : public OperationObserver {
 public:
  void Entered(const OperationStamp&) override { since_ = Now(); }
  void Left() override { seconds_ += Now() - since_; }
  double seconds() const { return seconds_; }

 private:
  double since_ = 0;
  double seconds_ = 0;
};

JobSpec LoadBenchJob(const BenchOptions& options, int ranks) {
  auto text = ReadJobText(options.job);
  if (!text.ok()) throw std::runtime_error(std::string(text.status().message()));
  JobSources sources;
  sources.text = *std::move(text);
  sources.sets = {"train.precision=" + options.precision,
                  "train.global_batch=" + std::to_string(8 * ranks)};
  sources.sets.insert(sources.sets.end(), options.sets.begin(), options.sets.end());
  auto job = LoadJob(sources);
  if (!job.ok()) throw std::runtime_error(std::string(job.status().message()));
  return job->spec;
}

// Random tokens under `prefix`: speed does not depend on what is learnt.
void WriteTokens(const std::string& prefix, const JobSpec& spec) {
  auto writer = IndexedTokenWriter::Create(prefix, TokenType::kUint16);
  const RandomStream random(1, "bench", "tokens");
  std::vector<int32_t> tokens(256 * (spec.model().sequence() + 1));
  for (size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<int32_t>(random.Uniform(i) * spec.model().vocabulary());
  }
  if (!writer.ok() || !(*writer)->Append(tokens).ok() || !(*writer)->Finish().ok()) {
    throw std::runtime_error("cannot write tokens to " + prefix);
  }
}

// The products of one rank's step, by shape.
struct CountedProduct {
  ProductShape shape;
  double count = 1;          // products of this shape a step, each in three passes
  bool fp32 = false;         // whatever the precision
};

std::vector<CountedProduct> LinearProducts(const JobSpec& spec, int ranks) {
  const ModelSpec& model = spec.model();
  const MoeSpec& moe = model.moe();
  const int64_t tokens = int64_t{spec.train().global_batch()} / ranks * model.sequence();
  const int64_t hidden = model.hidden(), heads = int64_t{model.heads()} * model.head_width();
  const int64_t kv = int64_t{model.kv_heads()} * model.head_width();
  const int64_t mine = moe.experts() / ranks;
  const int64_t rows = tokens * ranks * moe.active() / moe.experts();
  const double layers = model.layers();
  std::vector<CountedProduct> products = {
      {{1, tokens, heads + 2 * kv, hidden}, layers},
      {{1, tokens, hidden, heads}, layers},
      {{1, tokens, moe.experts(), hidden}, layers, true},
      {{mine, rows, 2 * moe.expert_width(), hidden}, layers},
      {{mine, rows, hidden, moe.expert_width()}, layers},
      {{1, tokens, model.vocabulary(), hidden}, 1}};
  if (moe.shared_width() > 0) {
    products.push_back({{1, tokens, 2 * moe.shared_width(), hidden}, layers});
    products.push_back({{1, tokens, hidden, moe.shared_width()}, layers});
  }
  return products;
}

// Seconds of one rank's products a step at the best rates: linear products in all three passes, and
// the causal half of attention's two products forward and four backward.
double FloorSeconds(const JobSpec& spec, int ranks) {
  const at::ScalarType type = spec.train().precision() == BF16 ? at::kBFloat16 : at::kFloat;
  double seconds = 0;
  for (const CountedProduct& product : LinearProducts(spec, ranks)) {
    for (const ProductPass pass : kProductPasses) {
      seconds += product.count *
                 MeasureProducts(product.shape, pass, product.fp32 ? at::kFloat : type).best();
    }
  }
  const ModelSpec& model = spec.model();
  const int64_t matrices =
      int64_t{spec.train().global_batch()} / ranks * model.heads();
  seconds += model.layers() * 6 * 0.5 *
             BestAttentionProductSeconds(matrices, model.sequence(), model.head_width(), type);
  return seconds;
}

struct Measured {
  double seconds = 0;  // wall
  double cpu = 0;      // summed over ranks
  double waiting = 0;  // summed over ranks
  double floor = 0;    // summed over ranks
  double tokens = 0;
  double peak_mib = 0; // of the largest rank
};

void Print(const BenchOptions& options, int ranks, const Measured& m, const Profile& profile) {
  const double us = 1e6 / m.tokens;
  std::printf("%s %s, %d rank%s of one thread, %d steps\n", options.job.c_str(),
              options.precision.c_str(), ranks, ranks > 1 ? "s" : "", options.steps);
  std::printf("  %.0f tokens/s; CPU us a token: %.2f, without collectives %.2f; peak %.0f MiB\n",
              m.tokens / m.seconds, m.cpu * us, (m.cpu - m.waiting) * us, m.peak_mib);
  if (m.floor > 0) {
    std::printf("  floor %.2f CPU us a token; ratio %.2f, without collectives %.2f\n", m.floor * us,
                m.cpu / m.floor, (m.cpu - m.waiting) / m.floor);
  }
  double total = 0;
  for (const double part : profile.seconds) total += part;
  std::printf("  rank 0, share of its time:");
  for (int part = 0; part < static_cast<int>(Part::kPartCount); ++part) {
    std::printf(" %s %.1f%%", std::string(PartName(static_cast<Part>(part))).c_str(),
                100 * profile.seconds[part] / total);
  }
  std::printf("\n");
}

Measured Measure(Trainer& trainer, const BenchOptions& options, Communicator& world,
                 CollectiveTime& collectives, Profile& profile) {
  const auto run = [&](int steps) {
    for (int i = 0; i < steps; ++i) {
      const auto outcome = trainer.Step({});
      if (!outcome.ok()) throw std::runtime_error(std::string(outcome.status().message()));
    }
  };
  run(options.warmup);
  world.Barrier();
  profile = {};
  const double tokens = static_cast<double>(trainer.state().tokens());
  const double wall = Now(), cpu = CpuSeconds(), waiting = collectives.seconds();
  run(options.steps);
  Measured measured;
  measured.seconds = Now() - wall;
  measured.tokens = static_cast<double>(trainer.state().tokens()) - tokens;
  double sums[2] = {CpuSeconds() - cpu, collectives.seconds() - waiting};
  measured.peak_mib = PeakMiB();
  world.AllReduceSum(sums, 2, ElementType::kFloat64);
  world.AllReduceMax(&measured.peak_mib, 1, ElementType::kFloat64);
  measured.cpu = sums[0];
  measured.waiting = sums[1];
  return measured;
}

void RunBench(const BenchOptions& options) {
  at::set_num_threads(1);
  CollectiveTime collectives;
  auto mpi = MpiRuntime::Create(&collectives);
  if (!mpi.ok()) throw std::runtime_error(std::string(mpi.status().message()));
  const std::unique_ptr<Communicator> world = (*mpi)->World();
  JobSpec spec = LoadBenchJob(options, world->size());
  const std::string folder =
      (std::filesystem::temp_directory_path() / ("moesaic-bench-" + std::to_string(getpid()))).string();
  WriteTokens(folder + "/train", spec);
  spec.mutable_data()->mutable_train(0)->set_path(folder + "/train");
  spec.mutable_data()->clear_validation();

  const Mesh mesh = Mesh::Flat(world->size(), world->size());
  Profile profile;
  auto trainer = Trainer::Create({.spec = spec,
                                  .mesh = mesh,
                                  .placement = ExpertPlacement::Even(mesh, ExpertsOfLayers(spec.model())),
                                  .rank = world->rank(),
                                  .world = world.get(),
                                  .profile = &profile});
  if (!trainer.ok()) throw std::runtime_error(std::string(trainer.status().message()));
  (*trainer)->InitialiseParameters();
  Measured measured = Measure(**trainer, options, *world, collectives, profile);
  if (options.floor && world->rank() == 0) {
    measured.floor = FloorSeconds(spec, world->size()) * world->size() * options.steps;
  }
  world->Barrier();
  if (world->rank() == 0) Print(options, world->size(), measured, profile);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) {
  moesaic::BenchOptions options;
  CLI::App app("Measures training steps.");
  app.add_option("--job", options.job, "A file of configs/bench/")->required();
  app.add_option("--precision", options.precision)->check(CLI::IsMember({"fp32", "bf16"}));
  app.add_option("--set", options.sets, "KEY=VALUE of the job; may be repeated")->take_all();
  app.add_option("--steps", options.steps)->check(CLI::Range(1, 100000));
  app.add_option("--warmup", options.warmup)->check(CLI::Range(0, 100000));
  app.add_flag("!--no-floor", options.floor, "Do not measure the floor");
  CLI11_PARSE(app, argc, argv);
  try {
    moesaic::RunBench(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "moesaic-train-bench: %s\n", error.what());
    return 1;
  }
  return 0;
}
