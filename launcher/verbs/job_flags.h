// The flags of every verb that takes a job file.
#pragma once

#include <string>
#include <vector>

#include "launcher/config/job_file.h"
#include "launcher/verbs/verb.h"

namespace moesaic {

struct JobFlags {
  std::string file;
  std::vector<std::string> sets;
  // Filled by the verb from flags of its own that stand for fields.
  std::vector<JobFlag> flags;
};

// Adds -f/--file (required) and --set to `verb`. `flags` must outlive the parse.
void AddJobFlags(CLI::App* verb, JobFlags* flags);

// Adds --resume: auto, never or a step. `resume` must outlive the parse.
void AddResumeFlag(CLI::App* verb, std::string* resume);

enum class JobInputs {
  kIgnore,     // the files that the job reads need not exist; model.vocabulary may stay unset
  kTokenizer,  // the tokenizer must exist; model.vocabulary is resolved from it
  kAll,        // all must exist
};

// Loads the job. When it has problems, prints them to context.err, sets context.exit_code and
// returns nothing.
std::optional<LoadedJob> LoadJobOrFail(const JobFlags& flags, JobInputs inputs,
                                       VerbContext& context);

}  // namespace moesaic
