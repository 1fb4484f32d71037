// A certificate authority for tests: issues real certificates with subject alternative names into files.
#pragma once

#include <openssl/ec.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "common/rpc/tls.h"

namespace membank::testing_support {

class CertificateAuthority {
 public:
  explicit CertificateAuthority(std::string directory, const std::string& name = "authority")
      : directory_(std::move(directory)), name_(name), key_(EVP_EC_gen("P-256")), certificate_(X509_new()) {
    Fill(certificate_, name, 3600);
    X509_set_pubkey(certificate_, key_);
    X509_set_issuer_name(certificate_, X509_get_subject_name(certificate_));
    Extend(certificate_, NID_basic_constraints, "critical,CA:TRUE");
    X509_sign(certificate_, key_, EVP_sha256());
    WriteCertificate(certificate_, file());
  }
  ~CertificateAuthority() {
    X509_free(certificate_);
    EVP_PKEY_free(key_);
  }
  CertificateAuthority(const CertificateAuthority&) = delete;

  std::string file() const { return directory_ + "/" + name_ + ".crt"; }

  // `names` as OpenSSL writes them: {"DNS:localhost", "URI:spiffe://x/alice"}. Files STEM.crt and STEM.key; valid for `seconds` (negative:
  // expired).
  TlsFiles Issue(const std::string& stem, const std::vector<std::string>& names, long seconds = 3600) {
    EVP_PKEY* key = EVP_EC_gen("P-256");
    X509* certificate = X509_new();
    Fill(certificate, stem, seconds);
    X509_set_pubkey(certificate, key);
    X509_set_issuer_name(certificate, X509_get_subject_name(certificate_));
    std::string list;
    for (const std::string& name : names) list += (list.empty() ? "" : ",") + name;
    if (!list.empty()) Extend(certificate, NID_subject_alt_name, list);
    X509_sign(certificate, key_, EVP_sha256());
    const TlsFiles files{directory_ + "/" + stem + ".crt", directory_ + "/" + stem + ".key", file()};
    WriteCertificate(certificate, files.certificate);
    std::FILE* out = std::fopen(files.key.c_str(), "w");
    PEM_write_PrivateKey(out, key, nullptr, nullptr, 0, nullptr, nullptr);
    std::fclose(out);
    X509_free(certificate);
    EVP_PKEY_free(key);
    return files;
  }

 private:
  static void Fill(X509* certificate, const std::string& name, long seconds) {
    static long serial = 0;
    ASN1_INTEGER_set(X509_get_serialNumber(certificate), ++serial);
    X509_set_version(certificate, 2);
    X509_gmtime_adj(X509_getm_notBefore(certificate), -7200);
    X509_gmtime_adj(X509_getm_notAfter(certificate), seconds);
    X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  }
  static void Extend(X509* certificate, int nid, const std::string& value) {
    X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, nullptr, nid, value.c_str());
    X509_add_ext(certificate, extension, -1);
    X509_EXTENSION_free(extension);
  }
  static void WriteCertificate(X509* certificate, const std::string& path) {
    std::FILE* out = std::fopen(path.c_str(), "w");
    PEM_write_X509(out, certificate);
    std::fclose(out);
  }

  const std::string directory_, name_;
  EVP_PKEY* const key_;
  X509* const certificate_;
};

}  // namespace membank::testing_support
