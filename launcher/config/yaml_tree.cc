#include "launcher/config/yaml_tree.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <array>
#include <sstream>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace moesaic {
namespace {

TextPlace PlaceOf(const YAML::Mark& mark) {
  return mark.is_null() ? TextPlace{} : TextPlace{mark.line + 1, mark.column + 1};
}

// Builds the tree out of yaml-cpp's events, which still have duplicate keys, quotes and anchors.
class TreeBuilder : public YAML::EventHandler {
 public:
  explicit TreeBuilder(YamlNode* root) : root_(root) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Finish(Make(YamlNode::kNull, mark, "", anchor));
  }

  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    YamlNode node = Make(YamlNode::kNull, mark, "", 0);
    node.refused = "aliases are not allowed: write the value out";
    Finish(std::move(node));
  }

  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    // yaml-cpp tags plain scalars "?" and quoted ones "!".
    YamlNode node = Make(YamlNode::kScalar, mark, tag == "!" ? "" : tag, anchor);
    node.text = value;
    node.quoted = tag == "!";
    Finish(std::move(node));
  }

  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Open(Make(YamlNode::kList, mark, tag, anchor), mark);
  }
  void OnSequenceEnd() override { Close(); }

  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Open(Make(YamlNode::kMap, mark, tag, anchor), mark);
  }
  void OnMapEnd() override { Close(); }

 private:
  static YamlNode Make(YamlNode::Kind kind, const YAML::Mark& mark, const std::string& tag,
                       YAML::anchor_t anchor) {
    YamlNode node;
    node.kind = kind;
    node.place = PlaceOf(mark);
    if (anchor != 0) node.refused = "anchors are not allowed: write the value out";
    if (!tag.empty() && tag != "?") {
      node.refused = absl::StrCat("the tag ", tag, " is not allowed");
    }
    return node;
  }

  void Open(YamlNode node, const YAML::Mark& mark) {
    if (open_.size() >= kMaxYamlDepth) {
      throw YAML::ParserException(mark, absl::StrCat("nested deeper than ", kMaxYamlDepth));
    }
    open_.push_back(std::move(node));
  }

  void Close() {
    YamlNode node = std::move(open_.back());
    open_.pop_back();
    Finish(std::move(node));
  }

  void Finish(YamlNode node) {
    if (open_.empty()) {
      *root_ = std::move(node);
      return;
    }
    YamlNode& parent = open_.back();
    const bool is_key = parent.kind == YamlNode::kMap && parent.keys.size() == parent.items.size();
    (is_key ? parent.keys : parent.items).push_back(std::move(node));
  }

  YamlNode* root_;
  std::vector<YamlNode> open_;
};

}  // namespace

std::optional<YamlError> ParseYaml(const std::string& text, YamlNode* root) {
  if (text.find('\0') != std::string::npos) return YamlError{{}, "the file holds NUL bytes"};
  try {
    std::istringstream input(text);
    YAML::Parser parser(input);
    TreeBuilder builder(root);
    parser.HandleNextDocument(builder);
    YamlNode second;
    TreeBuilder second_builder(&second);
    if (parser.HandleNextDocument(second_builder)) {
      return YamlError{second.place, "a second document starts here; a job file is one"};
    }
  } catch (const YAML::Exception& error) {
    return YamlError{PlaceOf(error.mark), error.msg};
  }
  return std::nullopt;
}

bool IsUntypedText(absl::string_view plain) {
  static constexpr std::array<absl::string_view, 9> kWords = {"",    "~",  "null", "true", "false",
                                                              "yes", "no", "on",   "off"};
  const std::string lower = absl::AsciiStrToLower(plain);
  if (std::find(kWords.begin(), kWords.end(), lower) != kWords.end()) return true;
  if (lower == ".nan" || lower == ".inf" || lower == "-.inf" || lower == "+.inf") return true;
  absl::string_view digits = lower;
  if (!absl::ConsumePrefix(&digits, "+")) absl::ConsumePrefix(&digits, "-");
  if (absl::ConsumePrefix(&digits, "0x") || absl::ConsumePrefix(&digits, "0o")) {
    return digits.find_first_not_of("0123456789abcdef") == absl::string_view::npos;
  }
  double ignored = 0;
  return digits.find_first_not_of("0123456789.e+-") == absl::string_view::npos &&
         absl::SimpleAtod(digits, &ignored);
}

}  // namespace moesaic
