#include "trainer/data/sentencepiece_model.h"

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

namespace moesaic {
namespace {

class Lines : public sentencepiece::SentenceIterator {
 public:
  explicit Lines(const std::function<const std::string*()>& next_line)
      : next_line_(next_line), line_(next_line()) {}

  bool done() const override { return line_ == nullptr; }
  void Next() override { line_ = next_line_(); }
  const std::string& value() const override { return *line_; }
  sentencepiece::util::Status status() const override { return {}; }

 private:
  const std::function<const std::string*()>& next_line_;
  const std::string* line_;
};

}  // namespace

struct SentencePieceModel::Library {
  sentencepiece::SentencePieceProcessor processor;
};

std::unique_ptr<SentencePieceModel> SentencePieceModel::FromBytes(const std::string& bytes) {
  auto library = std::make_unique<Library>();
  if (bytes.empty() || !library->processor.LoadFromSerializedProto(bytes).ok()) return nullptr;
  return std::unique_ptr<SentencePieceModel>(new SentencePieceModel(std::move(library)));
}

SentencePieceModel::SentencePieceModel(std::unique_ptr<Library> library)
    : library_(std::move(library)) {}
SentencePieceModel::~SentencePieceModel() = default;

int32_t SentencePieceModel::size() const { return library_->processor.GetPieceSize(); }

PieceKind SentencePieceModel::kind(int32_t token) const {
  const auto& processor = library_->processor;
  if (processor.IsByte(token)) return PieceKind::kByte;
  if (processor.IsControl(token)) return PieceKind::kControl;
  return processor.IsUnknown(token) ? PieceKind::kUnknown : PieceKind::kText;
}

const std::string& SentencePieceModel::piece(int32_t token) const {
  return library_->processor.IdToPiece(token);
}

int32_t SentencePieceModel::end_of_sentence() const { return library_->processor.eos_id(); }

std::vector<int> SentencePieceModel::Encode(std::string_view text) const {
  return library_->processor.EncodeAsIds(text);
}

std::string TrainSentencePiece(const SentencePieceTraining& training, std::string* bytes) {
  Lines lines(training.next_line);
  const auto status = sentencepiece::SentencePieceTrainer::Train(training.flags, &lines, bytes);
  return status.ok() ? "" : status.ToString();
}

}  // namespace moesaic
