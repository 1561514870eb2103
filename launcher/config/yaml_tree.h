// YAML text as a tree of plain nodes with their places. Only what a job file may use is let
// through: one document of maps, lists and scalars; no anchors, aliases or tags.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace moesaic {

// 1-based, as editors count.
struct TextPlace {
  int line = 1;
  int column = 1;
};

struct YamlNode {
  enum Kind { kNull, kScalar, kList, kMap };

  Kind kind = kNull;
  TextPlace place;
  std::string text;             // of a scalar
  bool quoted = false;          // or a block scalar: certainly a string
  std::string refused;          // why this node may not stand in a job file; empty: it may
  std::vector<YamlNode> items;  // of a list, or the values of a map
  std::vector<YamlNode> keys;   // of a map, one an item, in order and with duplicates
};

struct YamlError {
  TextPlace place;
  std::string message;
};

inline constexpr int kMaxYamlDepth = 32;

// The tree of `text` (kNull for an empty document), or the first error: bad syntax, a second
// document, or nesting deeper than kMaxYamlDepth. Anchors, aliases and tags are left to the reader
// of the tree (`refused`), which knows the path of the node.
std::optional<YamlError> ParseYaml(const std::string& text, YamlNode* root);

// Whether a plain scalar means something else than text to YAML 1.1 or 1.2: null, a boolean
// (also yes, no, on, off) or a number.
bool IsUntypedText(absl::string_view plain);

}  // namespace moesaic
