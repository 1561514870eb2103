#include "launcher/config/job_writer.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "launcher/config/yaml_tree.h"
#include "proto/field_text.h"

namespace moesaic {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using Json = nlohmann::ordered_json;

bool IsPlainText(absl::string_view text) {
  if (IsUntypedText(text) || text == "auto") return false;
  auto is_plain = [](char c) { return absl::ascii_isalnum(c) || c == '_' || c == '/' || c == '.'; };
  return is_plain(text[0]) && std::all_of(text.begin(), text.end(), [&](char c) {
           return is_plain(c) || c == '-' || c == '+';
         });
}

std::string Quoted(absl::string_view text) {
  std::string quoted = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&quoted, "\\", absl::string_view(&c, 1));
    } else if (absl::ascii_iscntrl(c)) {
      absl::StrAppend(&quoted, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string ScalarYaml(const Message& message, const FieldDescriptor& field) {
  const std::string text = FieldText(message, field);
  const bool quote = field.cpp_type() == FieldDescriptor::CPPTYPE_STRING && !IsPlainText(text);
  return quote ? Quoted(text) : text;
}

bool IsMessage(const FieldDescriptor& field) {
  return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
}

class YamlWriter {
 public:
  // `origins` may be null.
  explicit YamlWriter(const JobOrigins* origins) : origins_(origins) {}

  std::string Write(const JobSpec& spec) {
    WriteFields(spec, "", "", "");
    size_t width = 0;
    for (const Line& line : lines_) {
      if (!line.comment.empty()) width = std::max(width, line.text.size());
    }
    std::string text;
    for (const Line& line : lines_) {
      absl::StrAppend(&text, line.text);
      if (!line.comment.empty()) {
        absl::StrAppend(&text, std::string(width - line.text.size() + 2, ' '), "# ", line.comment);
      }
      absl::StrAppend(&text, "\n");
    }
    return text;
  }

 private:
  struct Line {
    std::string text;
    std::string comment;
  };

  // `first` starts the first line, `indent` the others. Returns whether there was any.
  bool WriteFields(const Message& message, const std::string& path, std::string first,
                   const std::string& indent) {
    const Reflection& reflection = *message.GetReflection();
    const size_t before = lines_.size();
    for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
      const FieldDescriptor& field = *message.GetDescriptor()->field(i);
      const std::string field_path = JoinPath(path, field.name());
      const std::string key = absl::StrCat(lines_.size() == before ? first : indent, field.name());
      if (field.is_repeated()) {
        WriteList(message, field, field_path, key, indent);
      } else if (reflection.HasField(message, &field)) {
        if (IsMessage(field)) {
          WriteChild(reflection.GetMessage(message, &field), field_path, key, indent);
        } else {
          lines_.push_back(
              {absl::StrCat(key, ": ", ScalarYaml(message, field)), OriginOf(field_path)});
        }
      } else if (origins_ != nullptr && !IsMessage(field)) {
        lines_.push_back({absl::StrCat(key, ": auto"), "default"});
      }
    }
    return lines_.size() > before;
  }

  void WriteChild(const Message& child, const std::string& path, const std::string& key,
                  const std::string& indent) {
    lines_.push_back({absl::StrCat(key, ":"), ""});
    const size_t header = lines_.size() - 1;
    const std::string deeper = indent + "  ";
    if (!WriteFields(child, path, deeper, deeper)) {
      lines_[header] = {absl::StrCat(key, ": {}"), OriginOf(path)};
    }
  }

  void WriteList(const Message& message, const FieldDescriptor& field, const std::string& path,
                 const std::string& key, const std::string& indent) {
    const Reflection& reflection = *message.GetReflection();
    const int size = reflection.FieldSize(message, &field);
    if (size == 0) return;
    lines_.push_back({absl::StrCat(key, ":"), ""});
    for (int i = 0; i < size; ++i) {
      const std::string element = indent + "  - ";
      if (!WriteFields(reflection.GetRepeatedMessage(message, &field, i), ElementPath(path, i),
                       element, indent + "    ")) {
        lines_.push_back({element + "{}", OriginOf(ElementPath(path, i))});
      }
    }
  }

  std::string OriginOf(const std::string& path) const {
    if (origins_ == nullptr) return "";
    const auto found = origins_->find(path);
    return found == origins_->end() ? "" : found->second.text;
  }

  const JobOrigins* origins_;
  std::vector<Line> lines_;
};

Json ScalarJson(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  if (RulesOf(field).unit() != UNIT_NONE) return FieldText(message, field);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field);
    case FieldDescriptor::CPPTYPE_UINT32:
      return reflection.GetUInt32(message, &field);
    case FieldDescriptor::CPPTYPE_UINT64:
      return reflection.GetUInt64(message, &field);
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return reflection.GetDouble(message, &field);
    default:
      return FieldText(message, field);
  }
}

Json MessageJson(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  std::vector<const FieldDescriptor*> fields;
  reflection.ListFields(message, &fields);
  Json object = Json::object();
  for (const FieldDescriptor* field : fields) {
    if (field->is_repeated()) {
      Json list = Json::array();
      for (int i = 0; i < reflection.FieldSize(message, field); ++i) {
        list.push_back(MessageJson(reflection.GetRepeatedMessage(message, field, i)));
      }
      object[field->name()] = std::move(list);
    } else if (IsMessage(*field)) {
      object[field->name()] = MessageJson(reflection.GetMessage(message, field));
    } else {
      object[field->name()] = ScalarJson(message, *field);
    }
  }
  return object;
}

}  // namespace

std::string WriteYaml(const JobSpec& spec) { return YamlWriter(nullptr).Write(spec); }

std::string WriteYaml(const JobSpec& spec, const JobOrigins& origins) {
  return YamlWriter(&origins).Write(spec);
}

std::string WriteTextproto(const JobSpec& spec) {
  std::string text;
  google::protobuf::TextFormat::PrintToString(spec, &text);
  return text;
}

std::string WriteJson(const JobSpec& spec) { return MessageJson(spec).dump(2) + "\n"; }

}  // namespace moesaic
