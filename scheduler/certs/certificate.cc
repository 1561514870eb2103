#include "scheduler/certs/certificate.h"

#include <fmt/format.h>
#include <openssl/pem.h>

#include <ctime>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "scheduler/certs/openssl_handles.h"

namespace moesaic {
namespace {

constexpr char kNodeSuffix[] = ".agent.moesaic";
constexpr char kRolePrefix[] = "ROLE_";

// Never asks on the terminal for the pass phrase of an encrypted key.
int NoPassPhrase(char*, int, int, void*) { return -1; }

std::string CommonName(X509_NAME* name) {
  const int at = X509_NAME_get_index_by_NID(name, NID_commonName, -1);
  if (at < 0) return "";
  const ASN1_STRING* text = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, at));
  return std::string(reinterpret_cast<const char*>(ASN1_STRING_get0_data(text)),
                     ASN1_STRING_length(text));
}

absl::Time ToTime(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return absl::InfinitePast();
  return absl::FromUnixSeconds(timegm(&parts));
}

std::vector<std::string> DnsNames(X509* certificate) {
  std::vector<std::string> found;
  auto* names = static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr));
  for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names, i);
    if (name->type != GEN_DNS) continue;
    found.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                       ASN1_STRING_length(name->d.dNSName));
  }
  GENERAL_NAMES_free(names);
  return found;
}

std::string Fingerprint(X509* certificate) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int bytes = 0;
  if (X509_digest(certificate, EVP_sha256(), digest, &bytes) != 1) return "";
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<char*>(digest), bytes));
}

BioPtr OpenText(const std::string& text) {
  return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

}  // namespace

X509Ptr ParseX509(const std::string& pem) {
  return X509Ptr(PEM_read_bio_X509(OpenText(pem).get(), nullptr, NoPassPhrase, nullptr));
}

KeyPtr ParseKey(const std::string& pem) {
  return KeyPtr(PEM_read_bio_PrivateKey(OpenText(pem).get(), nullptr, NoPassPhrase, nullptr));
}

absl::StatusOr<Certificate> ReadCertificate(const std::string& pem) {
  const X509Ptr x509 = ParseX509(pem);
  if (x509 == nullptr) return OpensslError("not a certificate in PEM form");
  Certificate certificate;
  certificate.common_name = CommonName(X509_get_subject_name(x509.get()));
  certificate.issuer = CommonName(X509_get_issuer_name(x509.get()));
  certificate.dns_names = DnsNames(x509.get());
  certificate.not_before = ToTime(X509_get0_notBefore(x509.get()));
  certificate.not_after = ToTime(X509_get0_notAfter(x509.get()));
  certificate.is_authority = X509_check_ca(x509.get()) == 1;
  certificate.fingerprint = Fingerprint(x509.get());
  return certificate;
}

absl::Status CheckKeyPair(const std::string& certificate, const std::string& key) {
  const X509Ptr x509 = ParseX509(certificate);
  if (x509 == nullptr) return OpensslError("not a certificate in PEM form");
  const KeyPtr private_key = ParseKey(key);
  if (private_key == nullptr) return OpensslError("not a private key in PEM form (unencrypted)");
  if (X509_check_private_key(x509.get(), private_key.get()) != 1) {
    return OpensslError("the key is not the certificate's");
  }
  return absl::OkStatus();
}

std::string RoleName(Role role) {
  if (role == ROLE_NONE) return "none";
  return absl::AsciiStrToLower(absl::StripPrefix(Role_Name(role), kRolePrefix));
}

Role RoleNamed(absl::string_view name) {
  for (const Role role : {ROLE_CLI, ROLE_AGENT, ROLE_WORKER, ROLE_COORDINATOR}) {
    if (name == RoleName(role)) return role;
  }
  return ROLE_NONE;
}

std::string ServerName(Role role) { return RoleName(role) + ".moesaic"; }

std::string NodeServerName(absl::string_view node) { return absl::StrCat(node, kNodeSuffix); }

std::optional<std::string> BoundNode(const std::vector<std::string>& dns_names) {
  for (const std::string& name : dns_names) {
    absl::string_view node = name;
    if (absl::ConsumeSuffix(&node, kNodeSuffix)) return std::string(node);
  }
  return std::nullopt;
}

}  // namespace moesaic
