#include "scheduler/client/credentials.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <google/protobuf/descriptor.h>
#include <grpcpp/security/auth_metadata_processor.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "scheduler/certs/certificate.h"
#include "scheduler/client/channel.h"

namespace moesaic {
namespace {

constexpr off_t kMaxPemBytes = 1 << 20;
constexpr char kCaVariable[] = "MOESAIC_TLS_CA";
constexpr char kCertificateVariable[] = "MOESAIC_TLS_CERT";
constexpr char kKeyVariable[] = "MOESAIC_TLS_KEY";
constexpr char kMakeNew[] = "make new ones with \"moesaic certs init\"";

absl::StatusOr<std::string> ReadPem(const std::string& path, bool secret) {
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    const std::string text = fmt::format("cannot read {}: {}", path, strerror(errno));
    return errno == ENOENT ? absl::NotFoundError(text) : absl::PermissionDeniedError(text);
  }
  if (!S_ISREG(info.st_mode) || info.st_size > kMaxPemBytes) {
    return absl::InvalidArgumentError(fmt::format("{} is not a file of PEM text", path));
  }
  if (secret && (info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return absl::FailedPreconditionError(
        fmt::format("the key {} is open to others (mode {:o}): chmod 600 it", path,
                    static_cast<unsigned>(info.st_mode & 07777)));
  }
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    return absl::PermissionDeniedError(fmt::format("cannot read {}: {}", path, strerror(errno)));
  }
  return std::string(std::istreambuf_iterator<char>(file), {});
}

absl::Status AtFile(const std::string& path, const absl::Status& status) {
  return absl::Status(status.code(), fmt::format("{}: {}", path, std::string(status.message())));
}

absl::Status CheckTimes(const std::string& path, const Certificate& certificate, absl::Time now) {
  if (now < certificate.not_before) {
    return absl::FailedPreconditionError(
        fmt::format("{} is not valid before {}: is this machine's clock right?", path,
                    absl::FormatTime(certificate.not_before, absl::UTCTimeZone())));
  }
  if (now > certificate.not_after) {
    return absl::FailedPreconditionError(
        fmt::format("{} expired on {}: {}", path,
                    absl::FormatTime(certificate.not_after, absl::UTCTimeZone()), kMakeNew));
  }
  return absl::OkStatus();
}

absl::Status CheckCertificate(const std::string& path, const std::string& pem, bool of_role,
                              absl::Time now) {
  const absl::StatusOr<Certificate> certificate = ReadCertificate(pem);
  if (!certificate.ok()) return AtFile(path, certificate.status());
  if (of_role && RoleNamed(certificate->common_name) == ROLE_NONE) {
    return absl::InvalidArgumentError(fmt::format(
        "{} is of \"{}\", which is no role (cli, agent, worker, coordinator): {}", path,
        certificate->common_name, kMakeNew));
  }
  return CheckTimes(path, *certificate, now);
}

std::vector<std::string> Values(const grpc::AuthContext& peer, const char* property) {
  std::vector<std::string> values;
  for (const grpc::string_ref& value : peer.FindPropertyValues(property)) {
    values.emplace_back(value.data(), value.size());
  }
  return values;
}

Role RoleOf(const grpc::AuthContext& peer) {
  const std::vector<std::string> names = Values(peer, GRPC_X509_CN_PROPERTY_NAME);
  return names.size() == 1 ? RoleNamed(names[0]) : ROLE_NONE;
}

class CallerCheck : public grpc::AuthMetadataProcessor {
 public:
  bool IsBlocking() const override { return false; }
  grpc::Status Process(const InputMetadata& metadata, grpc::AuthContext* peer, OutputMetadata*,
                       OutputMetadata*) override {
    const auto path = metadata.find(":path");
    if (path == metadata.end()) return ToGrpc(absl::InternalError("a call without a path"));
    return ToGrpc(CheckCaller(absl::string_view(path->second.data(), path->second.size()),
                              RoleOf(*peer)));
  }
};

}  // namespace

TlsFiles TlsFilesIn(const std::string& dir, Role role) {
  const std::string stem = dir + "/" + RoleName(role);
  return {dir + "/ca.pem", stem + ".pem", stem + ".key"};
}

std::map<std::string, std::string> TlsVariables(const TlsFiles& files) {
  return {{kCaVariable, files.ca}, {kCertificateVariable, files.certificate},
          {kKeyVariable, files.key}};
}

absl::StatusOr<std::optional<TlsFiles>> TlsFilesFrom(
    const std::map<std::string, std::string>& environment) {
  std::vector<std::string> found;
  for (const char* name : {kCaVariable, kCertificateVariable, kKeyVariable}) {
    const auto variable = environment.find(name);
    if (variable != environment.end()) found.push_back(variable->second);
  }
  if (found.empty()) return std::optional<TlsFiles>();
  if (found.size() != 3) {
    return absl::InvalidArgumentError(fmt::format("TLS wants all of {}, {} and {}", kCaVariable,
                                                  kCertificateVariable, kKeyVariable));
  }
  return std::optional<TlsFiles>({found[0], found[1], found[2]});
}

