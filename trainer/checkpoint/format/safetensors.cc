#include "trainer/checkpoint/format/safetensors.h"

#include <algorithm>
#include <set>
#include <utility>

#include <nlohmann/json.hpp>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "trainer/checkpoint/format/box.h"

namespace moesaic {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr uint64_t kAlignment = 64;
constexpr size_t kMaxRank = 16;

// What the JSON says of one tensor.
struct Entry {
  std::string name;
  std::string dtype;
  std::vector<uint64_t> shape;
  std::vector<uint64_t> offsets;
  bool has_dtype = false, has_shape = false, has_offsets = false;
};

// Accepts exactly {"name": {"dtype": string, "shape": [unsigned], "data_offsets": [unsigned]}, ...,
// "__metadata__": {string: string}}. Anything else stops the parse with a reason.
class HeaderHandler : public nlohmann::json_sax<nlohmann::json> {
 public:
  std::vector<Entry> entries;
  std::map<std::string, std::string> metadata;
  std::string problem;

  bool null() override { return Refuse("null"); }
  bool boolean(bool) override { return Refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return Refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return Refuse("a fraction"); }
  bool binary(binary_t&) override { return Refuse("binary data"); }

  bool number_unsigned(number_unsigned_t value) override {
    if (numbers_ == nullptr) return Refuse("a number");
    if (numbers_->size() >= kMaxRank) return Refuse("a list of too many numbers");
    numbers_->push_back(value);
    return true;
  }

  bool string(string_t& value) override {
    if (depth_ == 2 && in_metadata_) {
      if (!metadata.emplace(key_, value).second) return Fail("a metadata key comes twice: " + key_);
      return true;
    }
    if (depth_ != 2 || numbers_ != nullptr || key_ != "dtype") return Refuse("a string");
    entries.back().dtype = value;
    return true;
  }

  bool start_object(size_t) override {
    if (depth_ == 1) {
      if (!names_.insert(name_).second) return Fail("tensor \"" + name_ + "\" comes twice");
      in_metadata_ = name_ == "__metadata__";
      if (!in_metadata_) entries.emplace_back().name = name_;
    } else if (depth_ != 0) {
      return Refuse("an object");
    }
    ++depth_;
    return true;
  }

  bool end_object() override {
    --depth_;
    if (depth_ == 1 && !in_metadata_) {
      const Entry& entry = entries.back();
      if (!entry.has_dtype || !entry.has_shape || !entry.has_offsets ||
          entry.offsets.size() != 2) {
        return Fail("tensor \"" + entry.name + "\" lacks dtype, shape or two data_offsets");
      }
    }
    return true;
  }

  bool key(string_t& value) override {
    if (depth_ == 1) {
      name_ = value;
      return true;
    }
    key_ = value;
    if (in_metadata_) return true;
    Entry& entry = entries.back();
    bool* seen = value == "dtype"          ? &entry.has_dtype
                 : value == "shape"        ? &entry.has_shape
                 : value == "data_offsets" ? &entry.has_offsets
                                           : nullptr;
    if (seen == nullptr) {
      return Fail("tensor \"" + name_ + "\" has an unknown key \"" + value + "\"");
    }
    if (std::exchange(*seen, true)) {
      return Fail("tensor \"" + name_ + "\" has the key \"" + value + "\" twice");
    }
    return true;
  }

  bool start_array(size_t) override {
    if (depth_ != 2 || in_metadata_ || numbers_ != nullptr || key_ == "dtype") {
      return Refuse("an array");
    }
    numbers_ = key_ == "shape" ? &entries.back().shape : &entries.back().offsets;
    return true;
  }
  bool end_array() override {
    numbers_ = nullptr;
    return true;
  }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    return Fail(absl::StrCat("the JSON is broken at byte ", position));
  }

 private:
  bool Fail(std::string text) {
    if (problem.empty()) problem = std::move(text);
    return false;
  }
  bool Refuse(const char* what) {
    return Fail(
        absl::StrCat("unexpected ", what, depth_ == 0 ? "" : absl::StrCat(" at \"", name_, "\"")));
  }

  int depth_ = 0;
  bool in_metadata_ = false;
  std::string name_;
  std::string key_;
  std::vector<uint64_t>* numbers_ = nullptr;
  absl::flat_hash_set<std::string> names_;
};

absl::Status Broken(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("safetensors header: ", what));
}

absl::StatusOr<SafetensorsTensor> CheckEntry(Entry entry, uint64_t data_begin,
                                             uint64_t data_bytes) {
  SafetensorsTensor tensor;
  tensor.element = ElementOfName(entry.dtype);
  if (tensor.element == ELEMENT_UNSPECIFIED) {
    return Broken(absl::StrCat("tensor \"", entry.name, "\" has dtype \"", entry.dtype,
                               "\", which is not read here"));
  }
  const std::optional<uint64_t> bytes = CheckedBytes(tensor.element, entry.shape);
  const uint64_t begin = entry.offsets[0], end = entry.offsets[1];
  if (!bytes || begin > end || end > data_bytes || end - begin != *bytes) {
    return Broken(absl::StrCat("tensor \"", entry.name, "\" of shape ", DescribeShape(entry.shape),
                               " and dtype ", entry.dtype, " cannot lie at bytes [", begin, ", ",
                               end, ") of ", data_bytes));
  }
  tensor.name = std::move(entry.name);
  tensor.shape = std::move(entry.shape);
  tensor.begin = data_begin + begin;
  tensor.bytes = *bytes;
  return tensor;
}

