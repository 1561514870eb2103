#include "trainer/checkpoint/convert/upcycle.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/job_spec.h"
#include "trainer/catalog/initial_values.h"
#include "trainer/catalog/spawn_mask.h"
#include "trainer/checkpoint/convert/parameter_reader.h"
#include "trainer/checkpoint/convert/tensor_folder.h"
#include "trainer/checkpoint/format/manifest.h"
#include "trainer/checkpoint/format/verify.h"

namespace moesaic {
namespace {

// The dense model, wherever it lies.
struct DenseModel {
  StepFolder step;  // of a checkpoint
  Manifest manifest;
  std::unique_ptr<ParameterReader> reader;
  JobSpec spec;
};

absl::Status OpenFolder(const Folder& folder, DenseModel* dense) {
  absl::StatusOr<std::unique_ptr<TensorFolder>> tensors = TensorFolder::Open(folder, "dense");
  if (!tensors.ok()) return tensors.status();
  dense->spec = (*tensors)->model().spec;
  dense->reader = *std::move(tensors);
  return absl::OkStatus();
}

absl::Status OpenStep(FileSystem* files, const Upcycle& upcycle, DenseModel* dense) {
  absl::StatusOr<StepFolder> step = OpenCheckpoint(files, upcycle.from);
  if (!step.ok()) return step.status();
  dense->step = *std::move(step);
  VerifyOptions options;
  options.threads = upcycle.threads;
  absl::Status verified =
      VerifyStatus(*dense->step.folder, VerifyStep(*dense->step.folder, options));
  if (!verified.ok()) return verified;
  absl::StatusOr<Manifest> manifest = ReadManifest(*dense->step.folder);
  if (!manifest.ok()) return manifest.status();
  dense->manifest = *std::move(manifest);
  dense->spec = dense->manifest.spec();
  dense->reader =
      std::make_unique<CheckpointParameters>(dense->step.folder.get(), &dense->manifest);
  return absl::OkStatus();
}

// A folder with a config.json is one of Hugging Face.
absl::StatusOr<std::unique_ptr<DenseModel>> OpenDense(FileSystem* files, const Upcycle& upcycle) {
  auto dense = std::make_unique<DenseModel>();
  absl::StatusOr<std::unique_ptr<Folder>> folder = files->OpenFolder(upcycle.from);
  const bool foreign = folder.ok() && !absl::IsNotFound((*folder)->Open(kConfigName).status());
  absl::Status opened =
      foreign ? OpenFolder(**folder, dense.get()) : OpenStep(files, upcycle, dense.get());
  if (!opened.ok()) return opened;
  return dense;
}

absl::Status Refuse(absl::string_view reason) { return absl::FailedPreconditionError(reason); }

// What both models have alike.
absl::Status CheckBody(const JobSpec& dense, const JobSpec& job) {
  const ModelSpec& was = dense.model();
  const ModelSpec& is = job.model();
  if (was.has_moe()) return Refuse("--from is no dense model: it has experts");
  if (!is.has_moe()) return Refuse("the job has no model.moe: nothing would be made of the dense model");
  absl::Status status;
  const auto same = [&](const char* field, auto a, auto b) {
    if (a == b) return;
    status.Update(Refuse(absl::StrCat("model.", field, " is ", a, " in the dense model, and ", b,
                                      " in the job; they must be the same")));
  };
  same("layers", was.layers(), is.layers());
  same("hidden", was.hidden(), is.hidden());
  same("heads", was.heads(), is.heads());
  same("kv_heads", was.kv_heads(), is.kv_heads());
  same("head_width", was.head_width(), is.head_width());
  same("vocabulary", was.vocabulary(), is.vocabulary());
  same("tie_head", was.tie_head(), is.tie_head());
  same("qk_norm", was.qk_norm(), is.qk_norm());
  same("rope_base", was.rope_base(), is.rope_base());
  same("norm_epsilon", was.norm_epsilon(), is.norm_epsilon());
  for (int layer = 0; status.ok() && layer < static_cast<int>(is.layers()); ++layer) {
    if (!IsMoeLayer(is, layer)) same("dense_width", was.dense_width(), is.dense_width());
  }
  return status;
}

// Into how many pieces the dense layer is cut.
uint32_t Pieces(const JobSpec& dense, const Upcycle& upcycle) {
  if (upcycle.method != UpcycleMethod::kGranular) return 1;
  return dense.model().dense_width() / std::max(1u, upcycle.spec.model().moe().expert_width());
}

absl::Status CheckWidths(const JobSpec& dense, const Upcycle& upcycle) {
  const MoeSpec& moe = upcycle.spec.model().moe();
  const uint32_t width = dense.model().dense_width(), pieces = Pieces(dense, upcycle);
  if (upcycle.spec.recipe().experts().has_spawn()) {
    return Refuse("recipe.experts.spawn makes the experts in training: leave it out, they are made here");
  }
  if (moe.shared_width() > 0) {
    return Refuse("model.moe.shared_width must be 0: a shared expert would come on top of what the "
                  "dense layer computes");
  }
  if (upcycle.method != UpcycleMethod::kGranular) {
    if (moe.expert_width() == width) return absl::OkStatus();
    return Refuse(absl::StrCat("model.moe.expert_width is ", moe.expert_width(),
                               ", but a copy of the dense layer is ", width,
                               " wide (--method granular makes narrower experts)"));
  }
  if (pieces == 0 || pieces * moe.expert_width() != width) {
    return Refuse(absl::StrCat("model.moe.expert_width (", moe.expert_width(),
                               ") must divide the width of the dense layer, ", width));
  }
  if (moe.experts() % pieces != 0 || moe.active() % pieces != 0) {
    return Refuse(absl::StrCat("the dense layer is ", pieces, " experts: model.moe.experts (",
                               moe.experts(), ") and active (", moe.active(),
                               ") must be multiples of that"));
  }
  return absl::OkStatus();
}

// What keeps a router from choosing whole copies of the dense layer, with weights that sum up to their
// number of pieces; empty: nothing.
std::string NotTheDenseModel(const JobSpec& job, uint32_t pieces) {
  const RecipeSpec& recipe = job.recipe();
  const SelectSpec& select = recipe.router().select();
  if (recipe.experts().reuse() > 1) return "recipe.experts.reuse: tokens pass experts of other layers";
  if (recipe.experts().null_experts() > 0) return "recipe.experts.null_experts: they add nothing";
  if (select.has_dense_to_sparse()) return "recipe.router.select.dense_to_sparse";
  if (!recipe.router().weight().renormalize()) return "recipe.router.weight.renormalize must be true";
  if (recipe.router().weight().scale() != pieces) {
    return absl::StrCat("recipe.router.weight.scale must be ", pieces);
  }
  if (pieces == 1) return "";
  if (select.has_top_p()) return "recipe.router.select.top_p takes parts of a copy";
  if (select.has_candidates()) return "recipe.router.select.candidates leaves out parts of a copy";
  if (job.model().moe().experts() / select.groups() % pieces != 0) {
    return "recipe.router.select.groups cut through a copy";
  }
  return "";
}

absl::Status CheckMethod(const JobSpec& dense, const Upcycle& upcycle) {
  if (absl::Status status = CheckWidths(dense, upcycle); !status.ok()) return status;
  if (upcycle.method == UpcycleMethod::kSpawn) return absl::OkStatus();
  const std::string reason = NotTheDenseModel(upcycle.spec, Pieces(dense, upcycle));
  if (reason.empty()) return absl::OkStatus();
  return Refuse(absl::StrCat("the job would not start as the dense model: ", reason));
}

absl::Status CheckMoments(const DenseModel& dense, const Upcycle& upcycle) {
  if (!upcycle.keep_moments) return absl::OkStatus();
  if (dense.step.folder == nullptr || dense.manifest.weights_only() ||
      !dense.spec.train().optimizer().has_adamw()) {
    return Refuse("there are no moments of AdamW to keep: --from holds parameters only");
  }
  if (upcycle.spec.train().optimizer().has_adamw()) return absl::OkStatus();
  return Refuse("the job's train.optimizer is not adamw: it has no place for the moments");
}

// Fills parameters of the job from the dense model's. Offsets count elements.
class Maker {
 public:
  Maker(DenseModel* dense, const ParameterCatalog& dense_catalog, const Upcycle& upcycle)
      : dense_(dense),
        dense_catalog_(dense_catalog),
        upcycle_(upcycle),
        width_(dense->spec.model().dense_width()),
        expert_width_(upcycle.spec.model().moe().expert_width()),
        hidden_(upcycle.spec.model().hidden()),
        pieces_(Pieces(dense->spec, upcycle)) {}

