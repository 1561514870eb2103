#include "proto/job_spec.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "base/foreign_text.h"
#include "proto/field_text.h"

namespace moesaic {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::OneofDescriptor;
using google::protobuf::Reflection;

std::string Join(absl::string_view prefix, absl::string_view name) {
  return prefix.empty() ? std::string(name) : absl::StrCat(prefix, ".", name);
}

bool IsMessage(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
}

// Calls `visit(path, child)` for every message that `message` holds, list elements included.
template <typename Visit>
void ForEachChild(const Message& message, absl::string_view path, const Visit& visit) {
  const Descriptor& type = *message.GetDescriptor();
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    if (!IsMessage(field)) continue;
    const std::string field_path = Join(path, field.name());
    if (field.is_repeated()) {
      for (int k = 0; k < reflection.FieldSize(message, &field); ++k) {
        visit(absl::StrCat(field_path, "[", k, "]"),
              reflection.GetRepeatedMessage(message, &field, k));
      }
    } else if (reflection.HasField(message, &field)) {
      visit(field_path, reflection.GetMessage(message, &field));
    }
  }
}

// --- Defaults ----------------------------------------------------------------------------------

// A message with a required field cannot be made out of defaults alone: its absence is either an
// error (model) or has a meaning (model.moe).
bool HasRequiredField(const Descriptor& type) {
  for (int i = 0; i < type.field_count(); ++i) {
    if (RulesOf(*type.field(i)).required()) return true;
  }
  return false;
}

// Parts of a recipe whose absence has a meaning, though all their fields have defaults.
bool IsPart(const Descriptor& type) {
  return &type == SpawnSpec::descriptor() || &type == DenseToSparseSpec::descriptor();
}

void FillMessage(Message* message);

void FillField(const FieldDescriptor& field, Message* message) {
  const Reflection& reflection = *message->GetReflection();
  if (!IsMessage(field)) {
    const std::string& text = RulesOf(field).default_value();
    if (text.empty() || field.is_repeated() || reflection.HasField(*message, &field)) return;
    // A default that does not parse is a mistake in job.proto; a test parses them all.
    SetFieldFromText(text, field, message).IgnoreError();
  } else if (field.is_repeated()) {
    for (int k = 0; k < reflection.FieldSize(*message, &field); ++k) {
      FillMessage(reflection.MutableRepeatedMessage(message, &field, k));
    }
  } else if (reflection.HasField(*message, &field) ||
             (field.real_containing_oneof() == nullptr && !IsPart(*field.message_type()) &&
              !HasRequiredField(*field.message_type()))) {
    FillMessage(reflection.MutableMessage(message, &field));
  }
}

void FillMessage(Message* message) {
  const Descriptor& type = *message->GetDescriptor();
  const Reflection& reflection = *message->GetReflection();
  for (int i = 0; i < type.real_oneof_decl_count(); ++i) {
    const OneofDescriptor* oneof = type.oneof_decl(i);
    if (!reflection.HasOneof(*message, oneof)) {
      reflection.MutableMessage(message, oneof->field(0));
    }
  }
  for (int i = 0; i < type.field_count(); ++i) FillField(*type.field(i), message);
}

// Steps of EvoMoE's phases: T_s a tenth, T_h half of the training, the temperature falls in
// between.
void DerivePhases(JobSpec* spec) {
  const uint64_t steps = spec->train().steps();
  uint64_t begin = 0;
  if (spec->recipe().experts().has_spawn()) {
    SpawnSpec& spawn = *spec->mutable_recipe()->mutable_experts()->mutable_spawn();
    if (!spawn.has_step()) spawn.set_step(std::max<uint64_t>(1, steps / 10));
    begin = spawn.step();
  }
  if (!spec->recipe().router().select().has_dense_to_sparse()) return;
  DenseToSparseSpec& gate =
      *spec->mutable_recipe()->mutable_router()->mutable_select()->mutable_dense_to_sparse();
  if (!gate.has_hard_step()) gate.set_hard_step(std::max(begin + 1, steps / 2));
  if (!gate.has_decay_steps()) {
    gate.set_decay_steps(gate.hard_step() > begin ? gate.hard_step() - begin : 1);
  }
}

