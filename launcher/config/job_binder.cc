#include "launcher/config/job_binder.h"

#include <map>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "launcher/config/spelling.h"
#include "proto/field_text.h"

namespace moesaic {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::OneofDescriptor;
using google::protobuf::Reflection;

std::vector<std::string> FieldNames(const Descriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.field_count(); ++i) names.push_back(type.field(i)->name());
  return names;
}

void CollectPaths(const Descriptor& type, const std::string& path,
                  std::vector<std::string>* paths) {
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor& field = *type.field(i);
    const std::string field_path = JoinPath(path, field.name());
    if (field.message_type() != nullptr) {
      CollectPaths(*field.message_type(), field_path, paths);
    } else {
      paths->push_back(field_path);
    }
  }
}

// The bare words that stand for a message: its own, and the names of its oneofs' members.
std::vector<std::string> BareWords(const Descriptor& type) {
  std::vector<std::string> words;
  const std::string& own = type.options().GetExtension(bare_word);
  if (!own.empty()) words.push_back(own);
  for (int i = 0; i < type.real_oneof_decl_count(); ++i) {
    for (int k = 0; k < type.oneof_decl(i)->field_count(); ++k) {
      words.push_back(type.oneof_decl(i)->field(k)->name());
    }
  }
  return words;
}

const char* KindName(YamlNode::Kind kind) {
  switch (kind) {
    case YamlNode::kNull:
      return "nothing";
    case YamlNode::kScalar:
      return "a single value";
    case YamlNode::kList:
      return "a list";
    case YamlNode::kMap:
      return "a map";
  }
  return "";
}

// Quotes say "this is text", which numbers and booleans are not; names of an enum and values with
// a unit are text.
bool TakesQuotes(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_STRING ||
         field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM || RulesOf(field).unit() != UNIT_NONE;
}

}  // namespace

std::vector<std::string> SchemaPaths() {
  std::vector<std::string> paths;
  CollectPaths(*JobSpec::descriptor(), "", &paths);
  return paths;
}

std::string UnknownKeyMessage(absl::string_view key, const Descriptor& type,
                              std::string* suggestion) {
  const std::vector<std::string> names = FieldNames(type);
  const std::string nearest = Nearest(key, names);
  const std::string unknown = absl::StrCat("unknown key \"", absl::Utf8SafeCHexEscape(key), "\"");
  if (!nearest.empty()) {
    if (suggestion != nullptr) *suggestion = nearest;
    return absl::StrCat(unknown, "; did you mean ", nearest, "?");
  }
  std::vector<std::string> elsewhere;
  for (const std::string& path : SchemaPaths()) {
    if (absl::EndsWith(path, absl::StrCat(".", key))) elsewhere.push_back(path);
  }
  if (!elsewhere.empty()) {
    return absl::StrCat(unknown, " here; there is ", absl::StrJoin(elsewhere, ", "));
  }
  if (names.empty()) return absl::StrCat(unknown, "; there are no keys here");
  return absl::StrCat(unknown, "; the keys here are ", absl::StrJoin(names, ", "));
}

void JobBinder::Report(TextPlace place, const std::string& path, std::string message) {
  draft_.Report(source_.Where(place), path, std::move(message));
}

void JobBinder::BindRoot(const YamlNode& root) {
  if (root.kind == YamlNode::kNull && root.refused.empty()) return;
  BindMessage(root, &draft_.spec, "");
}

Message* JobBinder::MutableMessage(const FieldTarget& target) {
  const Reflection& reflection = *target.parent->GetReflection();
  if (target.index >= 0) {
    return reflection.MutableRepeatedMessage(target.parent, target.field, target.index);
  }
  const OneofDescriptor* oneof = target.field->real_containing_oneof();
  if (oneof != nullptr && reflection.HasOneof(*target.parent, oneof)) {
    const FieldDescriptor* current = reflection.GetOneofFieldDescriptor(*target.parent, oneof);
    if (current != target.field) {
      const size_t dot = target.path.rfind('.');
      draft_.ForgetOrigins(JoinPath(target.path.substr(0, dot), current->name()));
    }
  }
  return reflection.MutableMessage(target.parent, target.field);
}

void JobBinder::BindField(const YamlNode& node, TextPlace key, const FieldTarget& target) {
  if (!node.refused.empty()) {
    Report(node.place, target.path, node.refused);
  } else if (node.kind == YamlNode::kNull) {
    // YAML places it after the key, perhaps some lines later.
    Report(key, target.path, "has no value: give one, or leave the key out");
  } else if (target.field->is_repeated() && target.index < 0) {
    draft_.SetOrigin(target.path, source_, key);
    BindList(node, target);
  } else if (target.IsScalar()) {
    BindScalar(node, target);
  } else {
    Message* message = MutableMessage(target);
    draft_.SetOrigin(target.path, source_, key);
    BindMessage(node, message, target.path);
  }
}

void JobBinder::BindMessage(const YamlNode& node, Message* message, const std::string& path) {
  if (!node.refused.empty()) {
    Report(node.place, path, node.refused);
  } else if (node.kind == YamlNode::kMap) {
    BindMap(node, message, path);
  } else if (node.kind == YamlNode::kScalar) {
    BindWord(node, message, path);
  } else {
    Report(node.place, path, absl::StrCat("expected a map, got ", KindName(node.kind)));
  }
}

