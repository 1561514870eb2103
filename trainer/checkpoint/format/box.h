// Boxes: parts of a tensor. Shapes and boxes are in elements, row-major (the last dimension is
// contiguous). Everything here takes numbers that a file claims, so every product is checked.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "proto/checkpoint.pb.h"

namespace moesaic {

using Shape = std::span<const uint64_t>;

// A repeated field of a message, as a shape.
inline Shape AsShape(const google::protobuf::RepeatedField<uint64_t>& field) {
  return {field.data(), static_cast<size_t>(field.size())};
}

// Bytes of one element; 0 for an unknown kind.
uint64_t ElementBytes(ElementKind element);
// The name safetensors gives it ("F32"); "?" for an unknown kind.
absl::string_view ElementName(ElementKind element);
// ELEMENT_UNSPECIFIED when there is none of that name.
ElementKind ElementOfName(absl::string_view name);

// Elements of a shape, 1 for a scalar; nothing when the product overflows.
std::optional<uint64_t> CheckedElements(Shape shape);
// Bytes of a tensor; nothing on overflow or an unknown element kind.
std::optional<uint64_t> CheckedBytes(ElementKind element, Shape shape);

Box WholeBox(Shape shape);
bool IsWhole(const Box& box, Shape shape);
bool SameBox(const Box& a, const Box& b);
// InvalidArgument unless the box has the shape's rank, no empty side, and lies inside.
absl::Status ValidateBox(const Box& box, Shape shape);

// The common part of two boxes of one tensor, if any.
std::optional<Box> Intersect(const Box& a, const Box& b);

// The boxes that together are elements [begin, end) of the tensor read as one flat array, in that
// order: each is contiguous in the array. At most 2 * rank - 1 of them. `end` must be at most the
// number of elements.
std::vector<Box> BoxesOfFlatRange(Shape shape, uint64_t begin, uint64_t end);

// "[0:2, 4:8]".
std::string DescribeBox(const Box& box);
// "[2, 8]".
std::string DescribeShape(Shape shape);

// `count` elements that are contiguous in both of two boxes, at these offsets in each.
struct ElementRun {
  uint64_t source = 0;
  uint64_t target = 0;
  uint64_t count = 0;
};

// Walks the common part of `source` and `target`, ascending in both. The boxes must be valid.
class RunCursor {
 public:
  RunCursor(const Box& source, const Box& target);
  // False when there are no more.
  bool Next(ElementRun* run);

 private:
  std::vector<uint64_t> source_stride_;  // of the outer dimensions, in elements
  std::vector<uint64_t> target_stride_;
  std::vector<uint64_t> length_;  // of the common part, outer dimensions
  std::vector<uint64_t> index_;
  ElementRun next_;
  bool done_ = false;
};

}  // namespace moesaic
