#include "launcher/verbs/submit.h"

#include <memory>

#include "launcher/verbs/cluster_client.h"
#include "launcher/verbs/job_flags.h"
#include "launcher/verbs/job_paths.h"

namespace moesaic {
namespace {

struct SubmitFlags {
  JobFlags job;
  ConnectionFlags cluster;
  std::string resume = "auto";
  std::string id;
  bool dry_run = false;
};

void Submit(SubmitFlags flags, VerbContext& context) {
  if (!flags.id.empty()) flags.job.flags.push_back({"--id", "name", flags.id});
  std::optional<LoadedJob> job = LoadJobOrFail(flags.job, JobInputs::kAll, context);
  if (!job) return;
  MakePathsAbsolute(&job->spec);
  if (flags.dry_run) {
    context.err << "job " << job->spec.name() << " is valid; it was not submitted\n";
    return;
  }
  const auto client = ClusterClient::Open(flags.cluster, context);
  if (!client.ok()) {
    Fail(client.status(), context);
    return;
  }
  SubmitJobRequest request;
  *request.mutable_spec() = job->spec;
  request.set_resume(flags.resume);
  SubmitJobReply reply;
  const absl::Status submitted = (*client)->Call([&](grpc::ClientContext* call) {
    return (*client)->stub().SubmitJob(call, request, &reply);
  });
  if (!submitted.ok()) {
    Fail(submitted, context);
    return;
  }
  context.out << reply.job() << '\n' << std::flush;
}

}  // namespace

void RegisterSubmit(CLI::App& program, VerbContext& context) {
  auto flags = std::make_shared<SubmitFlags>();
  CLI::App* verb = program.add_subcommand("submit", "give a job to the coordinator; prints its id");
  AddJobFlags(verb, &flags->job);
  AddResumeFlag(verb, &flags->resume);
  AddConnectionFlags(verb, &flags->cluster);
  verb->add_option("--id", flags->id, "The job's id, in place of its name in the job file");
  verb->add_flag("--dry-run", flags->dry_run,
                 "Check the job file and the files that it names only");
  verb->footer(
      "Relative paths of the job file are relative to the current folder, here. The coordinator\n"
      "and all hosts must see them under the same names: put data, run.dir and checkpoint.dir on\n"
      "storage that they share.\n\n"
      "  job=$(moesaic submit -f job.yaml) && moesaic logs -f $job");
  verb->callback([flags, &context] { Submit(*flags, context); });
}

}  // namespace moesaic
