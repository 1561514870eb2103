#include "scheduler/certs/authority.h"

#include <openssl/bn.h>
#include <openssl/pem.h>

#include "absl/strings/str_cat.h"
#include "base/foreign_text.h"
#include "scheduler/certs/certificate.h"
#include "scheduler/certs/openssl_handles.h"

namespace moesaic {
namespace {

constexpr int kSerialBits = 127;  // positive, and nobody's twice
constexpr char kAuthorityName[] = "moesaic authority";

using SerialPtr = std::unique_ptr<BIGNUM, OpensslFree<&BN_free>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, OpensslFree<&X509_EXTENSION_free>>;

struct Extension {
  int nid;
  std::string value;  // as openssl.cnf writes it
};

struct Contents {
  std::string common_name;
  Validity validity;
  std::vector<Extension> extensions;
};

std::string Text(const BioPtr& bio) {
  char* data = nullptr;
  const long bytes = BIO_get_mem_data(bio.get(), &data);
  return std::string(data, bytes);
}

bool SetSerial(X509* certificate) {
  const SerialPtr serial(BN_new());
  return serial != nullptr && BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ANY, 0) == 1 &&
         BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate)) != nullptr;
}

bool SetName(X509_NAME* name, const std::string& common_name) {
  return X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC,
                                    reinterpret_cast<const unsigned char*>(common_name.data()),
                                    static_cast<int>(common_name.size()), -1, 0) == 1;
}

bool SetTimes(X509* certificate, const Validity& validity) {
  return ASN1_TIME_set(X509_getm_notBefore(certificate), absl::ToTimeT(validity.from)) != nullptr &&
         ASN1_TIME_set(X509_getm_notAfter(certificate), absl::ToTimeT(validity.until)) != nullptr;
}

bool AddExtensions(X509* certificate, X509* issuer, const std::vector<Extension>& extensions) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  for (const Extension& wanted : extensions) {
    const ExtensionPtr extension(
        X509V3_EXT_conf_nid(nullptr, &context, wanted.nid, wanted.value.c_str()));
    if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) return false;
  }
  return true;
}

// Signed by `issuer_key`; by its own key when `issuer` is null.
absl::StatusOr<KeyPair> Sign(const Contents& contents, X509* issuer, EVP_PKEY* issuer_key) {
  const KeyPtr key(EVP_EC_gen("P-256"));
  const X509Ptr certificate(X509_new());
  if (key == nullptr || certificate == nullptr) return OpensslError("making a key");
  X509* const signer = issuer == nullptr ? certificate.get() : issuer;
  if (X509_set_version(certificate.get(), X509_VERSION_3) != 1 || !SetSerial(certificate.get()) ||
      !SetTimes(certificate.get(), contents.validity) ||
      !SetName(X509_get_subject_name(certificate.get()), contents.common_name) ||
      X509_set_issuer_name(certificate.get(), X509_get_subject_name(signer)) != 1 ||
      X509_set_pubkey(certificate.get(), key.get()) != 1 ||
      !AddExtensions(certificate.get(), signer, contents.extensions) ||
      X509_sign(certificate.get(), issuer == nullptr ? key.get() : issuer_key, EVP_sha256()) == 0) {
    return OpensslError("making a certificate");
  }
  const BioPtr certificate_text(BIO_new(BIO_s_mem()));
  const BioPtr key_text(BIO_new(BIO_s_mem()));
  if (PEM_write_bio_X509(certificate_text.get(), certificate.get()) != 1 ||
      PEM_write_bio_PKCS8PrivateKey(key_text.get(), key.get(), nullptr, nullptr, 0, nullptr,
                                    nullptr) != 1) {
    return OpensslError("writing a certificate");
  }
  return KeyPair{Text(certificate_text), Text(key_text)};
}

}  // namespace

absl::StatusOr<Authority> Authority::Create(Validity validity) {
  const Contents contents = {kAuthorityName,
                             validity,
                             {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                              {NID_key_usage, "critical,keyCertSign,cRLSign"},
                              {NID_subject_key_identifier, "hash"}}};
  absl::StatusOr<KeyPair> pair = Sign(contents, nullptr, nullptr);
  if (!pair.ok()) return pair.status();
  return Authority(*std::move(pair));
}

absl::StatusOr<KeyPair> Authority::Issue(Role role, const std::string& node,
                                         Validity validity) const {
  if (!node.empty()) {
    if (const absl::Status named = CheckName("node", node); !named.ok()) return named;
  }
  const X509Ptr issuer = ParseX509(pair_.certificate);
  const KeyPtr issuer_key = ParseKey(pair_.key);
  if (issuer == nullptr || issuer_key == nullptr) return OpensslError("reading the authority");
  std::string names = "DNS:" + ServerName(role);
  if (!node.empty()) absl::StrAppend(&names, ",DNS:", NodeServerName(node));
  const bool serves = role == ROLE_COORDINATOR || role == ROLE_AGENT;
  const Contents contents = {RoleName(role),
                             validity,
                             {{NID_basic_constraints, "critical,CA:FALSE"},
                              {NID_key_usage, "critical,digitalSignature"},
                              {NID_ext_key_usage, serves ? "serverAuth,clientAuth" : "clientAuth"},
                              {NID_subject_alt_name, names},
                              {NID_subject_key_identifier, "hash"},
                              {NID_authority_key_identifier, "keyid"}}};
  return Sign(contents, issuer.get(), issuer_key.get());
}

}  // namespace moesaic
