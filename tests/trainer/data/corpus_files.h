// Small corpora on disk, for the tests of trainer/data.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/base/scratch_folder.h"
#include "trainer/data/indexed_tokens.h"

namespace moesaic {

inline std::string FileBytes(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

inline void WriteBytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

// One sequence a document.
inline void WriteCorpus(const std::string& prefix, TokenType type,
                        const std::vector<std::vector<int32_t>>& documents) {
  auto writer = IndexedTokenWriter::Create(prefix, type);
  ASSERT_TRUE(writer.ok()) << writer.status();
  for (const auto& document : documents) {
    ASSERT_TRUE((*writer)->Append(document).ok());
    (*writer)->EndSequence();
    (*writer)->EndDocument();
  }
  ASSERT_TRUE((*writer)->Finish().ok());
}

}  // namespace moesaic