  absl::Status Fill(ObjectKind kind, const ParameterSpec& parameter, uint64_t begin,
                    std::span<float> values) const {
    if (parameter.expert >= 0) return FillExpert(kind, parameter, begin, values);
    const ParameterId id = dense_catalog_.Find(parameter.name);
    if (id != kNoParameter) return dense_->reader->Read(kind, dense_catalog_[id], begin, values);
    if (kind == MASTER) {
      FillRouter(parameter, begin, values);
    } else {
      std::ranges::fill(values, 0.0f);
    }
    return absl::OkStatus();
  }

 private:
  // Rows of pieces of one copy are the first one's.
  void FillRouter(const ParameterSpec& parameter, uint64_t begin, std::span<float> values) const {
    const uint64_t seed = upcycle_.spec.train().seed();
    if (pieces_ == 1 || !absl::EndsWith(parameter.name, ".moe.router")) {
      return FillInitial(parameter, seed, begin, values);
    }
    const auto row = static_cast<uint64_t>(parameter.shape[1]);
    for (uint64_t at = 0; at < values.size();) {
      const uint64_t expert = (begin + at) / row, column = (begin + at) % row;
      const uint64_t count = std::min(row - column, values.size() - at);
      FillInitial(parameter, seed, expert / pieces_ * pieces_ * row + column,
                  values.subspan(at, count));
      at += count;
    }
  }

