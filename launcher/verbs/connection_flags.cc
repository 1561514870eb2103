#include "launcher/verbs/connection_flags.h"

#include <fmt/format.h>

#include "absl/strings/match.h"
#include "base/clock.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

std::string Variable(const VerbContext& context, const char* name) {
  const auto found = context.environment.find(name);
  return found == context.environment.end() ? "" : found->second;
}

void Prefer(const std::string& given, std::string* file) {
  if (!given.empty()) *file = given;
}

}  // namespace

void AddTlsFlags(CLI::App* verb, TlsFlags* flags) {
  verb->add_option(
      "--tls-dir", flags->dir,
      "Folder with ca.pem and this role's certificate and key, as 'moesaic certs init' "
      "makes (default: $MOESAIC_TLS_DIR)");
  verb->add_option("--tls-ca", flags->ca, "Certificate of the cluster's authority");
  verb->add_option("--tls-cert", flags->certificate, "Certificate of this process");
  verb->add_option("--tls-key", flags->key, "Its private key");
  verb->add_flag("--insecure", flags->insecure,
                 "Speak plain text to other machines: anyone in between can run programs here");
}

void AddConnectionFlags(CLI::App* verb, ConnectionFlags* flags) {
  verb->add_option(
      "--coordinator", flags->coordinator,
      fmt::format("HOST:PORT of the coordinator (default: $MOESAIC_COORDINATOR, or {})",
                  kDefaultCoordinator));
  AddTlsFlags(verb, &flags->tls);
}

absl::StatusOr<std::optional<TlsFiles>> FindTlsFiles(const TlsFlags& flags, Role role,
                                                     const VerbContext& context) {
  const std::string dir = flags.dir.empty() ? Variable(context, "MOESAIC_TLS_DIR") : flags.dir;
  TlsFiles files;
  if (!dir.empty()) files = TlsFilesIn(dir, role);
  Prefer(flags.ca, &files.ca);
  Prefer(flags.certificate, &files.certificate);
  Prefer(flags.key, &files.key);
  if (files.ca.empty() && files.certificate.empty() && files.key.empty()) {
    return std::optional<TlsFiles>();
  }
  if (files.ca.empty() || files.certificate.empty() || files.key.empty()) {
    return absl::InvalidArgumentError(
        "TLS wants all of --tls-ca, --tls-cert and --tls-key, or --tls-dir");
  }
  return std::optional<TlsFiles>(std::move(files));
}

absl::StatusOr<std::optional<TlsIdentity>> FindTls(const TlsFlags& flags, Role role,
                                                   const VerbContext& context) {
  const absl::StatusOr<std::optional<TlsFiles>> files = FindTlsFiles(flags, role, context);
  if (!files.ok()) return files.status();
  return LoadTls(*files, Clock::System().Now());
}

std::string FindCoordinator(const ConnectionFlags& flags, const VerbContext& context) {
  if (!flags.coordinator.empty()) return flags.coordinator;
  const std::string variable = Variable(context, "MOESAIC_COORDINATOR");
  return variable.empty() ? kDefaultCoordinator : variable;
}

absl::StatusOr<CoordinatorConnection> Connect(const ConnectionFlags& flags, Role role,
                                              const VerbContext& context) {
  absl::StatusOr<std::optional<TlsIdentity>> tls = FindTls(flags.tls, role, context);
  if (!tls.ok()) return tls.status();
  CoordinatorConnection connection;
  connection.target = FindCoordinator(flags, context);
  const absl::Status allowed =
      CheckPlainText(connection.target, tls->has_value(), flags.tls.insecure);
  if (!allowed.ok()) return allowed;
  connection.channel = OpenCoordinatorChannel(connection.target, *tls);
  connection.stub = Coordinator::NewStub(connection.channel);
  return connection;
}

absl::Status CoordinatorConnection::Explain(const grpc::Status& status,
                                            bool proven) const {
  const std::string& message = status.error_message();
  if (status.error_code() == grpc::StatusCode::CANCELLED) {
    return absl::UnavailableError(fmt::format("the coordinator at {} is stopping", target));
  }
  if (status.error_code() != grpc::StatusCode::UNAVAILABLE) return FromGrpc(status);
  if (!proven && absl::StrContains(message, "andshake")) {
    return absl::PermissionDeniedError(fmt::format(
        "the coordinator at {} and this process do not accept each other's certificates: are they "
        "of the same authority and not expired (moesaic certs show)? {}",
        target, message));
  }
  return absl::UnavailableError(fmt::format(
      "no coordinator answers at {}: is it running, is --coordinator right, and does it "
      "want TLS (--tls-dir)? {}",
      target, message));
}

}  // namespace moesaic
