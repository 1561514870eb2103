#include "launcher/config/job_file.h"

#include <google/protobuf/descriptor.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launcher/config/job_binder.h"
#include "launcher/config/job_overlay.h"
#include "launcher/config/job_textproto.h"
#include "proto/field_text.h"
#include "proto/job_spec.h"
#include "trainer/recipe/recipe.h"

namespace moesaic {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// False when the text could not be read to its end, so that what is missing means nothing.
bool BindFile(const JobText& file, JobDraft* draft) {
  const ValueSource source{Origin::kFile, file.name};
  if (file.text.size() > kMaxJobFileBytes) {
    draft->Report(file.name, "", absl::StrCat("is larger than ", FormatBytes(kMaxJobFileBytes)));
    return false;
  }
  if (file.textproto) {
    BindTextproto(file.text, source, draft);
    return draft->problems.empty();
  }
  YamlNode root;
  if (std::optional<YamlError> error = ParseYaml(file.text, &root); error.has_value()) {
    draft->Report(source.Where(error->place), "", error->message);
    return false;
  }
  JobBinder(source, draft).BindRoot(root);
  return true;
}

void ApplySets(const std::vector<std::string>& sets, JobDraft* draft) {
  for (const std::string& set : sets) {
    const size_t equals = set.find('=');
    if (equals == std::string::npos || equals == 0) {
      draft->Report(absl::StrCat("--set ", set), "", "write it as --set key.path=value");
      continue;
    }
    SetAtPath(set.substr(0, equals), set.substr(equals + 1), {Origin::kSet, "--set"}, draft);
  }
}

// A stand-in for the place of what nobody wrote.
std::string TopOf(const JobSources& sources) {
  return sources.text.has_value() ? absl::StrCat(sources.text->name, ":1:1") : "job";
}

void ResolveVocabulary(const JobSources& sources, JobDraft* draft) {
  if (!sources.vocabulary_of || !draft->spec.data().has_tokenizer()) return;
  const std::string& tokenizer = draft->spec.data().tokenizer();
  const absl::StatusOr<uint32_t> tokens = sources.vocabulary_of(tokenizer);
  if (!tokens.ok()) {
    // Its place is the tokenizer's; the vocabulary is missing only because of it.
    draft->Report(draft->WhereOf("data.tokenizer", TopOf(sources)), "data.tokenizer",
                  std::string(tokens.status().message()));
    return;
  }
  ModelSpec& model = *draft->spec.mutable_model();
  if (!model.has_vocabulary()) {
    model.set_vocabulary(*tokens);
    draft->origins["model.vocabulary"] = {Origin::kDerived, tokenizer};
  } else if (model.vocabulary() < *tokens) {
    draft->Report(draft->WhereOf("model.vocabulary", TopOf(sources)), "model.vocabulary",
                  absl::StrCat("must be at least the ", *tokens, " tokens of ", tokenizer, ", not ",
                               model.vocabulary()));
  }
}

class InputCheck {
 public:
  InputCheck(const std::string& top, JobDraft* draft) : top_(top), draft_(*draft) {}

  void Run() {
    const DataSpec data = draft_.spec.data();
    if (data.has_tokenizer()) Need("data.tokenizer", data.tokenizer());
    CheckSources("data.train", data.train());
    CheckSources("data.validation", data.validation());
    if (draft_.spec.train().has_init_from()) {
      Need("train.init_from", draft_.spec.train().init_from());
    }
  }

 private:
  template <typename Sources>
  void CheckSources(const std::string& path, const Sources& sources) {
    for (int i = 0; i < sources.size(); ++i) {
      const std::string source_path = JoinPath(ElementPath(path, i), "path");
      if (!sources[i].has_path()) continue;
      for (const char* suffix : {".bin", ".idx"}) {
        if (!Need(source_path, absl::StrCat(sources[i].path(), suffix))) break;
      }
    }
  }

  bool Need(const std::string& path, const std::string& file) {
    std::error_code error;
    if (std::filesystem::exists(file, error)) return true;
    const bool reported =
        std::find(draft_.known.begin(), draft_.known.end(), path) != draft_.known.end();
    if (!reported) {
      draft_.Report(draft_.WhereOf(path, top_), path, absl::StrCat("there is no file ", file));
    }
    return false;
  }