void DeriveFields(JobSpec* spec) {
  if (spec->has_model()) {
    ModelSpec& model = *spec->mutable_model();
    if (!model.has_kv_heads() && model.heads() > 0) model.set_kv_heads(model.heads());
    if (!model.has_head_width() && model.has_hidden() && model.heads() > 0 &&
        model.hidden() % model.heads() == 0) {
      model.set_head_width(model.hidden() / model.heads());
    }
  }
  if (spec->recipe().router().select().has_candidates()) {
    CandidatesSpec& candidates =
        *spec->mutable_recipe()->mutable_router()->mutable_select()->mutable_candidates();
    if (!candidates.has_start_step()) candidates.set_start_step(spec->train().steps() / 5);
    if (!candidates.has_end_step()) candidates.set_end_step(spec->train().steps() * 3 / 5);
    if (!candidates.has_from()) candidates.set_from(spec->model().moe().experts());
  }
  DerivePhases(spec);
  RunSpec& run = *spec->mutable_run();
  if (!run.has_dir() && spec->has_name()) run.set_dir(absl::StrCat("runs/", spec->name()));
  CheckpointSpec& checkpoint = *spec->mutable_checkpoint();
  if (!checkpoint.has_dir() && run.has_dir()) {
    checkpoint.set_dir(absl::StrCat(run.dir(), "/checkpoints"));
  }
}

// --- Rules of one field --------------------------------------------------------------------------

double NumberOf(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return static_cast<double>(reflection.GetUInt64(message, &field));
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    default:
      return 0;
  }
}

// A limit in the way that its field is written: "5s" for a duration.
std::string LimitText(double limit, const Message& message, const FieldDescriptor& field) {
  const std::unique_ptr<Message> scratch(message.New());
  const Reflection& reflection = *scratch->GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_UINT32:
      reflection.SetUInt32(scratch.get(), &field, static_cast<uint32_t>(limit));
      break;
    case FieldDescriptor::CPPTYPE_UINT64:
      reflection.SetUInt64(scratch.get(), &field, static_cast<uint64_t>(limit));
      break;
    default:
      reflection.SetDouble(scratch.get(), &field, limit);
  }
  return FieldText(*scratch, field);
}

// Empty when the set scalar `field` keeps its rules.
std::string BrokenRule(const Message& message, const FieldDescriptor& field) {
  const FieldRules& rules = RulesOf(field);
  if (field.cpp_type() == FieldDescriptor::CPPTYPE_STRING) {
    const std::string text = message.GetReflection()->GetString(message, &field);
    if (text.empty()) return "must not be empty";
    if (text.find('\0') != std::string::npos) return "must not hold a NUL character";
    if (rules.is_name() && !IsName(text)) {
      return absl::StrCat("\"", text,
                          "\" is not a name: write 1 to 63 of a-z 0-9 . _ -, the first one a "
                          "letter or digit, without ..");
    }
    return "";
  }
  const double value = NumberOf(message, field);
  const std::string text = FieldText(message, field);
  if (!std::isfinite(value)) return absl::StrCat("must be a finite number, not ", text);
  if (rules.positive() && !(value > 0)) return absl::StrCat("must be more than 0, not ", text);
  if (rules.has_min() && value < rules.min()) {
    return absl::StrCat("must be at least ", LimitText(rules.min(), message, field), ", not ",
                        text);
  }
  if (rules.has_max() && value > rules.max()) {
    return absl::StrCat("must be at most ", LimitText(rules.max(), message, field), ", not ", text);
  }
  return "";
}

// Whether `path` is one of `paths` or below one of them.
bool IsAtOrBelow(absl::string_view path, const std::vector<std::string>& paths) {
  return std::any_of(paths.begin(), paths.end(), [&](const std::string& above) {
    return absl::StartsWith(path, above) &&
           (path.size() == above.size() || path[above.size()] == '.' || path[above.size()] == '[');
  });
}

