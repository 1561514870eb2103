// The text of one scalar field of JobSpec, as a job file, a default_value, --set and the environment
// write it. Pure.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/job.pb.h"

namespace moesaic {

// The options of `field` in proto/job.proto; all defaults for a field without any.
const FieldRules& RulesOf(const google::protobuf::FieldDescriptor& field);

// Sets `field` (scalar, not repeated) of `message` from `text`. Strict: whole numbers are decimal
// digits without a leading zero, sign of plus, point or exponent; booleans are true and false; enums
// are the lower-case names; durations and sizes carry a unit. InvalidArgument says what was expected
// and, where the mistake is a common one, what to write; the field is then left alone. Ranges are
// not checked beyond those of the type.
absl::Status SetFieldFromText(absl::string_view text,
                              const google::protobuf::FieldDescriptor& field,
                              google::protobuf::Message* message);

// The inverse: SetFieldFromText(FieldText(m, f), f, &n) gives n the same value (durations: to the
// nanosecond).
std::string FieldText(const google::protobuf::Message& message,
                      const google::protobuf::FieldDescriptor& field);

// "softmax" for SOFTMAX.
std::string EnumText(const google::protobuf::EnumValueDescriptor& value);
// "dense_to_sparse"; empty for STEADY, and for a number that is no phase, which a message may hold.
std::string PhaseText(RecipePhase phase);

// Bytes of "2GiB", "512MiB", "1000" or "1.5KiB" (units B, KiB, MiB, GiB, TiB). InvalidArgument for
// anything else, for a fraction of a byte and for more than 2^63 bytes.
absl::StatusOr<uint64_t> ParseBytes(absl::string_view text);
// The largest unit that divides `bytes`.
std::string FormatBytes(uint64_t bytes);

}  // namespace moesaic