  const std::string& top_;
  JobDraft& draft_;
};

// Gives every set scalar without an origin one: its default, or what it was derived from.
void CompleteOrigins(const Message& message, const std::string& path, JobOrigins* origins) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string field_path = JoinPath(path, field->name());
    const Origin otherwise = !RulesOf(*field).default_value().empty() ||
                                     field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE
                                 ? Origin{Origin::kDefault, "default"}
                                 : Origin{Origin::kDerived, "derived"};
    origins->emplace(field_path, otherwise);
    if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (!field->is_repeated()) {
      CompleteOrigins(reflection.GetMessage(message, field), field_path, origins);
      continue;
    }
    for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
      CompleteOrigins(reflection.GetRepeatedMessage(message, field, i), ElementPath(field_path, i),
                      origins);
    }
  }
}

// Fills what the recipe's preset says, and the numbers that recipe.experts changes.
void ResolveRecipe(const std::string& top, JobDraft* draft) {
  const MoeSpec given = draft->spec.model().moe();
  for (const JobProblem& problem : ApplyPreset(&draft->spec)) {
    draft->Report(draft->WhereOf(problem.path, top), problem.path, problem.message);
  }
  JobOrigins filled;
  CompleteOrigins(draft->spec.recipe(), "recipe", &filled);
  const Origin preset = {Origin::kPreset, "preset " + draft->spec.recipe().preset()};
  for (const auto& [path, ignored] : filled) draft->origins.emplace(path, preset);

  const MoeSpec& moe = draft->spec.model().moe();
  const auto derive = [draft](const char* path, uint32_t before, uint32_t after) {
    if (before != after) draft->origins[path] = {Origin::kDerived, "recipe.experts"};
  };
  derive("model.moe.experts", given.experts(), moe.experts());
  derive("model.moe.active", given.active(), moe.active());
  derive("model.moe.expert_width", given.expert_width(), moe.expert_width());
  derive("model.moe.shared_width", given.shared_width(), moe.shared_width());
}

absl::Status ProblemsOf(const JobDraft& draft) {
  if (draft.problems.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrJoin(draft.problems, "\n", [](std::string* out, const ConfigProblem& problem) {
        absl::StrAppend(out, problem.Line());
      }));
}

}  // namespace

absl::StatusOr<JobText> ReadJobText(const std::string& path) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return absl::NotFoundError(absl::StrCat("there is no job file ", path));
  }
  if (!std::filesystem::is_regular_file(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  }
  JobText job{path, "", absl::EndsWith(path, ".textproto")};
  std::ifstream file(path, std::ios::binary);
  job.text.resize(kMaxJobFileBytes + 1);
  file.read(job.text.data(), static_cast<std::streamsize>(job.text.size()));
  if (file.bad() || !file.is_open()) {
    return absl::PermissionDeniedError(absl::StrCat("cannot read the job file ", path));
  }
  job.text.resize(static_cast<size_t>(file.gcount()));
  return job;
}

absl::StatusOr<LoadedJob> LoadJob(const JobSources& sources) {
  JobDraft draft;
  if (sources.text.has_value() && !BindFile(*sources.text, &draft)) return ProblemsOf(draft);
  ApplyEnvironment(sources.environment, &draft);
  ApplySets(sources.sets, &draft);
  for (const JobFlag& flag : sources.flags) {
    SetAtPath(flag.path, flag.value, {Origin::kFlag, flag.flag}, &draft);
  }
  LoadedJob job;
  job.given = draft.spec;
  const std::string top = TopOf(sources);
  ResolveRecipe(top, &draft);
  ApplyDefaults(&draft.spec);
  ResolveVocabulary(sources, &draft);
  for (const JobProblem& problem : ValidateJob(draft.spec, draft.known)) {
    draft.Report(draft.WhereOf(problem.path, top), problem.path, problem.message);
  }
  if (sources.check_inputs) InputCheck(top, &draft).Run();
  if (absl::Status problems = ProblemsOf(draft); !problems.ok()) return problems;
  CompleteOrigins(draft.spec, "", &draft.origins);
  job.spec = std::move(draft.spec);
  job.origins = std::move(draft.origins);
  return job;
}

}  // namespace moesaic
