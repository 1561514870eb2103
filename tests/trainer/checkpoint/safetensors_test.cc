#include "trainer/checkpoint/format/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace moesaic {
namespace {

using ::testing::HasSubstr;

constexpr char kTwo[] =
    R"({"__metadata__":{"a":"b"},"x":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},)"
    R"("y":{"dtype":"BF16","shape":[],"data_offsets":[24,26]}})";

absl::Status Parse(const std::string& json, uint64_t data_bytes) {
  return ParseSafetensorsHeader(json, 8 + json.size() + data_bytes).status();
}

std::string One(const std::string& entry) { return "{\"x\":" + entry + "}"; }

TEST(SafetensorsTest, ReadsAHeader) {
  const absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(kTwo, 8 + sizeof(kTwo) - 1 + 26);
  ASSERT_TRUE(header.ok()) << header.status();
  ASSERT_EQ(header->tensors.size(), 2u);
  EXPECT_EQ(header->metadata.at("a"), "b");
  const SafetensorsTensor* y = header->Find("y");
  ASSERT_NE(y, nullptr);
  EXPECT_EQ(y->element, ELEMENT_BF16);
  EXPECT_EQ(y->begin, header->header_bytes + 24);
  EXPECT_EQ(y->bytes, 2u);
  EXPECT_EQ(header->Find("z"), nullptr);
}

TEST(SafetensorsTest, RefusesWhatDoesNotFit) {
  const struct {
    std::string json;
    uint64_t data_bytes;
    const char* reason;
  } cases[] = {
      {kTwo, 25, "cannot lie at bytes [24, 26)"},
      {kTwo, 27, "the tensors end at byte"},
      {One(R"({"dtype":"F32","shape":[2],"data_offsets":[4,12]})"), 12, "a hole or an overlap"},
      {One(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})"), 8, "cannot lie"},
      {One(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})"), 8, "cannot lie"},
      {One(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})"), 0,
       "cannot lie"},
      {One(R"({"dtype":"F32","shape":[-1],"data_offsets":[0,0]})"), 0, "a negative number"},
      {One(R"({"dtype":"F32","shape":[1.0],"data_offsets":[0,4]})"), 4, "a fraction"},
      {One(R"({"dtype":"F32","shape":[18446744073709551616],"data_offsets":[0,4]})"), 4,
       "a fraction"},
      {One(R"({"dtype":"F8","shape":[],"data_offsets":[0,1]})"), 1, "which is not read here"},
      {One(R"({"dtype":"F32","shape":[],"data_offsets":[0]})"), 4, "lacks"},
      {One(R"({"dtype":"F32","data_offsets":[0,4]})"), 4, "lacks"},
      {One(R"({"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]})"), 4, "twice"},
      {One(R"({"dtype":"F32","shape":[],"data_offsets":[0,4],"z":1})"), 4, "unknown key"},
      {One(R"({"dtype":["F32"],"shape":[],"data_offsets":[0,4]})"), 4, "unexpected an array"},
      {One(R"({"dtype":"F32","shape":[[1]],"data_offsets":[0,4]})"), 4, "unexpected an array"},
      {One(R"({"dtype":"F32","shape":{},"data_offsets":[0,4]})"), 4, "unexpected an object"},
      {One("3"), 0, "unexpected a number"},
      {R"({"__metadata__":{"a":1}})", 0, "unexpected a number"},
      {R"({"__metadata__":{"a":"b","a":"b"}})", 0, "comes twice"},
      {R"({"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
       R"("x":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
       2, "comes twice"},
      {R"({"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},)"
       R"("y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})",
       3, "a hole or an overlap"},
      {"[]", 0, "unexpected an array"},
      {"", 0, "broken at byte"},
      {"{} x", 0, "broken at byte"},
      {std::string(100000, '['), 0, "unexpected an array"},
      {"{\"x\xff\":1}", 0, "broken at byte"},
  };
  for (const auto& wrong : cases) {
    const absl::Status status = Parse(wrong.json, wrong.data_bytes);
    EXPECT_TRUE(absl::IsDataLoss(status)) << wrong.json.substr(0, 200);
    EXPECT_THAT(status.message(), HasSubstr(wrong.reason)) << wrong.json.substr(0, 200);
  }
}

TEST(SafetensorsTest, WhatIsLaidOutIsReadBack) {
  std::vector<SafetensorsTensor> tensors(3);
  tensors[0] = {.name = "b \"quoted\"", .element = ELEMENT_F32, .shape = {3, 5}};
  tensors[1] = {.name = "a", .element = ELEMENT_U8, .shape = {}};
  tensors[2] = {.name = "c", .element = ELEMENT_I64, .shape = {2}};
  const absl::StatusOr<std::string> head = LayOutSafetensors(&tensors, {{"step", "7"}});
  ASSERT_TRUE(head.ok());
  EXPECT_EQ(head->size() % 64, 0u);
  EXPECT_EQ(tensors[0].begin, head->size());
  const absl::StatusOr<SafetensorsHeader> header =
      ParseSafetensorsHeader(head->substr(8), head->size() + 60 + 1 + 16);
  ASSERT_TRUE(header.ok()) << header.status();
  for (const SafetensorsTensor& tensor : tensors) {
    const SafetensorsTensor* read = header->Find(tensor.name);
    ASSERT_NE(read, nullptr) << tensor.name;
    EXPECT_EQ(read->begin, tensor.begin);
    EXPECT_EQ(read->bytes, tensor.bytes);
    EXPECT_EQ(read->shape, tensor.shape);
  }
  tensors[1].name = "c";
  EXPECT_TRUE(absl::IsInvalidArgument(LayOutSafetensors(&tensors, {}).status()));
}

}  // namespace
}  // namespace moesaic