void CheckFields(const Message& message, absl::string_view path,
                 std::vector<JobProblem>* problems) {
  const Descriptor& type = *message.GetDescriptor();
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string field_path = Join(path, field.name());
    const bool set = field.is_repeated() ? reflection.FieldSize(message, &field) > 0
                                         : reflection.HasField(message, &field);
    if (!set) {
      if (RulesOf(field).required()) {
        problems->push_back(
            {field_path, field.is_repeated() ? "is required: list at least one" : "is required"});
      }
    } else if (!IsMessage(field)) {
      std::string broken = BrokenRule(message, field);
      if (!broken.empty()) problems->push_back({field_path, std::move(broken)});
    }
  }
  ForEachChild(message, path, [&](const std::string& child_path, const Message& child) {
    CheckFields(child, child_path, problems);
  });
}

// --- Rules that cross fields ---------------------------------------------------------------------

constexpr double kLeastRebalanceRatio = 1.05;

// Each rule runs only when the fields that it reads are right by themselves: present where they are
// required, and within their ranges.
class CrossFieldRules {
 public:
  // `unsound`: the paths of fields that have a problem.
  CrossFieldRules(const JobSpec& spec, const std::vector<std::string>& unsound)
      : spec_(spec), unsound_(unsound) {}

  std::vector<JobProblem> Run() {
    CheckAttention();
    CheckFeedForward();
    CheckVocabulary();
    CheckBatches();
    CheckSchedule();
    CheckNodes();
    CheckRecipe();
    return std::move(problems_);
  }

 private:
  template <typename... Parts>
  void Report(std::string path, const Parts&... parts) {
    problems_.push_back({std::move(path), absl::StrCat(parts...)});
  }

  bool Sound(std::initializer_list<const char*> paths) const {
    return std::none_of(paths.begin(), paths.end(),
                        [&](const char* path) { return IsAtOrBelow(path, unsound_); });
  }

  void CheckAttention() {
    const ModelSpec& model = spec_.model();
    if (Sound({"model.heads", "model.kv_heads"}) && model.heads() % model.kv_heads() != 0) {
      Report("model.kv_heads", "heads (", model.heads(), ") is not a multiple of kv_heads (",
             model.kv_heads(), ")");
    }
    if (!Sound({"model.hidden", "model.heads", "model.head_width"})) return;
    if (!model.has_head_width()) {
      Report("model.heads", "hidden (", model.hidden(), ") is not a multiple of heads (",
             model.heads(), "): change one, or give head_width");
    } else if (model.head_width() % 2 != 0) {
      Report("model.head_width", "must be even for rotary positions, not ", model.head_width(),
             model.head_width() * model.heads() == model.hidden() ? " (hidden / heads)" : "");
    }
  }

  void CheckFeedForward() {
    const ModelSpec& model = spec_.model();
    if (model.has_moe()) CheckMoe();
    if (model.has_dense_width() || !Sound({"model.layers", "model.dense_width",
                                           "model.moe.pattern.every", "model.moe.pattern.first"})) {
      return;
    }
    for (uint32_t layer = 0; layer < model.layers(); ++layer) {
      if (IsMoeLayer(model, static_cast<int>(layer))) continue;
      Report("model.dense_width", "is required, because layer ", layer, " has no experts");
      return;
    }
  }

  void CheckMoe() {
    const ModelSpec& model = spec_.model();
    const MoeSpec& moe = model.moe();
    if (Sound({"model.layers", "model.moe.pattern.first"}) &&
        moe.pattern().first() >= model.layers()) {
      Report("model.moe.pattern.first", "must be below layers (", model.layers(), "), not ",
             moe.pattern().first());
    }
    if (!Sound({"model.moe.experts"})) return;
    if (Sound({"parallel.expert"}) && spec_.parallel().expert() > moe.experts()) {
      Report("parallel.expert", "must be at most model.moe.experts (", moe.experts(), "), not ",
             spec_.parallel().expert());
    }
    if (!Sound({"model.moe.active"})) return;
    const uint32_t nulls = spec_.recipe().experts().null_experts();
    if (moe.active() > moe.experts() + nulls) {
      Report("model.moe.active", "must be at most experts (", moe.experts(),
             nulls > 0 ? absl::StrCat(" and ", nulls, " null ones") : "", "), not ", moe.active());
    }
    const bool chooses = moe.experts() > 1 || spec_.recipe().experts().reuse() > 1;
    if (moe.active() == 1 && chooses && Sound({"recipe.router.weight.renormalize"}) &&
        spec_.recipe().router().weight().renormalize()) {
      Report("model.moe.active",
             "1 with recipe.router.weight.renormalize true makes every weight 1, so the router "
             "would learn nothing from the loss: set renormalize to false");
    }
  }

