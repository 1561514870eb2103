#include "launcher/config/job_textproto.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/io/zero_copy_stream_impl_lite.h>
#include <google/protobuf/text_format.h>

#include <vector>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using google::protobuf::TextFormat;
using google::protobuf::io::Tokenizer;

TextPlace PlaceOf(int line, int column) { return {line + 1, column + 1}; }

class ProblemCollector : public google::protobuf::io::ErrorCollector {
 public:
  ProblemCollector(const ValueSource& source, JobDraft* draft) : source_(source), draft_(*draft) {}

  void AddError(int line, google::protobuf::io::ColumnNumber column,
                const std::string& message) override {
    // A negative line means the whole text.
    draft_.Report(source_.Where(line < 0 ? TextPlace{} : PlaceOf(line, column)), "", message);
  }

 private:
  const ValueSource& source_;
  JobDraft& draft_;
};

class SilentCollector : public google::protobuf::io::ErrorCollector {
 public:
  void AddError(int, google::protobuf::io::ColumnNumber, const std::string&) override {}
};

void RefuseOctalAndHex(const std::string& text, const ValueSource& source, JobDraft* draft) {
  google::protobuf::io::ArrayInputStream input(text.data(), static_cast<int>(text.size()));
  SilentCollector silent;  // the reader proper reports the same errors
  Tokenizer tokenizer(&input, &silent);
  tokenizer.set_comment_style(Tokenizer::SH_COMMENT_STYLE);
  while (tokenizer.Next()) {
    const Tokenizer::Token& token = tokenizer.current();
    if (token.type == Tokenizer::TYPE_INTEGER && token.text.size() > 1 && token.text[0] == '0') {
      draft->Report(source.Where(PlaceOf(token.line, token.column)), "",
                    absl::StrCat("expected a number in decimal, got ", token.text));
    }
  }
}

void SetOrigins(const Message& message, const TextFormat::ParseInfoTree& tree,
                const std::string& path, const ValueSource& source, JobDraft* draft) {
  std::vector<const FieldDescriptor*> fields;
  const Reflection& reflection = *message.GetReflection();
  reflection.ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const std::string field_path = JoinPath(path, field->name());
    const int count = field->is_repeated() ? reflection.FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const int index = field->is_repeated() ? i : -1;
      const std::string value_path = index < 0 ? field_path : ElementPath(field_path, index);
      const TextFormat::ParseLocation location = tree.GetLocation(field, index);
      const TextPlace place = PlaceOf(location.line, location.column);
      draft->SetOrigin(value_path, source, place);
      if (i == 0) draft->SetOrigin(field_path, source, place);
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
      const TextFormat::ParseInfoTree* nested = tree.GetTreeForNested(field, index);
      if (nested == nullptr) continue;
      SetOrigins(index < 0 ? reflection.GetMessage(message, field)
                           : reflection.GetRepeatedMessage(message, field, index),
                 *nested, value_path, source, draft);
    }
  }
}

}  // namespace

void BindTextproto(const std::string& text, const ValueSource& source, JobDraft* draft) {
  RefuseOctalAndHex(text, source, draft);
  ProblemCollector problems(source, draft);
  TextFormat::ParseInfoTree tree;
  TextFormat::Parser parser;
  parser.RecordErrorsTo(&problems);
  parser.WriteLocationsTo(&tree);
  parser.SetRecursionLimit(kMaxYamlDepth);
  if (!parser.ParseFromString(text, &draft->spec)) return;
  SetOrigins(draft->spec, tree, "", source, draft);
}

}  // namespace moesaic
