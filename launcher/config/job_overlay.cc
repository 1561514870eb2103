#include "launcher/config/job_overlay.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <algorithm>
#include <array>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "launcher/config/job_binder.h"
#include "launcher/config/spelling.h"

namespace moesaic {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr absl::string_view kPrefix = "MOESAIC_";
constexpr std::array<absl::string_view, 4> kReserved = {"MOESAIC_TOKEN", "MOESAIC_LOG_LEVEL",
                                                        "MOESAIC_COORDINATOR", "MOESAIC_TLS_DIR"};

// "train[0]" of a path.
struct PathPart {
  std::string name;
  int index = -1;
};

absl::StatusOr<PathPart> ParsePart(absl::string_view text) {
  PathPart part{std::string(text), -1};
  const size_t open = text.find('[');
  if (open == absl::string_view::npos) return part;
  part.name = std::string(text.substr(0, open));
  absl::string_view index = text.substr(open + 1);
  if (!absl::ConsumeSuffix(&index, "]") || !absl::SimpleAtoi(index, &part.index) ||
      part.index < 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", absl::Utf8SafeCHexEscape(text), "\" is not a key with an index such as train[0]"));
  }
  return part;
}

// Makes `target` the field that `part` names within `message`.
absl::Status Step(const PathPart& part, Message* message, FieldTarget* target) {
  const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(part.name);
  if (field == nullptr) {
    return absl::InvalidArgumentError(
        UnknownKeyMessage(part.name, *message->GetDescriptor(), nullptr));
  }
  target->parent = message;
  target->field = field;
  target->index = part.index;
  target->path = JoinPath(target->path, part.name);
  if (part.index < 0) return absl::OkStatus();
  if (!field->is_repeated()) {
    return absl::InvalidArgumentError(absl::StrCat(target->path, " is not a list"));
  }
  const Reflection& reflection = *message->GetReflection();
  const int size = reflection.FieldSize(*message, field);
  if (part.index > size) {
    return absl::InvalidArgumentError(
        absl::StrCat("has ", size, " elements, so the next index is ", size, ", not ", part.index));
  }
  if (part.index == size) reflection.AddMessage(message, field);
  target->path = ElementPath(target->path, part.index);
  return absl::OkStatus();
}

absl::StatusOr<FieldTarget> FindTarget(absl::string_view path, JobBinder* binder, JobSpec* spec) {
  FieldTarget target;
  Message* message = spec;
  for (absl::string_view text : absl::StrSplit(path, '.')) {
    if (target.field != nullptr) {
      if (target.IsScalar()) {
        return absl::InvalidArgumentError(absl::StrCat(target.path, " is a single value"));
      }
      if (target.field->is_repeated() && target.index < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(target.path, " is a list: write ", target.path, "[0]"));
      }
      message = binder->MutableMessage(target);
    }
    absl::StatusOr<PathPart> part = ParsePart(text);
    if (!part.ok()) return part.status();
    absl::Status stepped = Step(*part, message, &target);
    if (!stepped.ok()) return stepped;
  }
  return target;
}

// train.steps to TRAIN__STEPS.
std::string VariableOf(absl::string_view path) {
  return absl::AsciiStrToUpper(absl::StrReplaceAll(path, {{".", "__"}}));
}

// MOESAIC_DATA__TRAIN__0__PATH to data.train[0].path.
std::string PathOf(absl::string_view variable) {
  std::string path;
  const std::string lower = absl::AsciiStrToLower(absl::StripPrefix(variable, kPrefix));
  for (absl::string_view part : absl::StrSplit(lower, "__")) {
    const bool is_index =
        !part.empty() && std::all_of(part.begin(), part.end(), absl::ascii_isdigit);
    path = is_index ? absl::StrCat(path, "[", part, "]") : JoinPath(path, part);
  }
  return path;
}

// Whether the schema has `path`, as a value or as something that holds values.
bool IsSchemaPath(absl::string_view path) {
  std::string without_indices;
  for (size_t i = 0; i < path.size(); ++i) {
    if (path[i] == '[') {
      i = path.find(']', i);
    } else {
      without_indices += path[i];
    }
  }
  const std::string below = absl::StrCat(without_indices, ".");
  const std::vector<std::string> paths = SchemaPaths();
  return std::any_of(paths.begin(), paths.end(), [&](const std::string& known) {
    return known == without_indices || absl::StartsWith(known, below);
  });
}

std::string UnknownVariableMessage(absl::string_view name) {
  std::vector<std::string> candidates;
  for (absl::string_view reserved : kReserved) {
    candidates.emplace_back(absl::StripPrefix(reserved, kPrefix));
  }
  for (const std::string& path : SchemaPaths()) candidates.push_back(VariableOf(path));
  const std::string nearest = Nearest(absl::StripPrefix(name, kPrefix), candidates);
  return absl::StrCat("no key of the job file has this name",
                      nearest.empty() ? " (MOESAIC_TRAIN__STEPS is train.steps)"
                                      : absl::StrCat("; did you mean ", kPrefix, nearest, "?"));
}

}  // namespace

void SetAtPath(absl::string_view path, absl::string_view text, const ValueSource& source,
               JobDraft* draft) {
  JobBinder binder(source, draft);
  absl::StatusOr<FieldTarget> target = FindTarget(path, &binder, &draft->spec);
  if (!target.ok()) {
    draft->Report(source.name, std::string(path), std::string(target.status().message()));
    return;
  }
  if (target->IsScalar()) {
    binder.BindText(text, *target);
    return;
  }
  YamlNode node;
  if (std::optional<YamlError> error = ParseYaml(std::string(text), &node); error.has_value()) {
    draft->Report(source.name, std::string(path), error->message);
    return;
  }
  binder.BindField(node, {}, *target);
}

bool IsReservedVariable(absl::string_view name) {
  return std::find(kReserved.begin(), kReserved.end(), name) != kReserved.end();
}

void ApplyEnvironment(const std::map<std::string, std::string>& environment, JobDraft* draft) {
  for (const auto& [name, text] : environment) {
    if (!absl::StartsWith(name, kPrefix) || IsReservedVariable(name)) continue;
    const std::string path = PathOf(name);
    if (IsSchemaPath(path)) {
      SetAtPath(path, text, {Origin::kEnvironment, name}, draft);
    } else {
      draft->Report(name, "", UnknownVariableMessage(name));
    }
  }
}

}  // namespace moesaic