  void CheckVocabulary() {
    if (Sound({"model.vocabulary", "data.tokenizer"}) && !spec_.model().has_vocabulary() &&
        !spec_.data().has_tokenizer()) {
      Report("model.vocabulary", "is required when data.tokenizer is not given");
    }
  }

  void CheckBatches() {
    const TrainSpec& train = spec_.train();
    if (Sound({"train.global_batch", "train.micro_batch"}) &&
        train.global_batch() % train.micro_batch() != 0) {
      Report("train.global_batch", "must be a multiple of micro_batch (", train.micro_batch(),
             "), not ", train.global_batch());
    }
  }

  void CheckSchedule() {
    const TrainSpec& train = spec_.train();
    const ScheduleSpec& schedule = train.schedule();
    if (!Sound({"train.steps", "train.schedule.warmup_steps"})) return;
    if (schedule.warmup_steps() > train.steps()) {
      Report("train.schedule.warmup_steps", "must be at most train.steps (", train.steps(),
             "), not ", schedule.warmup_steps());
    } else if (schedule.has_wsd() && Sound({"train.schedule.wsd.decay_steps"}) &&
               schedule.wsd().decay_steps() > train.steps() - schedule.warmup_steps()) {
      Report("train.schedule.wsd.decay_steps", "must be at most train.steps - warmup_steps (",
             train.steps() - schedule.warmup_steps(), "), not ", schedule.wsd().decay_steps());
    }
  }

  void CheckNodes() {
    const NodeRange& nodes = spec_.elastic().nodes();
    if (Sound({"elastic.nodes.min", "elastic.nodes.max"}) && nodes.min() > nodes.max()) {
      Report("elastic.nodes.min", "must be at most max (", nodes.max(), "), not ", nodes.min());
    }
    const double ratio = spec_.elastic().rebalance_ratio();
    if (Sound({"elastic.rebalance_ratio"}) && ratio > 0 && ratio < kLeastRebalanceRatio) {
      Report("elastic.rebalance_ratio", "must be 0 (never) or at least ", kLeastRebalanceRatio,
             ", not ", ratio, ": placements that are as good would take turns");
    }
  }

  void CheckRecipe() {
    const RouterSpec& router = spec_.recipe().router();
    if (!spec_.model().has_moe() || !Sound({"model.moe", "recipe.router"})) return;
    CheckGroups(router.select());
    CheckCandidates(router.select());
    CheckBalance(router);
    CheckNullExperts(router);
    CheckTopP(router);
    CheckSpawn();
    CheckDenseToSparse(router);
  }

  void CheckSpawn() {
    const ExpertsSpec& experts = spec_.recipe().experts();
    if (!experts.has_spawn() || !Sound({"recipe.experts.spawn", "train.steps"})) return;
    if (experts.spawn().step() >= spec_.train().steps()) {
      Report("recipe.experts.spawn.step", "must be below train.steps (", spec_.train().steps(),
             "), not ", experts.spawn().step(), ": the experts would never be used");
    }
  }

  void CheckDenseToSparse(const RouterSpec& router) {
    if (!router.select().has_dense_to_sparse()) return;
    CheckDenseToSparseGate(router.select().dense_to_sparse());
    CheckBesideDenseToSparse(router);
  }