absl::StatusOr<TlsIdentity> LoadTls(const TlsFiles& files, absl::Time now) {
  const absl::StatusOr<std::string> ca = ReadPem(files.ca, false);
  if (!ca.ok()) return ca.status();
  const absl::StatusOr<std::string> certificate = ReadPem(files.certificate, false);
  if (!certificate.ok()) return certificate.status();
  const absl::StatusOr<std::string> key = ReadPem(files.key, true);
  if (!key.ok()) return key.status();
  absl::Status status = CheckCertificate(files.ca, *ca, false, now);
  if (status.ok()) status = CheckCertificate(files.certificate, *certificate, true, now);
  if (!status.ok()) return status;
  status = CheckKeyPair(*certificate, *key);
  if (!status.ok()) return AtFile(files.key, status);
  return TlsIdentity{*ca, *certificate, *key};
}

absl::StatusOr<std::optional<TlsIdentity>> LoadTls(const std::optional<TlsFiles>& files,
                                                   absl::Time now) {
  if (!files) return std::optional<TlsIdentity>();
  absl::StatusOr<TlsIdentity> tls = LoadTls(*files, now);
  if (!tls.ok()) return tls.status();
  return std::optional<TlsIdentity>(*std::move(tls));
}

std::shared_ptr<grpc::ChannelCredentials> ClientCredentials(const std::optional<TlsIdentity>& tls) {
  if (!tls) return grpc::InsecureChannelCredentials();
  return grpc::SslCredentials({tls->ca, tls->key, tls->certificate});
}

std::shared_ptr<grpc::ServerCredentials> ServerCredentials(const std::optional<TlsIdentity>& tls) {
  if (!tls) return grpc::InsecureServerCredentials();
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = tls->ca;
  options.pem_key_cert_pairs.push_back({tls->key, tls->certificate});
  std::shared_ptr<grpc::ServerCredentials> credentials = grpc::SslServerCredentials(options);
  credentials->SetAuthMetadataProcessor(std::make_shared<CallerCheck>());
  return credentials;
}

absl::Status CheckCaller(absl::string_view path, Role role) {
  const std::string name =
      absl::StrReplaceAll(absl::StripPrefix(path, "/"), {{"/", "."}});
  const google::protobuf::MethodDescriptor* method =
      google::protobuf::DescriptorPool::generated_pool()->FindMethodByName(name);
  if (method == nullptr) return absl::PermissionDeniedError("there is no such method");
  const google::protobuf::MethodOptions& options = method->options();
  std::vector<std::string> allowed;
  for (int i = 0; i < options.ExtensionSize(callers); ++i) {
    if (role != ROLE_NONE && options.GetExtension(callers, i) == role) return absl::OkStatus();
    allowed.push_back(RoleName(options.GetExtension(callers, i)));
  }
  return absl::PermissionDeniedError(
      fmt::format("{} takes the certificate of: {}; yours is of: {}", method->name(),
                  fmt::join(allowed, ", "), RoleName(role)));
}

absl::Status CheckNode(const grpc::AuthContext& peer, absl::string_view node) {
  const std::optional<std::string> bound = BoundNode(Values(peer, GRPC_X509_SAN_PROPERTY_NAME));
  if (!bound || *bound == node) return absl::OkStatus();
  return absl::PermissionDeniedError(
      fmt::format("the certificate is of node {}, not of {}", *bound, std::string(node)));
}

bool IsLoopback(absl::string_view address) {
  const size_t colon = address.rfind(':');
  absl::string_view host = address.substr(0, colon);
  absl::ConsumePrefix(&host, "[");
  absl::ConsumeSuffix(&host, "]");
  if (host == "localhost" || host == "::1") return true;
  const std::vector<std::string> parts = absl::StrSplit(host, '.');
  uint32_t value = 0;
  return parts.size() == 4 && parts[0] == "127" &&
         std::all_of(parts.begin(), parts.end(), [&](const std::string& part) {
           return absl::SimpleAtoi(part, &value) && value < 256;
         });
}

absl::Status CheckPlainText(absl::string_view address, bool has_tls, bool insecure) {
  if (has_tls || insecure || IsLoopback(address)) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "{} is not on loopback, and without TLS whoever is in between can run programs on "
      "the cluster: give --tls-dir (\"moesaic certs init\" makes one), use 127.0.0.1, or "
      "accept that with --insecure",
      std::string(address)));
}

}  // namespace moesaic
