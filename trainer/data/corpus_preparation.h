// PrepareCorpus: text files to indexed token files, with a training and a validation part.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "trainer/data/document_reader.h"
#include "trainer/data/tokenizer.h"

namespace moesaic {

struct CorpusPreparation {
  std::vector<std::string> inputs;  // text files, read in this order
  DocumentSeparator separator;
  std::string output;             // prefix of the training part
  std::string validation_output;  // prefix of the validation part; empty: there is none
  // Of the documents, chosen by the hash of their first 64 KiB: a document stays on its side when
  // others come or go, and copies of one document are on one side. In (0, 1).
  double validation_share = 0.05;
  // Every document ends with the tokenizer's end-of-document token.
  bool end_documents = true;
  int threads = 1;  // that encode
};

struct CorpusPart {
  int64_t documents = 0;
  int64_t tokens = 0;
  // -sum p ln p over the part's own token frequencies, in nats: the loss of a model that knows
  // nothing but them.
  double unigram_entropy = 0;
};

struct CorpusSummary {
  int64_t input_bytes = 0;
  CorpusPart train;
  CorpusPart validation;
};

// Called as input is done, on the calling thread.
using CorpusProgress = std::function<void(int64_t bytes_done, int64_t bytes_total)>;

// Memory does not grow with the inputs, save 8 bytes a document. The parts get their names only
// when all is done. The output does not depend on `threads`. NotFound when an input is missing;
// InvalidArgument when the tokenizer has no end-of-document token but documents shall end with it,
// when one of the parts would be empty, or a parameter is out of range; else errors of the writer.
absl::StatusOr<CorpusSummary> PrepareCorpus(const CorpusPreparation& preparation,
                                            const Tokenizer& tokenizer,
                                            const CorpusProgress& progress);

}  // namespace moesaic
