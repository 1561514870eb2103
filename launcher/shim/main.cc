// moesaic-orted-shim HOST COMMAND...: what mpirun calls in place of ssh. Asks the agent of HOST to
// run mpirun's daemon there, and stays until that has ended: its output and exit code are those of
// the daemon. Killing this program kills the daemon.
//
// The head agent says the rest in the environment (launcher/agent/rank_environment.h).
#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "base/clock.h"
#include "launcher/agent/orted_command.h"
#include "launcher/agent/rank_environment.h"
#include "proto/agent.grpc.pb.h"
#include "scheduler/certs/certificate.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr int kFailed = 255;  // as ssh
constexpr std::chrono::seconds kConnectDeadline(5);

using Variables = std::map<std::string, std::string>;

// Of this process, those with the prefix MOESAIC_.
Variables OwnVariables() {
  Variables variables;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string text = *entry;
    const size_t equals = text.find('=');
    if (text.rfind("MOESAIC_", 0) == 0 && equals != std::string::npos) {
      variables[text.substr(0, equals)] = text.substr(equals + 1);
    }
  }
  return variables;
}

absl::StatusOr<std::string> AgentOf(const std::string& host, const std::string& hosts_file) {
  std::ifstream lines(hosts_file);
  std::string name;
  std::string address;
  while (lines >> name >> address) {
    if (name == host) return address;
  }
  return absl::NotFoundError(fmt::format("\"{}\" names no agent of it", hosts_file));
}

absl::StatusOr<std::optional<TlsIdentity>> OwnTls(const Variables& variables) {
  Variables own;
  for (const char* name : {"MOESAIC_TLS_CA", "MOESAIC_TLS_CERT", "MOESAIC_TLS_KEY"}) {
    const auto found = variables.find(ShimVariable(name));
    if (found != variables.end()) own[name] = found->second;
  }
  const auto files = TlsFilesFrom(own);
  if (!files.ok()) return files.status();
  return LoadTls(*files, Clock::System().Now());
}

absl::StatusOr<RunDaemonRequest> MakeRequest(const std::vector<std::string>& words,
                                             Variables& variables) {
  RunDaemonRequest request;
  uint64_t generation = 0;
  if (variables[kShimJobVariable].empty() ||
      !absl::SimpleAtoi(variables[kShimGenerationVariable], &generation)) {
    return absl::InvalidArgumentError("this program is for mpirun under an agent of moesaic");
  }
  request.set_job(variables[kShimJobVariable]);
  request.set_generation(generation);
  request.set_token(variables[kTokenVariable]);
  const absl::StatusOr<std::vector<std::string>> command = ReadRemoteCommand(words);
  if (!command.ok()) return command.status();
  request.mutable_arguments()->Assign(command->begin(), command->end());
  return request;
}

void WriteAll(int file, const std::string& text) {
  for (size_t done = 0; done < text.size();) {
    const ssize_t bytes = write(file, text.data() + done, text.size() - done);
    if (bytes <= 0) return;  // mpirun is gone, and this program soon
    done += static_cast<size_t>(bytes);
  }
}

// The daemon's exit code.
absl::StatusOr<int> RunThere(const std::string& address, const std::optional<TlsIdentity>& tls,
                             const RunDaemonRequest& request) {
  const std::shared_ptr<grpc::Channel> channel = OpenChannel(address, tls, ServerName(ROLE_AGENT));
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + kConnectDeadline)) {
    return absl::UnavailableError(fmt::format("its agent at {} does not answer within {} s",
                                              address, kConnectDeadline.count()));
  }
  const auto stub = AgentService::NewStub(channel);
  grpc::ClientContext context;
  const auto stream = stub->RunDaemon(&context, request);
  std::optional<int> exit_code;
  DaemonOutput output;
  while (stream->Read(&output)) {
    if (output.has_out()) WriteAll(STDOUT_FILENO, output.out());
    if (output.has_err()) WriteAll(STDERR_FILENO, output.err());
    if (output.has_exit_code()) exit_code = output.exit_code();
  }
  const absl::Status ended = FromGrpc(stream->Finish());
  if (exit_code) return *exit_code;
  if (!ended.ok()) return ended;
  return absl::UnavailableError("its agent said nothing of how mpirun's daemon ended");
}

absl::StatusOr<int> Run(const std::string& host, const std::vector<std::string>& words) {
  Variables variables = OwnVariables();
  const absl::StatusOr<RunDaemonRequest> request = MakeRequest(words, variables);
  if (!request.ok()) return request.status();
  const absl::StatusOr<std::string> address = AgentOf(host, variables[kShimHostsVariable]);
  if (!address.ok()) return address.status();
  const auto tls = OwnTls(variables);
  if (!tls.ok()) return tls.status();
  return RunThere(*address, *tls, *request);
}

int RunShim(int argc, char** argv) {
  if (argc < 3) {
    WriteAll(STDERR_FILENO, "usage: moesaic-orted-shim HOST COMMAND...\n");
    return kFailed;
  }
  const absl::StatusOr<int> exit_code = Run(argv[1], {argv + 2, argv + argc});
  if (exit_code.ok()) return *exit_code;
  // The head agent looks for this line (rank_logs.cc).
  WriteAll(STDERR_FILENO, fmt::format("moesaic-orted-shim: host {}: {}\n", argv[1],
                                      std::string(exit_code.status().message())));
  return kFailed;
}

}  // namespace
}  // namespace moesaic

int main(int argc, char** argv) { return moesaic::RunShim(argc, argv); }
