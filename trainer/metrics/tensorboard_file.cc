#include "trainer/metrics/tensorboard_file.h"

#include <fmt/format.h>

#include <array>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace moesaic {
namespace {

constexpr std::array<uint32_t, 256> CrcTable() {
  std::array<uint32_t, 256> table = {};
  for (uint32_t byte = 0; byte < table.size(); ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0);
    table[byte] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = CrcTable();

template <typename Number>
std::string LittleEndian(Number value) {
  std::string bytes(sizeof(value), '\0');
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(value >> 8 * i & 0xff);
  return bytes;
}

double UnixSeconds(const Clock& clock) {
  return static_cast<double>(absl::ToUnixNanos(clock.Now())) * 1e-9;
}

class SummaryWriter {
 public:
  void Add(const std::string& tag, double value) {
    if (!std::isfinite(value)) return;
    TensorBoardSummary::Value& entry = *summary_.add_value();
    entry.set_tag(tag);
    entry.set_simple_value(static_cast<float>(value));
  }

  void AddRouting(const std::string& prefix, const RoutingMetrics& routing) {
    if (routing.layers.empty()) return;
    using Layer = LayerRoutingMetrics;
    Add(prefix + "max_vio", MeanOfLayers(routing, &Layer::max_vio));
    Add(prefix + "entropy", MeanOfLayers(routing, &Layer::entropy));
    Add(prefix + "active", MeanOfLayers(routing, &Layer::active));
    Add(prefix + "dropped", MeanOfLayers(routing, &Layer::dropped));
    Add(prefix + "null", MeanOfLayers(routing, &Layer::null));
    Add(prefix + "wire_bytes", static_cast<double>(routing.wire_bytes));
  }

  void AddLayers(const RoutingMetrics& routing) {
    for (const LayerRoutingMetrics& layer : routing.layers) {
      const std::string prefix = fmt::format("routing_layers/{:03}/", layer.layer);
      Add(prefix + "max_vio", layer.max_vio);
      Add(prefix + "entropy", layer.entropy);
      Add(prefix + "active", layer.active);
    }
  }

  TensorBoardSummary Take() { return std::move(summary_); }

 private:
  TensorBoardSummary summary_;
};

}  // namespace

uint32_t Crc32c(absl::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) {
    crc = kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xff] ^ crc >> 8;
  }
  return ~crc;
}

uint32_t MaskedCrc32c(absl::string_view bytes) {
  const uint32_t crc = Crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

std::string TfRecord(absl::string_view bytes) {
  const std::string length = LittleEndian<uint64_t>(bytes.size());
  return absl::StrCat(length, LittleEndian(MaskedCrc32c(length)), bytes,
                      LittleEndian(MaskedCrc32c(bytes)));
}

TensorBoardSummary SummaryOf(const StepRecord& record) {
  const StepMetrics& step = record.step;
  SummaryWriter writer;
  writer.Add("loss/train", step.loss());
  writer.Add("loss/auxiliary", step.aux_loss());
  if (step.has_validation_loss()) writer.Add("loss/validation", step.validation_loss());
  writer.Add("optimizer/learning_rate", step.lr());
  writer.Add("optimizer/gradient_norm", step.grad_norm());
  writer.Add("speed/tokens_per_second", step.tokens_per_second());
  writer.Add("speed/seconds", step.seconds());
  writer.Add("speed/flops", record.recipe.flops);
  if (step.has_temperature()) writer.Add("recipe/temperature", step.temperature());
  writer.AddRouting("routing/", record.routing);
  if (record.loads) writer.AddLayers(record.routing);
  if (record.validation.has_value()) {
    const ValidationRouting& validation = *record.validation;
    writer.AddRouting("validation_routing/", validation.routing);
    if (!validation.information.empty()) {
      writer.Add("validation_routing/mutual_information", MeanInformation(validation.information));
    }
  }
  return writer.Take();
}

absl::StatusOr<std::unique_ptr<TensorBoardFile>> TensorBoardFile::Open(const Options& options) {
  // Readers take the files of a folder in the order of their names.
  const std::string name =
      fmt::format("events.out.tfevents.{:010}.generation-{:06}",
                  absl::ToUnixSeconds(options.clock->Now()), options.generation);
  auto file = AppendFile::Open(options.run_dir + "/tensorboard", name);
  if (!file.ok()) return file.status();
  std::unique_ptr<TensorBoardFile> opened(
      new TensorBoardFile(*std::move(file), options.clock));
  TensorBoardEvent version;
  version.set_file_version("brain.Event:2");
  TensorBoardEvent start;
  start.set_step(static_cast<int64_t>(options.first_step));
  start.mutable_session()->set_status(TensorBoardSession::START);
  for (const TensorBoardEvent& event : {version, start}) {
    if (absl::Status status = opened->Write(event); !status.ok()) return status;
  }
  return opened;
}

absl::Status TensorBoardFile::Append(const StepRecord& record) {
  TensorBoardEvent event;
  event.set_step(static_cast<int64_t>(record.step.step()));
  *event.mutable_summary() = SummaryOf(record);
  return Write(std::move(event));
}

absl::Status TensorBoardFile::Write(TensorBoardEvent event) {
  event.set_wall_time(UnixSeconds(clock_));
  return file_.Append(TfRecord(event.SerializeAsString()));
}

}  // namespace moesaic
