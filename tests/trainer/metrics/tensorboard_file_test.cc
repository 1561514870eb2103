#include "trainer/metrics/tensorboard_file.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "tests/base/scratch_folder.h"

namespace moesaic {
namespace {

class FixedClock : public Clock {
 public:
  absl::Time Now() const override { return now; }
  absl::Time now = absl::FromUnixSeconds(1'700'000'000);
};

template <typename Number>
Number FromLittleEndian(const std::string& bytes, size_t at) {
  Number value = 0;
  for (size_t i = 0; i < sizeof(Number); ++i) {
    value |= static_cast<Number>(static_cast<uint8_t>(bytes[at + i])) << 8 * i;
  }
  return value;
}

// By the definition of the format, not by the writer's code.
std::vector<TensorBoardEvent> ReadEvents(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream all;
  all << in.rdbuf();
  const std::string bytes = all.str();
  std::vector<TensorBoardEvent> events;
  for (size_t at = 0; at < bytes.size();) {
    const auto length = FromLittleEndian<uint64_t>(bytes, at);
    EXPECT_EQ(FromLittleEndian<uint32_t>(bytes, at + 8), MaskedCrc32c(bytes.substr(at, 8)));
    const std::string data = bytes.substr(at + 12, length);
    EXPECT_EQ(FromLittleEndian<uint32_t>(bytes, at + 12 + length), MaskedCrc32c(data));
    EXPECT_TRUE(events.emplace_back().ParseFromString(data));
    at += 12 + length + 4;
  }
  return events;
}

StepRecord Step(uint64_t step) {
  StepRecord record;
  record.step.set_step(step);
  record.step.set_loss(4.5);
  record.step.set_validation_loss(4.25);
  Add({.layer = 2, .candidates = 2}, {.counts = {3, 1}, .fan_out = {0, 4}}, record.routing);
  return record;
}

std::map<std::string, float> Scalars(const TensorBoardSummary& summary) {
  std::map<std::string, float> scalars;
  for (const auto& value : summary.value()) {
    EXPECT_TRUE(value.has_simple_value()) << value.tag();
    scalars[value.tag()] = value.simple_value();
  }
  return scalars;
}

class TensorBoardFileTest : public ::testing::Test {
 protected:
  std::vector<std::string> Files() const {
    std::vector<std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(dir_ + "/tensorboard")) {
      files.push_back(entry.path());
    }
    std::ranges::sort(files);
    return files;
  }
  const ScratchFolder scratch_;
  const std::string dir_ = scratch_ / "run";
  FixedClock clock_;
};

// The vectors of RFC 3720, appendix B.4, and the check value of the Rocksoft model.
TEST(Crc32c, IsCastagnolis) {
  EXPECT_EQ(Crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(Crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(Crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  EXPECT_EQ(Crc32c(""), 0u);
}

TEST(TfRecord, FramesALengthAndItsBytesEachWithAMaskedChecksum) {
  const std::string record = TfRecord("123456789");
  ASSERT_EQ(record.size(), 8u + 4 + 9 + 4);
  EXPECT_EQ(record.substr(0, 8), std::string("\x09\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(12, 9), "123456789");
  // rotr(0xe3069283, 15) + 0xa282ead8
  EXPECT_EQ(FromLittleEndian<uint32_t>(record, 21), 0xc78ab0e5u);
}

TEST_F(TensorBoardFileTest, HoldsAVersionAStartAndTheScalarsOfEachStep) {
  auto file = TensorBoardFile::Open({dir_, 3, 7, &clock_});
  ASSERT_TRUE(file.ok()) << file.status();
  ASSERT_TRUE((*file)->Append(Step(7)).ok());
  clock_.now += absl::Milliseconds(1500);
  ASSERT_TRUE((*file)->Append(Step(8)).ok());

  ASSERT_EQ(Files().size(), 1u);
  EXPECT_EQ(std::filesystem::path(Files()[0]).filename(),
            "events.out.tfevents.1700000000.generation-000003");
  const auto events = ReadEvents(Files()[0]);
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].file_version(), "brain.Event:2");
  EXPECT_EQ(events[1].session().status(), TensorBoardSession::START);
  EXPECT_EQ(events[1].step(), 7);
  EXPECT_EQ(events[3].step(), 8);
  EXPECT_DOUBLE_EQ(events[3].wall_time(), 1'700'000'001.5);
  const auto scalars = Scalars(events[2].summary());
  EXPECT_EQ(scalars.at("loss/train"), 4.5f);
  EXPECT_EQ(scalars.at("loss/validation"), 4.25f);
  EXPECT_EQ(scalars.at("routing/max_vio"), 0.5f);
  EXPECT_EQ(scalars.at("routing/active"), 1.0f);
  EXPECT_EQ(scalars.at("routing/dropped"), 0.0f);
  EXPECT_FALSE(scalars.contains("routing_layers/002/max_vio"));
}

TEST_F(TensorBoardFileTest, ANewGenerationIsANewFileThatComesAfterTheOld) {
  ASSERT_TRUE((*TensorBoardFile::Open({dir_, 1, 1, &clock_}))->Append(Step(1)).ok());
  ASSERT_TRUE((*TensorBoardFile::Open({dir_, 2, 1, &clock_}))->Append(Step(1)).ok());
  clock_.now += absl::Hours(1);
  ASSERT_TRUE((*TensorBoardFile::Open({dir_, 1, 2, &clock_}))->Append(Step(2)).ok());
  const auto files = Files();
  ASSERT_EQ(files.size(), 3u);
  EXPECT_EQ(ReadEvents(files[1])[1].step(), 1);
  EXPECT_EQ(ReadEvents(files[2])[1].step(), 2);
}

TEST(SummaryOf, HasLayersWhereLoadsAreDueAndNoNumberThatIsNone) {
  StepRecord record = Step(1);
  record.loads = true;
  record.step.set_loss(std::nan(""));
  record.step.clear_validation_loss();
  record.validation = {record.routing,
                       {{.information = 0.75, .shuffled = 0.25}, {.information = 1.0}}};
  const auto scalars = Scalars(SummaryOf(record));
  EXPECT_EQ(scalars.at("routing_layers/002/max_vio"), 0.5f);
  EXPECT_EQ(scalars.at("validation_routing/max_vio"), 0.5f);
  EXPECT_EQ(scalars.at("validation_routing/mutual_information"), 0.75f);
  EXPECT_FALSE(scalars.contains("loss/train"));
  EXPECT_FALSE(scalars.contains("loss/validation"));
}

TEST_F(TensorBoardFileTest, NamesAFolderItCannotMake) {
  std::filesystem::create_directories(dir_);
  std::ofstream(dir_ + "/tensorboard") << "x";
  const auto file = TensorBoardFile::Open({dir_, 1, 1, &clock_});
  ASSERT_FALSE(file.ok());
  EXPECT_NE(std::string(file.status().message()).find(dir_), std::string::npos);
}

}  // namespace
}  // namespace moesaic