  absl::Status FillExpert(ObjectKind kind, const ParameterSpec& parameter, uint64_t begin,
                          std::span<float> values) const {
    const bool down = absl::EndsWith(parameter.name, ".down");
    const ParameterSpec& source = dense_catalog_[dense_catalog_.Find(
        absl::StrCat("layers.", parameter.layer, down ? ".dense.down" : ".dense.gate_up"))];
    const uint64_t first = parameter.expert % pieces_ * expert_width_;  // hidden unit
    absl::Status filled = down ? FillColumns(kind, source, first, begin, values)
                               : FillRows(kind, source, first, begin, values);
    if (filled.ok() && upcycle_.method == UpcycleMethod::kSpawn) {
      const SpawnMask mask = {.seed = upcycle_.spec.train().seed(),
                              .share = upcycle_.mask,
                              .rescale = upcycle_.rescale && kind == MASTER};
      ApplySpawnMask(mask, parameter.name, begin, values);
    }
    return filled;
  }

  // Of gate and up, each the rows of the units from `first` on.
  absl::Status FillRows(ObjectKind kind, const ParameterSpec& source, uint64_t first,
                        uint64_t begin, std::span<float> values) const {
    const uint64_t half = expert_width_ * hidden_;
    while (!values.empty()) {
      const uint64_t up = begin >= half ? 1 : 0, at = begin - up * half;
      const uint64_t count = std::min<uint64_t>(half - at, values.size());
      absl::Status read = dense_->reader->Read(
          kind, source, (up * width_ + first) * hidden_ + at, values.first(count));
      if (!read.ok()) return read;
      begin += count;
      values = values.subspan(count);
    }
    return absl::OkStatus();
  }

