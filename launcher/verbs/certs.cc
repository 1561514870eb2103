#include "launcher/verbs/certs.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/foreign_text.h"
#include "scheduler/certs/authority.h"
#include "scheduler/certs/certificate.h"

namespace moesaic {
namespace {

// Machines' clocks differ a little; a certificate is used the moment that it is made.
constexpr absl::Duration kClockSkew = absl::Minutes(5);
constexpr int kDefaultDays = 365;
constexpr int kMaxDays = 3650;

struct InitFlags {
  std::string dir;
  std::vector<std::string> hosts;
  int days = kDefaultDays;
};

// A folder that this run makes: what is there already is never touched.
class NewFolder {
 public:
  static absl::StatusOr<NewFolder> Make(const std::string& path) {
    if (mkdir(path.c_str(), 0700) == 0) return NewFolder(path);
    if (errno == EEXIST) {
      return absl::AlreadyExistsError(
          fmt::format("{} exists; certificates are never overwritten: give another folder", path));
    }
    return absl::PermissionDeniedError(fmt::format("cannot make {}: {}", path, strerror(errno)));
  }

  const std::string& path() const { return path_; }

  absl::Status Write(const std::string& name, const std::string& text) const {
    const std::string path = path_ + "/" + name;
    const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    const bool written = fd >= 0 &&
                         write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                         fsync(fd) == 0;
    const int error = errno;
    if (fd >= 0) close(fd);
    if (written) return absl::OkStatus();
    return absl::PermissionDeniedError(fmt::format("cannot write {}: {}", path, strerror(error)));
  }

  // <role>.pem and <role>.key
  absl::Status Issue(const Authority& authority, Role role, const std::string& node,
                     Validity validity) const {
    const absl::StatusOr<KeyPair> pair = authority.Issue(role, node, validity);
    if (!pair.ok()) return pair.status();
    const absl::Status status = Write(RoleName(role) + ".pem", pair->certificate);
    return status.ok() ? Write(RoleName(role) + ".key", pair->key) : status;
  }

