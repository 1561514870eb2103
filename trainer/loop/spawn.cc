#include "trainer/loop/spawn.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "parallel/expert/parallel_for.h"
#include "trainer/catalog/spawn_mask.h"
#include "trainer/model/initialise.h"

namespace moesaic {
namespace {

constexpr int64_t kChunk = 1 << 14;  // elements that are summed in order
constexpr std::array kMatrices = {"gate_up", "down"};

std::span<const float> Values(const at::Tensor& t) {
  return {t.const_data_ptr<float>(), static_cast<size_t>(t.numel())};
}
std::span<float> MutableValues(const at::Tensor& t) {
  return {t.mutable_data_ptr<float>(), static_cast<size_t>(t.numel())};
}

std::string NameOfBase(int layer, absl::string_view matrix) {
  return absl::StrCat("layers.", layer, ".moe.base.", matrix);
}
std::string NameOfExpert(int layer, int expert, absl::string_view matrix) {
  return absl::StrCat("layers.", layer, ".moe.experts.", expert, ".", matrix);
}
absl::string_view MatrixOf(absl::string_view parameter) {
  return parameter.substr(parameter.rfind('.') + 1);
}

SpawnMask MaskOf(const JobSpec& spec) {
  const SpawnSpec& rule = spec.recipe().experts().spawn();
  return {.seed = spec.train().seed(), .share = rule.mask(), .rescale = rule.rescale()};
}

// `out` becomes `base`, masked as the expert's `parameter`.
void CopyMasked(const SpawnMask& mask, const std::string& parameter, const at::Tensor& base,
                const at::Tensor& out) {
  out.copy_(base);
  const std::span<float> values = MutableValues(out);
  ParallelFor(out.numel(), kChunk, [&](int64_t begin, int64_t end) {
    ApplySpawnMask(mask, parameter, static_cast<uint64_t>(begin),
                   values.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
  });
}

class Spawner {
 public:
  Spawner(const JobSpec& spec, const SpawnedFrom& from, const SpawnedInto& into)
      : mask_(MaskOf(spec)),
        keeps_moments_(spec.recipe().experts().spawn().moments() == SpawnSpec::MASKED),
        from_(from),
        into_(into) {}

  void Fill(ParameterId id) const {
    const ParameterSpec& parameter = (*into_.catalog)[id];
    if (parameter.kind == ParameterKind::kExpert) return FillExpert(id, parameter);
    const ParameterId before = from_.catalog->Find(parameter.name);
    if (before == kNoParameter) {
      at::Tensor master = into_.store->master(id);
      return Initialise(parameter, mask_.seed, 0, master);
    }
    into_.store->master(id).copy_(from_.store->master(before));
    if (!into_.store->first_moment(id).defined()) return;
    into_.store->first_moment(id).copy_(from_.store->first_moment(before));
    into_.store->second_moment(id).copy_(from_.store->second_moment(before));
  }

 private:
  void FillExpert(ParameterId id, const ParameterSpec& parameter) const {
    const ParameterId base =
        from_.catalog->Find(NameOfBase(parameter.layer, MatrixOf(parameter.name)));
    TORCH_CHECK(base != kNoParameter, "there is nothing to make ", parameter.name, " of");
    const std::string& name = parameter.name;
    CopyMasked(mask_, name, from_.store->master(base), into_.store->master(id));
    if (!keeps_moments_ || !into_.store->first_moment(id).defined()) return;
    SpawnMask mask = mask_;
    mask.rescale = false;
    CopyMasked(mask, name, from_.store->first_moment(base), into_.store->first_moment(id));
    CopyMasked(mask, name, from_.store->second_moment(base), into_.store->second_moment(id));
  }

  const SpawnMask mask_;
  const bool keeps_moments_;
  const SpawnedFrom& from_;
  const SpawnedInto& into_;
};

// One layer's experts as unit vectors: the mean product of two is (|their sum|^2 - n) / (n (n -
// 1)). The sums run in an order that threads do not change.
class LayerCosine {
 public:
  LayerCosine(const JobSpec& spec, const SpawnedFrom& from, int layer, int experts)
      : mask_(MaskOf(spec)), layer_(layer), experts_(static_cast<size_t>(experts)) {
    for (const char* matrix : kMatrices) {
      bases_[matrix] = Values(from.store->master(from.catalog->Find(NameOfBase(layer, matrix))));
    }
  }

  double Mean() const {
    std::vector<double> squares(experts_);
    ForEachChunk(
        experts_,
        [](const Chunk& chunk, std::span<double> sums) {
          for (size_t e = 0; e < chunk.size(); ++e) {
            for (const float v : chunk[e]) sums[e] += double{v} * v;
          }
        },
        squares);
    const auto vectors =
        static_cast<double>(experts_ - static_cast<size_t>(std::ranges::count(squares, 0)));
    if (vectors < 2) return 1;
    double total = 0;
    ForEachChunk(1,
                 [&](const Chunk& chunk, std::span<double> sums) {
                   for (size_t i = 0; i < chunk.front().size(); ++i) {
                     double sum = 0;
                     for (size_t e = 0; e < chunk.size(); ++e) {
                       if (squares[e] > 0) sum += chunk[e][i] / std::sqrt(squares[e]);
                     }
                     sums[0] += sum * sum;
                   }
                 },
                 {&total, 1});
    return (total - vectors) / (vectors * (vectors - 1));
  }

 private:
  using Chunk = std::vector<std::vector<float>>;  // the same elements of each expert

  // Adds to `totals` what add(chunk, sums) adds to `count` sums for each chunk.
  template <typename Add>
  void ForEachChunk(size_t count, const Add& add, std::span<double> totals) const {
    for (const auto& [matrix, base] : bases_) {
      const size_t chunks = (base.size() + kChunk - 1) / kChunk;
      std::vector<double> sums(chunks * count);
      ParallelFor(static_cast<int64_t>(chunks), 1, [&](int64_t begin, int64_t end) {
        for (auto c = static_cast<size_t>(begin); c < static_cast<size_t>(end); ++c) {
          add(ChunkOf(matrix, base, c * kChunk), std::span(sums).subspan(c * count, count));
        }
      });
      for (size_t i = 0; i < sums.size(); ++i) totals[i % count] += sums[i];
    }
  }

  Chunk ChunkOf(const std::string& matrix, std::span<const float> base, size_t first) const {
    const auto part = base.subspan(first, std::min<size_t>(kChunk, base.size() - first));
    Chunk chunk(experts_, {part.begin(), part.end()});
    for (size_t e = 0; e < experts_; ++e) {
      ApplySpawnMask(mask_, NameOfExpert(layer_, static_cast<int>(e), matrix), first, chunk[e]);
    }
    return chunk;
  }

  const SpawnMask mask_;
  const int layer_;
  const size_t experts_;
  std::map<std::string, std::span<const float>> bases_;  // by matrix
};

}  // namespace

void SpawnExperts(const JobSpec& spec, const SpawnedFrom& from, const SpawnedInto& into) {
  const Spawner spawner(spec, from, into);
  for (const ParameterId id : into.store->owned()) spawner.Fill(id);
}

std::vector<double> ExpertCosines(const JobSpec& spec, const SpawnedFrom& from,
                                  const ParameterCatalog& into, Communicator& data) {
  std::vector<double> cosines;
  for (int layer = 0; layer < into.layers(); ++layer) {
    if (!into.IsMoe(layer)) continue;
    const bool mine = static_cast<int>(cosines.size()) % data.size() == data.rank();
    cosines.push_back(mine ? LayerCosine(spec, from, layer, into.experts(layer)).Mean() : 0);
  }
  data.AllReduceSum(cosines.data(), static_cast<int64_t>(cosines.size()), ElementType::kFloat64);
  return cosines;
}

}  // namespace moesaic
