#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "launcher/verbs/ckpt.h"
#include "launcher/verbs/ckpt_target.h"
#include "proto/job_spec.h"
#include "trainer/checkpoint/format/box.h"
#include "trainer/checkpoint/format/object_reader.h"

namespace moesaic {
namespace {

constexpr uint64_t kChunkElements = 1 << 20;

struct DiffFlags {
  std::string a;
  std::string b;
  bool values = false;
  std::string format = "text";
};

// How an object differs; `largest` is of fp32 objects whose values were read.
struct ChangedObject {
  std::string name;
  std::optional<double> largest;
};

struct ObjectDiff {
  std::vector<std::string> added;
  std::vector<std::string> removed;
  std::vector<ChangedObject> changed;
  uint64_t same = 0;
};

using ShardKey = std::tuple<std::vector<uint64_t>, std::vector<uint64_t>>;

std::map<ShardKey, std::string> ChecksumsOf(const StoredObject& object) {
  std::map<ShardKey, std::string> checksums;
  for (const Shard& shard : object.shards()) {
    const Box& box = shard.box();
    checksums[{{box.offset().begin(), box.offset().end()},
               {box.length().begin(), box.length().end()}}] = shard.xxh3();
  }
  return checksums;
}

bool SameKind(const StoredObject& a, const StoredObject& b) {
  return a.element() == b.element() && std::ranges::equal(a.shape(), b.shape());
}

// Whether checksums alone tell: the shards are cut alike.
std::optional<bool> SameByChecksum(const StoredObject& a, const StoredObject& b) {
  const std::map<ShardKey, std::string> of_a = ChecksumsOf(a), of_b = ChecksumsOf(b);
  const bool cut_alike = std::ranges::equal(
      of_a, of_b, [](const auto& x, const auto& y) { return x.first == y.first; });
  if (!cut_alike) return std::nullopt;
  return of_a == of_b;
}

// The largest difference of two pieces of fp32 values; infinite where only one is not a number.
double LargestDifference(const std::vector<std::byte>& a, const std::vector<std::byte>& b) {
  double largest = 0;
  for (size_t at = 0; at + sizeof(float) <= a.size(); at += sizeof(float)) {
    float x = 0, y = 0;
    std::memcpy(&x, &a[at], sizeof(x));
    std::memcpy(&y, &b[at], sizeof(y));
    if (std::isnan(x) && std::isnan(y)) continue;
    const double difference = std::abs(static_cast<double>(x) - y);
    largest = std::max(largest, std::isnan(difference) && x != y ? INFINITY : difference);
  }
  return largest;
}

// Two checkpoints that are compared.
class Comparison {
 public:
  Comparison(const OpenedStep& a, const OpenedStep& b, bool values)
      : a_(a), b_(b), values_(values), read_a_(a.step.folder.get(), &a.manifest),
        read_b_(b.step.folder.get(), &b.manifest) {}

  absl::StatusOr<ObjectDiff> Objects() {
    ObjectDiff diff;
    for (const StoredObject& object : a_.manifest.objects()) {
      const std::string label = ObjectLabel(object.kind(), object.name());
      const StoredObject* other = read_b_.Find(object.kind(), object.name());
      if (other == nullptr) {
        diff.removed.push_back(label);
        continue;
      }
      if (absl::Status added = Compare(label, object, *other, &diff); !added.ok()) return added;
    }
    for (const StoredObject& object : b_.manifest.objects()) {
      if (read_a_.Find(object.kind(), object.name()) == nullptr) {
        diff.added.push_back(ObjectLabel(object.kind(), object.name()));
      }
    }
    return diff;
  }

 private:
  absl::Status Compare(const std::string& label, const StoredObject& a, const StoredObject& b,
                       ObjectDiff* diff) {
    if (!SameKind(a, b)) {
      diff->changed.push_back({label, std::nullopt});
      return absl::OkStatus();
    }
    const std::optional<bool> by_checksum = SameByChecksum(a, b);
    if (by_checksum == true) {
      ++diff->same;
      return absl::OkStatus();
    }
    if (by_checksum == false && !values_) {
      diff->changed.push_back({label, std::nullopt});
      return absl::OkStatus();
    }
    bool same = true;
    double largest = 0;
    if (absl::Status read = CompareBytes(a, b, &same, &largest); !read.ok()) return read;
    if (same) {
      ++diff->same;
    } else {
      const bool known = values_ && a.element() == ELEMENT_F32;
      diff->changed.push_back({label, known ? std::optional(largest) : std::nullopt});
    }
    return absl::OkStatus();
  }

  absl::Status CompareBytes(const StoredObject& a, const StoredObject& b, bool* same,
                            double* largest) {
    const uint64_t elements = CheckedElements(AsShape(a.shape())).value_or(0);
    std::vector<std::byte> of_a, of_b;
    for (uint64_t begin = 0; begin < elements; begin += kChunkElements) {
      const uint64_t end = std::min(elements, begin + kChunkElements);
      of_a.resize((end - begin) * ElementBytes(a.element()));
      of_b.resize(of_a.size());
      if (absl::Status read = read_a_.Read(a, begin, end, of_a); !read.ok()) return read;
      if (absl::Status read = read_b_.Read(b, begin, end, of_b); !read.ok()) return read;
      if (of_a == of_b) continue;
      *same = false;
      if (a.element() == ELEMENT_F32) *largest = std::max(*largest, LargestDifference(of_a, of_b));
    }
    return absl::OkStatus();
  }