 private:
  explicit NewFolder(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

absl::Status MakeFolder(const std::string& path, const Authority& authority,
                        const std::vector<Role>& roles, const std::string& node,
                        Validity validity) {
  const absl::StatusOr<NewFolder> folder = NewFolder::Make(path);
  if (!folder.ok()) return folder.status();
  absl::Status status = folder->Write("ca.pem", authority.pair().certificate);
  for (const Role role : roles) {
    if (status.ok()) status = folder->Issue(authority, role, node, validity);
  }
  return status;
}

absl::Status MakeHosts(const InitFlags& flags, const Authority& authority, Validity validity) {
  if (flags.hosts.empty()) return absl::OkStatus();
  const absl::StatusOr<NewFolder> hosts = NewFolder::Make(flags.dir + "/hosts");
  if (!hosts.ok()) return hosts.status();
  for (const std::string& host : flags.hosts) {
    const absl::Status status = MakeFolder(hosts->path() + "/" + host, authority,
                                           {ROLE_AGENT, ROLE_WORKER}, host, validity);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status MakeAll(const InitFlags& flags, absl::Time now) {
  for (const std::string& host : flags.hosts) {
    if (const absl::Status named = CheckName("node", host); !named.ok()) return named;
  }
  const Validity validity = {now - kClockSkew, now + absl::Hours(24) * flags.days};
  const absl::StatusOr<Authority> authority = Authority::Create(validity);
  if (!authority.ok()) return authority.status();
  absl::Status status =
      MakeFolder(flags.dir, *authority, {ROLE_COORDINATOR, ROLE_AGENT, ROLE_WORKER, ROLE_CLI}, "",
                 validity);
  if (status.ok()) status = MakeHosts(flags, *authority, validity);
  if (!status.ok()) return status;
  const absl::StatusOr<NewFolder> secret = NewFolder::Make(flags.dir + "/authority");
  if (!secret.ok()) return secret.status();
  return secret->Write("ca.key", authority->pair().key);
}

void PrintWhatToCopy(const InitFlags& flags, std::ostream& out) {
  const std::string& dir = flags.dir;
  out << "coordinator's host: " << dir << "/{ca.pem,coordinator.pem,coordinator.key}\n";
  if (flags.hosts.empty()) {
    out << "every agent's host: " << dir
        << "/{ca.pem,agent.pem,agent.key,worker.pem,worker.key}\n";
  }
  for (const std::string& host : flags.hosts) {
    out << "host of node " << host << ": " << dir << "/hosts/" << host
        << "/ (all of it; good for this node name only)\n";
  }
  out << "people who submit jobs: " << dir << "/{ca.pem,cli.pem,cli.key}\n"
      << "nobody: " << dir << "/authority/ca.key makes certificates of any role; keep it offline, "
      << "or delete it\n"
      << "then give every program --tls-dir FOLDER or MOESAIC_TLS_DIR=FOLDER; all expire in "
      << flags.days << (flags.days == 1 ? " day\n" : " days\n");
}

void RunInit(const InitFlags& flags, VerbContext& context) {
  const absl::Status status = MakeAll(flags, Clock::System().Now());
  if (!status.ok()) return Fail(status, context);
  PrintWhatToCopy(flags, context.out);
}

std::string Day(absl::Time time) {
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", time, absl::UTCTimeZone());
}

void RunShow(const std::string& path, VerbContext& context) {
  std::ifstream file(path, std::ios::binary);
  const absl::StatusOr<Certificate> read =
      ReadCertificate(std::string(std::istreambuf_iterator<char>(file), {}));
  if (!read.ok()) {
    return Fail(absl::InvalidArgumentError(fmt::format("{}: {}", path,
                                                       std::string(read.status().message()))),
                context);
  }
  const std::optional<std::string> node = BoundNode(read->dns_names);
  const absl::Time now = Clock::System().Now();
  const Role role = RoleNamed(read->common_name);
  std::string what = role == ROLE_NONE ? "no role of moesaic" : "role " + RoleName(role);
  if (read->is_authority) what = "an authority";
  if (node) what += ", of node " + *node + " only";
  const char* validity = now < read->not_before  ? " (NOT YET VALID)"
                         : now > read->not_after ? " (EXPIRED)"
                                                 : "";
  context.out << EscapeControls(fmt::format(
      "subject      {}: {}\nissuer       {}\nnames        {}\nvalid from   {}\nvalid until  {}{}\n"
      "sha-256      {}\n",
      read->common_name, what, read->issuer, fmt::join(read->dns_names, ", "),
      Day(read->not_before), Day(read->not_after), validity, read->fingerprint));
}

void RegisterInit(CLI::App* certs, VerbContext& context) {
  CLI::App* verb =
      certs->add_subcommand("init", "Make an authority and one certificate for each role");
  verb->footer(
      "For clusters of one owner, and tests; a site's own authority serves as well.\n"
      "Examples:\n"
      "  moesaic certs init certs\n"
      "  moesaic certs init certs --hosts node1,node2 --days 90");
  auto flags = std::make_shared<InitFlags>();
  verb->add_option("DIR", flags->dir, "The folder to make; it must not exist")->required();
  verb->add_option("--hosts", flags->hosts,
                   "Node names, separated by commas: each gets an agent's certificate of its own "
                   "that is good for this name only")
      ->delimiter(',');
  verb->add_option("--days", flags->days, "How long all are valid")
      ->check(CLI::Range(1, kMaxDays))
      ->capture_default_str();
  verb->callback([flags, &context] { RunInit(*flags, context); });
}

void RegisterShow(CLI::App* certs, VerbContext& context) {
  CLI::App* verb = certs->add_subcommand("show", "Say what a certificate says");
  auto path = std::make_shared<std::string>();
  verb->add_option("FILE", *path, "A certificate (PEM)")->required()->check(CLI::ExistingFile);
  verb->callback([path, &context] { RunShow(*path, context); });
}

}  // namespace

void RegisterCerts(CLI::App& program, VerbContext& context) {
  CLI::App* certs = program.add_subcommand("certs", "Certificates of a cluster");
  certs->require_subcommand(1);
  RegisterInit(certs, context);
  RegisterShow(certs, context);
}

}  // namespace moesaic
