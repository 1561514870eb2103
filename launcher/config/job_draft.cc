#include "launcher/config/job_draft.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace moesaic {

std::string ConfigProblem::Line() const {
  return absl::StrCat(where, ": ", path, path.empty() ? "" : ": ", message);
}

std::string ValueSource::Where(TextPlace place) const {
  return kind == Origin::kFile ? absl::StrCat(name, ":", place.line, ":", place.column) : name;
}

void JobDraft::Report(std::string where, std::string path, std::string message) {
  if (!path.empty()) known.push_back(path);
  problems.push_back({std::move(where), std::move(path), std::move(message)});
}

void JobDraft::SetOrigin(const std::string& path, const ValueSource& source, TextPlace place) {
  origins[path] = {source.kind, source.Where(place)};
}

void JobDraft::ForgetOrigins(absl::string_view path) {
  std::erase_if(origins, [&](const auto& entry) {
    return absl::StartsWith(entry.first, path) &&
           (entry.first.size() == path.size() || entry.first[path.size()] == '.' ||
            entry.first[path.size()] == '[');
  });
}

std::string JobDraft::WhereOf(absl::string_view path, const std::string& otherwise) const {
  while (!path.empty()) {
    const auto found = origins.find(std::string(path));
    if (found != origins.end()) return found->second.text;
    const size_t end = path.find_last_of(".[");
    path = path.substr(0, end == absl::string_view::npos ? 0 : end);
  }
  return otherwise;
}

std::string JoinPath(absl::string_view path, absl::string_view name) {
  return path.empty() ? std::string(name) : absl::StrCat(path, ".", name);
}

std::string ElementPath(absl::string_view path, int index) {
  return absl::StrCat(path, "[", index, "]");
}

}  // namespace moesaic