  void CheckDenseToSparseGate(const DenseToSparseSpec& gate) {
    const std::string path = "recipe.router.select.dense_to_sparse";
    const SpawnSpec& spawn = spec_.recipe().experts().spawn();
    if (gate.threshold() >= 1) {
      Report(path + ".threshold", "must be below 1, not ", gate.threshold(),
             ": no probability is above it");
    }
    if (gate.final_temperature() > gate.temperature()) {
      Report(path + ".final_temperature", "must be at most temperature (", gate.temperature(),
             "), not ", gate.final_temperature());
    }
    if (Sound({"recipe.experts.spawn"}) && gate.hard_step() < spawn.step()) {
      Report(path + ".hard_step", "must be at least recipe.experts.spawn.step (", spawn.step(),
             "), not ", gate.hard_step(), ": there would be one expert to choose from");
    }
  }

  // What makes no sense with tokens that take as many experts as are above a threshold.
  void CheckBesideDenseToSparse(const RouterSpec& router) {
    const std::string gate = "recipe.router.select.dense_to_sparse";
    const SelectSpec& select = router.select();
    if (spec_.model().moe().active() != 1) {
      Report("model.moe.active", "must be 1 with ", gate,
             ", whose last phase takes the best expert alone, not ", spec_.model().moe().active());
    }
    if (router.score() != SOFTMAX) {
      Report("recipe.router.score", "must be softmax with ", gate,
             ": its threshold is of probabilities that sum to 1");
    }
    if (router.weight().renormalize()) {
      Report("recipe.router.weight.renormalize", "must be false with ", gate,
             ": weights of experts that come and go would jump");
    }
    if (router.balance().has_bias()) {
      Report("recipe.router.balance.bias", "makes no sense with ", gate,
             ": until hard_step the threshold, not a ranking, says who is chosen");
    }
    if (router.balance().scope() == GLOBAL) {
      Report("recipe.router.balance.scope", "cannot be global with ", gate,
             ": the step before had another temperature");
    }
    if (router.balance().group_coefficient() > 0 || router.balance().communication() > 0) {
      Report("recipe.router.balance", "losses over groups make no sense with ", gate,
             ": tokens begin in all groups");
    }
    if (select.has_group_limit() && select.group_limit() < select.groups()) {
      Report("recipe.router.select.group_limit", "makes no sense with ", gate,
             ": tokens begin with the experts of all groups");
    }
    if (select.has_candidates()) {
      Report("recipe.router.select.candidates", "makes no sense with ", gate,
             ": one lets experts in, the other keeps them out");
    }
    if (spec_.recipe().experts().reuse() > 1) {
      Report("recipe.experts.reuse", "makes no sense with ", gate,
             ": tokens would begin with the experts of all layers of a group");
    }
  }

  void CheckGroups(const SelectSpec& select) {
    const MoeSpec& moe = spec_.model().moe();
    if (moe.experts() % select.groups() != 0) {
      Report("recipe.router.select.groups", "must divide model.moe.experts (", moe.experts(),
             "), not ", select.groups());
      return;
    }
    if (!select.has_group_limit()) return;
    const uint32_t limit = select.group_limit();
    const uint32_t per_group = moe.experts() / select.groups();
    if (limit > select.groups()) {
      Report("recipe.router.select.group_limit", "must be at most groups (", select.groups(),
             "), not ", limit);
    } else if (uint64_t{limit} * per_group < moe.active()) {
      Report("recipe.router.select.group_limit", limit, " groups of ", per_group,
             " experts have fewer than model.moe.active (", moe.active(), ")");
    }
  }

  void CheckCandidates(const SelectSpec& select) {
    if (!select.has_candidates()) return;
    const CandidatesSpec& candidates = select.candidates();
    const std::string path = "recipe.router.select.candidates";
    if (candidates.start_step() > candidates.end_step()) {
      Report(path + ".start_step", "must be at most end_step (", candidates.end_step(), "), not ",
             candidates.start_step());
    }
    if (candidates.from() < spec_.model().moe().active()) {
      Report(path + ".from", "must be at least model.moe.active (", spec_.model().moe().active(),
             "), not ", candidates.from());
    }
    if (select.group_limit() > 0 && select.group_limit() < select.groups()) {
      Report(path, "with select.group_limit: the groups that are left may have fewer candidates "
                   "than model.moe.active; take one of the two");
    }
  }

