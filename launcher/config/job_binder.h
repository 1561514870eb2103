// Binds text and YAML nodes to the fields of a job, by reflection on proto/job.proto. Reports what
// does not fit and goes on, so that all problems of a source come out at once.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <string>

#include "absl/strings/string_view.h"
#include "launcher/config/job_draft.h"
#include "launcher/config/yaml_tree.h"

namespace moesaic {

// A field of a job. `index` >= 0: that element of a repeated field, which exists.
struct FieldTarget {
  google::protobuf::Message* parent = nullptr;
  const google::protobuf::FieldDescriptor* field = nullptr;
  int index = -1;
  std::string path;

  bool IsScalar() const {
    return field->cpp_type() != google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE;
  }
};

// Binds the values of one source over what `draft` holds: scalars replace, maps merge, lists and
// bare words replace.
class JobBinder {
 public:
  JobBinder(const ValueSource& source, JobDraft* draft) : source_(source), draft_(*draft) {}

  // The map of a whole job; an empty document is an empty map.
  void BindRoot(const YamlNode& root);
  // A value that is written at `key`.
  void BindField(const YamlNode& node, TextPlace key, const FieldTarget& target);
  // The raw text of a scalar field, from a place without YAML's rules about quotes.
  void BindText(absl::string_view text, const FieldTarget& target);

  // The message behind `target`, made when it is absent; another member of its oneof goes.
  google::protobuf::Message* MutableMessage(const FieldTarget& target);

 private:
  void BindMessage(const YamlNode& node, google::protobuf::Message* message,
                   const std::string& path);
  void BindMap(const YamlNode& node, google::protobuf::Message* message, const std::string& path);
  void BindWord(const YamlNode& node, google::protobuf::Message* message, const std::string& path);
  void BindList(const YamlNode& node, const FieldTarget& target);
  void BindScalar(const YamlNode& node, const FieldTarget& target);
  void SetScalar(absl::string_view text, TextPlace place, const FieldTarget& target);
  void BindAuto(TextPlace place, const FieldTarget& target);
  void ReportUnknownKey(const YamlNode& key, const google::protobuf::Descriptor& type,
                        const std::string& path);
  void Report(TextPlace place, const std::string& path, std::string message);

  const ValueSource& source_;
  JobDraft& draft_;
};

// "unknown key \"hiden\"; did you mean hidden?", for a key that `type` does not have. `suggestion`,
// when given, gets the key that was probably meant, or stays empty.
std::string UnknownKeyMessage(absl::string_view key, const google::protobuf::Descriptor& type,
                              std::string* suggestion);

// Paths of all scalar fields of the schema, lists without an index: "data.train.path".
std::vector<std::string> SchemaPaths();

}  // namespace moesaic