void JobBinder::BindMap(const YamlNode& node, Message* message, const std::string& path) {
  const Descriptor& type = *message->GetDescriptor();
  std::map<std::string, TextPlace> seen;
  std::map<const OneofDescriptor*, std::string> members;
  for (size_t i = 0; i < node.keys.size(); ++i) {
    const YamlNode& key = node.keys[i];
    if (key.kind != YamlNode::kScalar || !key.refused.empty()) {
      Report(key.place, path,
             key.refused.empty() ? absl::StrCat("a key must be a word, not ", KindName(key.kind))
                                 : key.refused);
      continue;
    }
    const FieldDescriptor* field = type.FindFieldByName(key.text);
    if (field == nullptr) {
      ReportUnknownKey(key, type, path);
      continue;
    }
    const std::string field_path = JoinPath(path, key.text);
    const auto [first, is_first] = seen.emplace(key.text, key.place);
    if (!is_first) {
      Report(key.place, field_path,
             absl::StrCat("duplicate key; the first one is in line ", first->second.line));
      continue;
    }
    if (const OneofDescriptor* oneof = field->real_containing_oneof(); oneof != nullptr) {
      const auto [member, is_only] = members.emplace(oneof, key.text);
      if (!is_only) {
        Report(key.place, field_path,
               absl::StrCat("cannot be given beside ", member->second, ": choose one of them"));
        continue;
      }
    }
    BindField(node.items[i], key.place, {message, field, -1, field_path});
  }
}

void JobBinder::ReportUnknownKey(const YamlNode& key, const Descriptor& type,
                                 const std::string& path) {
  std::string suggestion;
  std::string message = UnknownKeyMessage(key.text, type, &suggestion);
  if (!suggestion.empty()) draft_.known.push_back(JoinPath(path, suggestion));
  draft_.problems.push_back({source_.Where(key.place), path, std::move(message)});
}

void JobBinder::BindWord(const YamlNode& node, Message* message, const std::string& path) {
  const Descriptor& type = *message->GetDescriptor();
  const std::string& own = type.options().GetExtension(bare_word);
  if (!own.empty() && node.text == own) {
    message->Clear();
    draft_.ForgetOrigins(path);
    draft_.SetOrigin(path, source_, node.place);
    return;
  }
  const FieldDescriptor* member = type.FindFieldByName(node.text);
  if (member != nullptr && member->real_containing_oneof() != nullptr) {
    const std::string member_path = JoinPath(path, node.text);
    MutableMessage({message, member, -1, member_path})->Clear();
    draft_.ForgetOrigins(member_path);
    draft_.SetOrigin(member_path, source_, node.place);
    return;
  }
  const std::vector<std::string> words = BareWords(type);
  Report(
      node.place, path,
      absl::StrCat("expected a map", words.empty() ? "" : " or one of ", absl::StrJoin(words, ", "),
                   ", got \"", absl::Utf8SafeCHexEscape(node.text), "\""));
}

void JobBinder::BindList(const YamlNode& node, const FieldTarget& target) {
  if (node.kind != YamlNode::kList) {
    Report(node.place, target.path,
           absl::StrCat("expected a list, got ", KindName(node.kind),
                        node.kind == YamlNode::kMap ? "; write [{...}] or put - before it" : ""));
    return;
  }
  const Reflection& reflection = *target.parent->GetReflection();
  reflection.ClearField(target.parent, target.field);
  const std::string where = draft_.WhereOf(target.path, "");
  draft_.ForgetOrigins(target.path);
  draft_.origins[target.path] = {source_.kind, where};
  for (size_t i = 0; i < node.items.size(); ++i) {
    const std::string path = ElementPath(target.path, static_cast<int>(i));
    draft_.SetOrigin(path, source_, node.items[i].place);
    BindMessage(node.items[i], reflection.AddMessage(target.parent, target.field), path);
  }
}

void JobBinder::BindScalar(const YamlNode& node, const FieldTarget& target) {
  if (node.kind != YamlNode::kScalar) {
    Report(node.place, target.path,
           absl::StrCat("expected a single value, got ", KindName(node.kind)));
  } else if (!node.quoted && node.text == "auto") {
    BindAuto(node.place, target);
  } else if (node.quoted && !TakesQuotes(*target.field)) {
    Report(node.place, target.path,
           absl::StrCat("expected ",
                        target.field->cpp_type() == FieldDescriptor::CPPTYPE_BOOL ? "true or false"
                                                                                  : "a number",
                        ", got text: remove the quotes"));
  } else if (!node.quoted && target.field->cpp_type() == FieldDescriptor::CPPTYPE_STRING &&
             IsUntypedText(node.text)) {
    Report(node.place, target.path,
           absl::StrCat("expected text, got ", node.text, ": write \"", node.text, "\""));
  } else {
    SetScalar(node.text, node.place, target);
  }
}

void JobBinder::BindText(absl::string_view text, const FieldTarget& target) {
  if (text == "auto") {
    BindAuto({}, target);
  } else {
    SetScalar(text, {}, target);
  }
}

void JobBinder::SetScalar(absl::string_view text, TextPlace place, const FieldTarget& target) {
  const absl::Status status = SetFieldFromText(text, *target.field, target.parent);
  if (!status.ok()) {
    Report(place, target.path, std::string(status.message()));
    return;
  }
  draft_.SetOrigin(target.path, source_, place);
}

void JobBinder::BindAuto(TextPlace place, const FieldTarget& target) {
  const FieldRules& field_rules = RulesOf(*target.field);
  if (field_rules.required()) {
    Report(place, target.path, "cannot be auto: give a value");
  } else if (!field_rules.default_value().empty()) {
    Report(place, target.path,
           absl::StrCat("cannot be auto: leave the key out for its default, ",
                        field_rules.default_value()));
  } else {
    target.parent->GetReflection()->ClearField(target.parent, target.field);
    draft_.ForgetOrigins(target.path);
  }
}

}  // namespace moesaic
