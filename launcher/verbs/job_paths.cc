#include "launcher/verbs/job_paths.h"

#include <filesystem>
#include <string>

namespace moesaic {
namespace {

std::string Absolute(const std::string& path) {
  return std::filesystem::absolute(path).lexically_normal().string();
}

}  // namespace

void MakePathsAbsolute(JobSpec* spec) {
  spec->mutable_run()->set_dir(Absolute(spec->run().dir()));
  spec->mutable_checkpoint()->set_dir(Absolute(spec->checkpoint().dir()));
  DataSpec* data = spec->mutable_data();
  if (data->has_tokenizer()) data->set_tokenizer(Absolute(data->tokenizer()));
  for (DataSource& source : *data->mutable_train()) source.set_path(Absolute(source.path()));
  for (DataSource& source : *data->mutable_validation()) source.set_path(Absolute(source.path()));
  TrainSpec* train = spec->mutable_train();
  if (train->has_init_from()) train->set_init_from(Absolute(train->init_from()));
}

}  // namespace moesaic