  void CheckBalance(const RouterSpec& router) {
    const BalanceSpec& balance = router.balance();
    if (balance.has_groups() && spec_.model().moe().experts() % balance.groups() != 0) {
      Report("recipe.router.balance.groups", "must divide model.moe.experts (",
             spec_.model().moe().experts(), "), not ", balance.groups());
    }
    if (balance.pool_coefficient() > 0 && spec_.recipe().experts().reuse() <= 1) {
      Report("recipe.router.balance.pool_coefficient",
             "needs layers that share experts (recipe.experts.reuse); for a layer's own there is "
             "balance.coefficient");
    }
    CheckLaterCoefficient(balance);
  }

  void CheckLaterCoefficient(const BalanceSpec& balance) {
    const std::string path = "recipe.router.balance.later";
    if (!balance.has_later() ||
        !Sound({"recipe.router.balance.later.step", "recipe.router.balance.later.coefficient"})) {
      return;
    }
    if (balance.later().coefficient() == balance.coefficient()) {
      Report(path + ".coefficient", "is what coefficient is before (", balance.coefficient(),
             "), so nothing would change: give another, or leave `later` out");
    }
    const SpawnSpec& spawn = spec_.recipe().experts().spawn();
    if (Sound({"recipe.experts.spawn.step"}) && balance.later().step() <= spawn.step()) {
      Report(path + ".step", "must be above recipe.experts.spawn.step (", spawn.step(), "), not ",
             balance.later().step(),
             ": there is nothing to balance until then, so coefficient would never be used");
    }
  }

  void CheckNullExperts(const RouterSpec& router) {
    if (spec_.recipe().experts().null_experts() == 0) return;
    const BalanceSpec& balance = router.balance();
    const auto refuse = [this](bool given, const char* with, const char* reason) {
      if (given) Report("recipe.experts.null_experts", "with ", with, ": ", reason);
    };
    refuse(balance.has_bias(), "recipe.router.balance.bias",
           "it moves each expert towards the mean load, and null experts have none to share; take "
           "balance.coefficient");
    refuse(balance.scope() == GLOBAL, "recipe.router.balance.scope global",
           "loads of null experts are not kept from step to step; take micro_batch or sequence");
    refuse(balance.pool_coefficient() > 0, "recipe.router.balance.pool_coefficient",
           "that loss is over the experts that layers share, and each layer has its own null ones");
    refuse(router.select().groups() > 1 || balance.groups() > 1, "groups",
           "null experts are in none of them");
    refuse(router.select().has_candidates(), "recipe.router.select.candidates",
           "it says which experts may be chosen, and null experts are none of them");
    refuse(router.select().has_top_p(), "recipe.router.select.top_p",
           "both make the number of experts vary; take one");
    refuse(router.select().has_dense_to_sparse(), "recipe.router.select.dense_to_sparse",
           "both make the number of experts vary; take one");
    refuse(spec_.recipe().experts().has_spawn(), "recipe.experts.spawn",
           "the one expert until then is passed by every token; take one");
  }

  void CheckTopP(const RouterSpec& router) {
    if (router.balance().entropy() > 0 && router.select().has_candidates()) {
      Report("recipe.router.balance.entropy",
             "with recipe.router.select.candidates: it would be of experts that cannot be chosen");
    }
    if (!router.select().has_top_p()) return;
    const auto refuse = [this](bool given, const char* with, const char* reason) {
      if (given) Report("recipe.router.select.top_p", "with ", with, ": ", reason);
    };
    refuse(router.score() != SOFTMAX, "recipe.router.score other than softmax",
           "scores must be probabilities, which sum up to 1");
    refuse(router.weight().renormalize(), "recipe.router.weight.renormalize true",
           "a token with one expert would weigh it 1, and the router learn nothing from it");
    refuse(spec_.model().moe().active() < 2, "model.moe.active 1",
           "that is the most experts a token takes, so the share would say nothing");
    refuse(router.balance().has_bias(), "recipe.router.balance.bias",
           "probabilities with a bias do not sum up to 1");
    refuse(router.select().has_group_limit() &&
               router.select().group_limit() < router.select().groups(),
           "recipe.router.select.group_limit", "the groups that are left may never sum up to it");
    refuse(router.select().has_candidates(), "recipe.router.select.candidates",
           "the experts that are left may never sum up to it");
    refuse(router.select().has_dense_to_sparse(), "recipe.router.select.dense_to_sparse",
           "both say how many experts a token takes; take one");
  }

