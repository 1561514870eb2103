// Table: text in columns.
#pragma once

#include <ostream>
#include <string>
#include <utility>
#include <vector>

namespace moesaic {

// Columns as wide as their widest cell, two spaces apart; the last is not padded. Cells are escaped.
class Table {
 public:
  explicit Table(std::vector<std::string> header) { rows_.push_back(std::move(header)); }
  void Add(std::vector<std::string> row) { rows_.push_back(std::move(row)); }
  void Print(std::ostream& out) const;

 private:
  std::vector<std::vector<std::string>> rows_;
};

}  // namespace moesaic
