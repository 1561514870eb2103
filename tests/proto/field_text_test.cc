#include "proto/field_text.h"

#include <gtest/gtest.h>

namespace moesaic {
namespace {

using google::protobuf::FieldDescriptor;

const FieldDescriptor& Field(const google::protobuf::Message& message, const char* name) {
  return *message.GetDescriptor()->FindFieldByName(name);
}

struct Case {
  const char* text;
  const char* message;  // empty: accepted
};

template <typename Owner>
void ExpectEach(const char* field, std::initializer_list<Case> cases) {
  for (const Case& c : cases) {
    Owner owner;
    const absl::Status status = SetFieldFromText(c.text, Field(owner, field), &owner);
    EXPECT_EQ(std::string(status.message()), c.message) << c.text;
  }
}

TEST(SetFieldFromText, WholeNumbers) {
  ExpectEach<ModelSpec>(
      "layers",
      {{"0", ""},
       {"4294967295", ""},
       {"4294967296", "expected a whole number of at most 4294967295, got \"4294967296\""},
       {"99999999999999999999999",
        "expected a whole number of at most 4294967295, got \"99999999999999999999999\""},
       {"010", "expected a whole number, got \"010\"; a leading zero looks octal: write 10"},
       {"00", "expected a whole number, got \"00\"; a leading zero looks octal: write 0"},
       {"0x10", "expected a whole number, got \"0x10\"; write it in decimal"},
       {"-1", "expected a whole number that is not negative, got \"-1\""},
       {"+1", "expected a whole number, got \"+1\""},
       {"1.0", "expected a whole number, got \"1.0\""},
       {"1e3", "expected a whole number, got \"1e3\""},
       {"1_000", "expected a whole number, got \"1_000\""},
       {"", "expected a whole number, got \"\""}});
}

TEST(SetFieldFromText, Numbers) {
  ExpectEach<ModelSpec>("rope_base", {{"1", ""},
                                      {"-2.5", ""},
                                      {"3.0e-4", ""},
                                      {".5", ""},
                                      {"1E+6", ""},
                                      {".", "expected a number, got \".\""},
                                      {"01.5", "expected a number, got \"01.5\""},
                                      {"0x1p3", "expected a number, got \"0x1p3\""},
                                      {"nan", "expected a number, got \"nan\""},
                                      {".inf", "expected a number, got \".inf\""},
                                      {"1e999", "expected a finite number, got \"1e999\""},
                                      {"1 ", "expected a number, got \"1 \""}});
}

TEST(SetFieldFromText, Booleans) {
  ExpectEach<ModelSpec>("tie_head", {{"true", ""},
                                     {"false", ""},
                                     {"no", "expected true or false, got \"no\"; write false"},
                                     {"True", "expected true or false, got \"True\"; write true"},
                                     {"1", "expected true or false, got \"1\""}});
}

TEST(SetFieldFromText, Enums) {
  ExpectEach<RouterSpec>("score",
                         {{"softmax", ""},
                          {"sigmoid", ""},
                          {"SOFTMAX", "expected one of softmax, sigmoid, got \"SOFTMAX\""}});
  ExpectEach<LaunchSpec>("backend", {{"ssh", "expected mpirun, got \"ssh\""}});
}

TEST(SetFieldFromText, TextIsUtf8) {
  constexpr char kRefused[] = "expected text in UTF-8";
  ExpectEach<DataSpec>("tokenizer", {{"a b", ""},
                                     {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", ""},
                                     {"\xFF", kRefused},
                                     {"\xC3", kRefused},
                                     {"\xC0\xAF", kRefused},
                                     {"\xED\xA0\x80", kRefused},
                                     {"\xF4\x90\x80\x80", kRefused}});
}

TEST(SetFieldFromText, Durations) {
  ExpectEach<HealthSpec>(
      "lease_ttl",
      {{"5s", ""},
       {"1h30m", ""},
       {"5", "expected a duration such as 5s, 200ms or 1h30m, got \"5\"; write 5s for seconds"},
       {"5 s", "expected a duration such as 5s, 200ms or 1h30m, got \"5 s\""},
       {"inf", "expected a finite duration, got \"inf\""}});
  HealthSpec health;
  ASSERT_TRUE(SetFieldFromText("1h30m", Field(health, "lease_ttl"), &health).ok());
  EXPECT_EQ(health.lease_ttl(), 5400);
}

TEST(FieldText, InvertsSetFieldFromText) {
  for (const char* text : {"5s", "100ms", "1h", "1h30m", "2m5s", "1.5s"}) {
    HealthSpec health;
    ASSERT_TRUE(SetFieldFromText(text, Field(health, "lease_ttl"), &health).ok());
    EXPECT_EQ(FieldText(health, Field(health, "lease_ttl")), text);
  }
  for (double value : {0.1, 3e-4, 1e-8, 1e300, 10000.0, -0.0, 1.0 / 3}) {
    ModelSpec model;
    model.set_rope_base(value);
    ModelSpec read;
    const FieldDescriptor& field = Field(model, "rope_base");
    ASSERT_TRUE(SetFieldFromText(FieldText(model, field), field, &read).ok());
    EXPECT_EQ(read.rope_base(), value);
  }
}

TEST(ParseBytes, TakesUnits) {
  EXPECT_EQ(*ParseBytes("1000"), 1000u);
  EXPECT_EQ(*ParseBytes("512MiB"), 512u << 20);
  EXPECT_EQ(*ParseBytes("1.5KiB"), 1536u);
  EXPECT_EQ(*ParseBytes("2TiB"), uint64_t{2} << 40);
  for (const char* bad : {"", "2GB", "1.5", "-1", "99999999TiB", "GiB", "0x10"}) {
    EXPECT_FALSE(ParseBytes(bad).ok()) << bad;
  }
}

TEST(FormatBytes, UsesTheLargestUnitThatDivides) {
  EXPECT_EQ(FormatBytes(0), "0");
  EXPECT_EQ(FormatBytes(1000), "1000");
  EXPECT_EQ(FormatBytes(1536), "1536");
  EXPECT_EQ(FormatBytes(uint64_t{2} << 30), "2GiB");
}

}  // namespace
}  // namespace moesaic