uint64_t DecodeLength(std::span<const std::byte, kLengthBytes> bytes) {
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  return length;
}

}  // namespace

const SafetensorsTensor* SafetensorsHeader::Find(absl::string_view name) const {
  const auto found = std::ranges::find_if(
      tensors, [&](const SafetensorsTensor& tensor) { return tensor.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(absl::string_view json,
                                                         uint64_t file_bytes) {
  if (file_bytes < kLengthBytes || json.size() > file_bytes - kLengthBytes) {
    return Broken("it is longer than the file");
  }
  HeaderHandler handler;
  if (!nlohmann::json::sax_parse(json.data(), json.data() + json.size(), &handler)) {
    return Broken(handler.problem.empty() ? "it is not an object" : handler.problem);
  }
  SafetensorsHeader header;
  header.header_bytes = kLengthBytes + json.size();
  header.metadata = std::move(handler.metadata);
  for (Entry& entry : handler.entries) {
    absl::StatusOr<SafetensorsTensor> tensor =
        CheckEntry(std::move(entry), header.header_bytes, file_bytes - header.header_bytes);
    if (!tensor.ok()) return tensor.status();
    header.tensors.push_back(*std::move(tensor));
  }
  std::ranges::sort(header.tensors, [](const SafetensorsTensor& a, const SafetensorsTensor& b) {
    return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes);
  });
  uint64_t next = header.header_bytes;
  for (const SafetensorsTensor& tensor : header.tensors) {
    if (tensor.begin != next) {
      return Broken(absl::StrCat("there is a hole or an overlap before tensor \"", tensor.name,
                                 "\": it begins at byte ", tensor.begin, " and not at ", next));
    }
    next += tensor.bytes;
  }
  if (next != file_bytes) {
    return Broken(absl::StrCat("the tensors end at byte ", next, " of a file of ", file_bytes));
  }
  return header;
}

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file) {
  std::byte length_bytes[kLengthBytes];
  if (file.size() < kLengthBytes) return Broken("the file is shorter than 8 bytes");
  if (absl::Status read = file.ReadAt(0, length_bytes); !read.ok()) return read;
  const uint64_t length = DecodeLength(length_bytes);
  if (length > kMaxSafetensorsHeader || length > file.size() - kLengthBytes) {
    return Broken(absl::StrCat("its length of ", length, " bytes is over the limit of ",
                               kMaxSafetensorsHeader, " or the file's ", file.size()));
  }
  std::string json(length, '\0');
  absl::Status read = file.ReadAt(kLengthBytes, std::as_writable_bytes(std::span<char>(json)));
  if (!read.ok()) return read;
  return ParseSafetensorsHeader(json, file.size());
}

absl::StatusOr<std::string> LayOutSafetensors(std::vector<SafetensorsTensor>* tensors,
                                              const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::set<absl::string_view> names;
  uint64_t next = 0;
  for (SafetensorsTensor& tensor : *tensors) {
    const std::optional<uint64_t> bytes = CheckedBytes(tensor.element, tensor.shape);
    tensor.begin = next;
    if (!names.insert(tensor.name).second || !bytes ||
        __builtin_add_overflow(next, *bytes, &next)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "safetensors: tensor \"", tensor.name, "\" comes twice or its shape ",
          DescribeShape(tensor.shape), " has no size in bytes"));
    }
    tensor.bytes = *bytes;
    // Appended without a search for the key: a search makes a file of n tensors cost n^2.
    nlohmann::ordered_json entry = {{"dtype", std::string(ElementName(tensor.element))},
                                    {"shape", tensor.shape},
                                    {"data_offsets", {tensor.begin, next}}};
    header.get_ref<nlohmann::ordered_json::object_t&>().emplace_back(tensor.name,
                                                                     std::move(entry));
  }
  std::string json =
      header.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  json.resize((json.size() + kLengthBytes + kAlignment - 1) / kAlignment * kAlignment -
                  kLengthBytes,
              ' ');
  if (json.size() > kMaxSafetensorsHeader) {
    return absl::ResourceExhaustedError(
        absl::StrCat("safetensors: a header of ", json.size(), " bytes is over the limit"));
  }
  std::string bytes;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    bytes.push_back(static_cast<char>(json.size() >> (8 * i)));
  }
  bytes += json;
  for (SafetensorsTensor& tensor : *tensors) tensor.begin += bytes.size();
  return bytes;
}

}  // namespace moesaic