  const JobSpec& spec_;
  const std::vector<std::string>& unsound_;
  std::vector<JobProblem> problems_;
};

// --- Hashes and changes --------------------------------------------------------------------------

using FieldTexts = std::map<std::string, std::string>;

// Path -> text of the set fields of one resume class. The chosen member of a oneof stands at the
// path of its message.
void CollectTexts(const Message& message, absl::string_view path, ResumeClass resume,
                  FieldTexts* texts) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    if (RulesOf(*field).resume() != resume) continue;
    if (!IsMessage(*field)) {
      (*texts)[Join(path, field->name())] = FieldText(message, *field);
    } else if (field->real_containing_oneof() != nullptr) {
      (*texts)[std::string(path)] = field->name();
    }
  }
  ForEachChild(message, path, [&](const std::string& child_path, const Message& child) {
    CollectTexts(child, child_path, resume, texts);
  });
}

FieldTexts TextsOf(const JobSpec& spec, ResumeClass resume) {
  FieldTexts texts;
  CollectTexts(spec, "", resume, &texts);
  return texts;
}

JobHash HashTexts(const FieldTexts& texts) {
  std::string canonical;
  for (const auto& [path, text] : texts) {
    // The length keeps a text with line ends from looking like other fields.
    absl::StrAppend(&canonical, path, "=", text.size(), ":", text, "\n");
  }
  XXH128_canonical_t stored;
  XXH128_canonicalFromHash(&stored, XXH3_128bits(canonical.data(), canonical.size()));
  JobHash hash;
  static_assert(sizeof(stored.digest) == sizeof(hash));
  std::memcpy(hash.data(), stored.digest, hash.size());
  return hash;
}

}  // namespace

void ApplyDefaults(JobSpec* spec) {
  FillMessage(spec);
  DeriveFields(spec);
}

std::vector<JobProblem> ValidateJob(const JobSpec& spec, const std::vector<std::string>& known) {
  std::vector<JobProblem> problems;
  CheckFields(spec, "", &problems);
  std::erase_if(problems, [&](const JobProblem& p) { return IsAtOrBelow(p.path, known); });
  std::vector<std::string> unsound = known;
  for (const JobProblem& problem : problems) unsound.push_back(problem.path);
  for (JobProblem& problem : CrossFieldRules(spec, unsound).Run()) {
    problems.push_back(std::move(problem));
  }
  return problems;
}

JobHashes HashJob(const JobSpec& spec) {
  return {HashTexts(TextsOf(spec, IDENTITY)), HashTexts(TextsOf(spec, TRAJECTORY)),
          HashTexts(TextsOf(spec, OPERATIONAL))};
}

std::vector<std::string> DescribeChanges(const JobSpec& before, const JobSpec& after,
                                         ResumeClass resume) {
  const FieldTexts old_texts = TextsOf(before, resume);
  const FieldTexts new_texts = TextsOf(after, resume);
  FieldTexts paths = old_texts;
  paths.insert(new_texts.begin(), new_texts.end());
  auto text_in = [](const FieldTexts& texts, const std::string& path) {
    const auto found = texts.find(path);
    return found == texts.end() ? std::string("unset") : found->second;
  };
  std::vector<std::string> changes;
  for (const auto& [path, ignored] : paths) {
    const std::string was = text_in(old_texts, path);
    const std::string is = text_in(new_texts, path);
    if (was != is) changes.push_back(absl::StrCat(path, ": ", was, " -> ", is));
  }
  return changes;
}

bool IsMoeLayer(const ModelSpec& model, int layer) {
  if (!model.has_moe()) return false;
  const int64_t first = model.moe().pattern().first();
  const int64_t every = model.moe().pattern().has_every() ? model.moe().pattern().every() : 1;
  return layer >= first && (layer - first) % every == 0;
}

}  // namespace moesaic