  // Of down, the columns of the units from `first` on.
  absl::Status FillColumns(ObjectKind kind, const ParameterSpec& source, uint64_t first,
                           uint64_t begin, std::span<float> values) const {
    if (pieces_ == 1) return dense_->reader->Read(kind, source, begin, values);
    std::vector<float> rows;
    while (!values.empty()) {
      const uint64_t row = begin / expert_width_, column = begin % expert_width_;
      const uint64_t wanted = (column + values.size() + expert_width_ - 1) / expert_width_;
      const uint64_t count = std::min(wanted, std::max<uint64_t>(1, kChunkElements / width_));
      rows.resize(count * width_);
      absl::Status read = dense_->reader->Read(kind, source, row * width_, rows);
      if (!read.ok()) return read;
      uint64_t taken = 0;
      for (; taken < values.size() && (column + taken) / expert_width_ < count; ++taken) {
        const uint64_t at = column + taken;
        values[taken] = rows[at / expert_width_ * width_ + first + at % expert_width_];
      }
      begin += taken;
      values = values.subspan(taken);
    }
    return absl::OkStatus();
  }

  DenseModel* dense_;
  const ParameterCatalog& dense_catalog_;
  const Upcycle& upcycle_;
  const uint64_t width_;         // of the dense layer
  const uint64_t expert_width_;
  const uint64_t hidden_;
  const uint64_t pieces_;
};

std::vector<ShardSource> SourcesOf(const ParameterCatalog& catalog, const Maker& maker,
                                   bool moments) {
  std::vector<ShardSource> sources;
  for (const ParameterSpec& parameter : catalog.parameters()) {
    for (const ObjectKind kind : {MASTER, ADAM_M, ADAM_V}) {
      if (kind != MASTER && (!moments || !parameter.learnt)) continue;
      ShardSource& source = sources.emplace_back(ShardOf(kind, parameter));
      source.produce = [&maker, &parameter, kind](const ByteSink& sink) {
        return StreamChunks(static_cast<uint64_t>(parameter.elements()), sink,
                            [&](uint64_t begin, std::span<float> values) {
                              return maker.Fill(kind, parameter, begin, values);
                            });
      };
    }
  }
  return sources;
}

const char* NameOf(UpcycleMethod method) {
  switch (method) {
    case UpcycleMethod::kCopy:
      return "copy";
    case UpcycleMethod::kGranular:
      return "granular";
    case UpcycleMethod::kSpawn:
      return "spawn";
  }
  return "";
}

}  // namespace

absl::StatusOr<CommittedStep> UpcycleModel(FileSystem* files, const Upcycle& upcycle) {
  absl::StatusOr<std::unique_ptr<DenseModel>> dense = OpenDense(files, upcycle);
  if (!dense.ok()) return dense.status();
  absl::Status fits = CheckBody((*dense)->spec, upcycle.spec);
  if (fits.ok()) fits = CheckMethod((*dense)->spec, upcycle);
  if (fits.ok()) fits = CheckMoments(**dense, upcycle);
  if (!fits.ok()) return fits;
  absl::StatusOr<ParameterCatalog> dense_catalog = ParameterCatalog::Build((*dense)->spec);
  if (!dense_catalog.ok()) return dense_catalog.status();
  absl::StatusOr<ParameterCatalog> catalog = ParameterCatalog::Build(upcycle.spec);
  if (!catalog.ok()) return catalog.status();

  const Maker maker(dense->get(), *dense_catalog, upcycle);
  FirstStep step;
  step.to = upcycle.to;
  step.tokenizer = upcycle.spec.data().tokenizer();
  step.binary = upcycle.binary;
  step.origin = absl::StrCat("upcycled (", NameOf(upcycle.method), ") from ", upcycle.from);
  step.created = upcycle.created;
  step.spec = upcycle.spec;
  step.sources = SourcesOf(*catalog, maker, upcycle.keep_moments);
  step.weights_only = !upcycle.keep_moments;
  if (upcycle.keep_moments) {
    const uint64_t updates = (*dense)->manifest.state().optimizer_updates();
    step.state.set_optimizer_updates(updates);
    step.state.set_router_updates_from(updates);
  }
  step.progress = upcycle.progress;
  return CommitFirstStep(files, std::move(step));
}

}  // namespace moesaic
