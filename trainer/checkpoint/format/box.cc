#include "trainer/checkpoint/format/box.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace moesaic {
namespace {

struct ElementRow {
  ElementKind kind;
  uint64_t bytes;
  absl::string_view name;
};
constexpr ElementRow kElements[] = {
    {ELEMENT_F32, 4, "F32"}, {ELEMENT_F64, 8, "F64"}, {ELEMENT_BF16, 2, "BF16"},
    {ELEMENT_I64, 8, "I64"}, {ELEMENT_I32, 4, "I32"}, {ELEMENT_U8, 1, "U8"},
    {ELEMENT_F16, 2, "F16"},
};

void AppendFlatRange(Shape shape, size_t dim, uint64_t begin, uint64_t end, Box prefix,
                     std::vector<Box>* out) {
  if (begin >= end) return;
  uint64_t row = 1;
  for (size_t i = dim + 1; i < shape.size(); ++i) row *= shape[i];
  const auto whole_rows = [&](uint64_t first, uint64_t last) {
    if (first >= last) return;
    Box box = prefix;
    if (dim < shape.size()) {
      box.add_offset(first);
      box.add_length(last - first);
    }
    for (size_t i = dim + 1; i < shape.size(); ++i) {
      box.add_offset(0);
      box.add_length(shape[i]);
    }
    out->push_back(std::move(box));
  };
  const auto part_of_row = [&](uint64_t index, uint64_t from, uint64_t to) {
    Box inner = prefix;
    inner.add_offset(index);
    inner.add_length(1);
    AppendFlatRange(shape, dim + 1, from, to, std::move(inner), out);
  };
  uint64_t first = begin / row;
  const uint64_t last = end / row;
  if (first == last) return part_of_row(first, begin % row, end % row);
  if (begin % row != 0) part_of_row(first++, begin % row, row);
  whole_rows(first, last);
  if (end % row != 0) part_of_row(last, 0, end % row);
}

}  // namespace

uint64_t ElementBytes(ElementKind element) {
  for (const ElementRow& row : kElements) {
    if (row.kind == element) return row.bytes;
  }
  return 0;
}

absl::string_view ElementName(ElementKind element) {
  for (const ElementRow& row : kElements) {
    if (row.kind == element) return row.name;
  }
  return "?";
}

ElementKind ElementOfName(absl::string_view name) {
  for (const ElementRow& row : kElements) {
    if (row.name == name) return row.kind;
  }
  return ELEMENT_UNSPECIFIED;
}

std::optional<uint64_t> CheckedElements(Shape shape) {
  uint64_t product = 1;
  for (uint64_t side : shape) {
    if (__builtin_mul_overflow(product, side, &product)) return std::nullopt;
  }
  return product;
}

std::optional<uint64_t> CheckedBytes(ElementKind element, Shape shape) {
  const uint64_t size = ElementBytes(element);
  std::optional<uint64_t> bytes = CheckedElements(shape);
  if (size == 0 || !bytes || __builtin_mul_overflow(*bytes, size, &*bytes)) return std::nullopt;
  return bytes;
}

Box WholeBox(Shape shape) {
  Box box;
  for (uint64_t side : shape) {
    box.add_offset(0);
    box.add_length(side);
  }
  return box;
}

bool IsWhole(const Box& box, Shape shape) {
  return std::ranges::equal(AsShape(box.length()), shape) &&
         std::ranges::all_of(box.offset(), [](uint64_t offset) { return offset == 0; });
}

bool SameBox(const Box& a, const Box& b) {
  return std::ranges::equal(AsShape(a.offset()), AsShape(b.offset())) &&
         std::ranges::equal(AsShape(a.length()), AsShape(b.length()));
}

absl::Status ValidateBox(const Box& box, Shape shape) {
  const auto rank = static_cast<int>(shape.size());
  if (box.offset_size() != rank || box.length_size() != rank) {
    return absl::InvalidArgumentError(absl::StrCat("a box of rank ", box.offset_size(), "/",
                                                   box.length_size(), " in a tensor of shape ",
                                                   DescribeShape(shape)));
  }
  for (int i = 0; i < rank; ++i) {
    if (box.length(i) == 0 || box.offset(i) > shape[i] ||
        box.length(i) > shape[i] - box.offset(i)) {
      return absl::InvalidArgumentError(absl::StrCat("box ", DescribeBox(box),
                                                     " is empty or outside the tensor's shape ",
                                                     DescribeShape(shape)));
    }
  }
  return absl::OkStatus();
}

std::optional<Box> Intersect(const Box& a, const Box& b) {
  Box common;
  for (int i = 0; i < a.offset_size(); ++i) {
    const uint64_t begin = std::max(a.offset(i), b.offset(i));
    const uint64_t end = std::min(a.offset(i) + a.length(i), b.offset(i) + b.length(i));
    if (begin >= end) return std::nullopt;
    common.add_offset(begin);
    common.add_length(end - begin);
  }
  return common;
}

std::vector<Box> BoxesOfFlatRange(Shape shape, uint64_t begin, uint64_t end) {
  std::vector<Box> boxes;
  AppendFlatRange(shape, 0, begin, end, Box(), &boxes);
  return boxes;
}

std::string DescribeBox(const Box& box) {
  std::vector<std::string> sides;
  for (int i = 0; i < std::min(box.offset_size(), box.length_size()); ++i) {
    sides.push_back(absl::StrCat(box.offset(i), ":", box.offset(i) + box.length(i)));
  }
  return absl::StrCat("[", absl::StrJoin(sides, ", "), "]");
}

std::string DescribeShape(Shape shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

RunCursor::RunCursor(const Box& source, const Box& target) {
  const std::optional<Box> common = Intersect(source, target);
  if (!common) {
    done_ = true;
    return;
  }
  // The inner dimensions that the common part fills in both boxes make one run, together with the
  // dimension before them.
  int inner = common->length_size();
  uint64_t source_row = 1, target_row = 1;
  next_.count = 1;
  while (inner > 0) {
    --inner;
    const uint64_t length = common->length(inner);
    next_.count *= length;
    next_.source += (common->offset(inner) - source.offset(inner)) * source_row;
    next_.target += (common->offset(inner) - target.offset(inner)) * target_row;
    source_row *= source.length(inner);
    target_row *= target.length(inner);
    if (length != source.length(inner) || length != target.length(inner)) break;
  }
  length_.assign(common->length().begin(), common->length().begin() + inner);
  source_stride_.resize(inner);
  target_stride_.resize(inner);
  index_.assign(inner, 0);
  for (int i = inner - 1; i >= 0; --i) {
    source_stride_[i] = source_row;
    target_stride_[i] = target_row;
    next_.source += (common->offset(i) - source.offset(i)) * source_row;
    next_.target += (common->offset(i) - target.offset(i)) * target_row;
    source_row *= source.length(i);
    target_row *= target.length(i);
  }
}

bool RunCursor::Next(ElementRun* run) {
  if (done_) return false;
  *run = next_;
  int dim = static_cast<int>(length_.size()) - 1;
  for (; dim >= 0; --dim) {
    next_.source += source_stride_[dim];
    next_.target += target_stride_[dim];
    if (++index_[dim] < length_[dim]) return true;
    next_.source -= source_stride_[dim] * length_[dim];
    next_.target -= target_stride_[dim] * length_[dim];
    index_[dim] = 0;
  }
  done_ = true;
  return true;
}

}  // namespace moesaic
