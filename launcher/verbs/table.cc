#include "launcher/verbs/table.h"

#include <algorithm>

#include "base/foreign_text.h"

namespace moesaic {

void Table::Print(std::ostream& out) const {
  std::vector<std::vector<std::string>> rows = rows_;
  std::vector<size_t> widths(rows.front().size(), 0);
  for (std::vector<std::string>& row : rows) {
    for (size_t column = 0; column < row.size(); ++column) {
      row[column] = EscapeControls(row[column]);
      std::replace(row[column].begin(), row[column].end(), '\n', ' ');
      if (row[column].empty()) row[column].push_back('-');
      widths[column] = std::max(widths[column], row[column].size());
    }
  }
  for (const std::vector<std::string>& row : rows) {
    for (size_t column = 0; column < row.size(); ++column) {
      out << row[column];
      if (column + 1 < row.size()) out << std::string(widths[column] - row[column].size() + 2, ' ');
    }
    out << '\n';
  }
  out << std::flush;
}

}  // namespace moesaic