  const OpenedStep& a_;
  const OpenedStep& b_;
  const bool values_;
  ObjectReader read_a_;
  ObjectReader read_b_;
};

std::string FieldText(const google::protobuf::Message& message,
                      const google::protobuf::FieldDescriptor& field) {
  const google::protobuf::Reflection& reflection = *message.GetReflection();
  if (field.is_repeated()) {
    return absl::StrCat(reflection.FieldSize(message, &field), " values");
  }
  if (field.has_presence() && !reflection.HasField(message, &field)) return "none";
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, &field, -1, &text);
  return text;
}

// Lines such as "samples: 400 -> 800", of the fields that differ.
std::vector<std::string> StateChanges(const TrainingState& a, const TrainingState& b) {
  std::vector<std::string> changes;
  const google::protobuf::Descriptor& type = *TrainingState::descriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const google::protobuf::FieldDescriptor& field = *type.field(i);
    TrainingState only_a = a, only_b = b;
    for (int other = 0; other < type.field_count(); ++other) {
      if (other == i) continue;
      only_a.GetReflection()->ClearField(&only_a, type.field(other));
      only_b.GetReflection()->ClearField(&only_b, type.field(other));
    }
    if (only_a.SerializeAsString() == only_b.SerializeAsString()) continue;
    changes.push_back(
        absl::StrCat(field.name(), ": ", FieldText(a, field), " -> ", FieldText(b, field)));
  }
  return changes;
}

std::vector<std::string> SpecChanges(const JobSpec& a, const JobSpec& b) {
  std::vector<std::string> changes;
  for (ResumeClass kind : {IDENTITY, TRAJECTORY, OPERATIONAL}) {
    for (std::string& change : DescribeChanges(a, b, kind)) changes.push_back(std::move(change));
  }
  return changes;
}

OrderedJson ChangedList(const std::vector<ChangedObject>& changed) {
  OrderedJson list = OrderedJson::array();
  for (const ChangedObject& object : changed) {
    OrderedJson entry = {{"name", object.name}};
    // JSON has no infinity.
    if (object.largest) {
      entry["largest_difference"] =
          std::isfinite(*object.largest) ? OrderedJson(*object.largest) : OrderedJson("infinite");
    }
    list.push_back(std::move(entry));
  }
  return list;
}

void PrintDiff(const ObjectDiff& objects, const std::vector<std::string>& state,
               const std::vector<std::string>& spec, std::ostream& out) {
  for (const std::string& change : state) out << "state    " << change << "\n";
  for (const std::string& change : spec) out << "job      " << change << "\n";
  for (const std::string& name : objects.removed) out << "removed  " << name << "\n";
  for (const std::string& name : objects.added) out << "added    " << name << "\n";
  for (const ChangedObject& object : objects.changed) {
    out << "changed  " << object.name;
    if (object.largest) out << absl::StrFormat("  by at most %g", *object.largest);
    out << "\n";
  }
  out << absl::StrFormat("%d objects are the same, %d changed, %d removed, %d added\n",
                         objects.same, objects.changed.size(), objects.removed.size(),
                         objects.added.size());
}

void Diff(const DiffFlags& flags, VerbContext& context) {
  const absl::StatusOr<OpenedStep> a = OpenStep(flags.a);
  if (!a.ok()) return Fail(a.status(), context);
  const absl::StatusOr<OpenedStep> b = OpenStep(flags.b);
  if (!b.ok()) return Fail(b.status(), context);
  const absl::StatusOr<ObjectDiff> objects = Comparison(*a, *b, flags.values).Objects();
  if (!objects.ok()) return Fail(objects.status(), context);
  const std::vector<std::string> state = StateChanges(a->manifest.state(), b->manifest.state());
  const std::vector<std::string> spec = SpecChanges(a->manifest.spec(), b->manifest.spec());
  if (flags.format == "text") return PrintDiff(*objects, state, spec, context.out);
  const bool same = state.empty() && spec.empty() && objects->added.empty() &&
                    objects->removed.empty() && objects->changed.empty();
  PrintJson({{"a", a->step.path},
             {"b", b->step.path},
             {"same", same},
             {"state", state},
             {"job", spec},
             {"objects",
              {{"same", objects->same},
               {"changed", ChangedList(objects->changed)},
               {"removed", objects->removed},
               {"added", objects->added}}}},
            context);
}

}  // namespace

void RegisterCkptDiff(CLI::App& ckpt, VerbContext& context) {
  CLI::App* verb = ckpt.add_subcommand("diff", "Say how two checkpoints differ");
  verb->footer(
      "Compares the training state, the job, and every object: by checksum where both are cut "
      "into\n"
      "the same shards, else by reading them. The layouts may differ.\n\n"
      "Examples:\n"
      "  moesaic ckpt diff runs/a/checkpoints@100 runs/a/checkpoints@200\n"
      "  moesaic ckpt diff runs/a/checkpoints runs/b/checkpoints --values -o json");
  auto flags = std::make_shared<DiffFlags>();
  verb->add_option("A", flags->a, kStepTarget)->required();
  verb->add_option("B", flags->b, "The same")->required();
  verb->add_flag("--values", flags->values,
                 "Read the objects that changed, and say by how much at most");
  AddOutputFormat(verb, &flags->format);
  verb->callback([flags, &context] { Diff(*flags, context); });
}

}  // namespace moesaic
