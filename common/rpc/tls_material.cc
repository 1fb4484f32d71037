#include "common/rpc/tls_material.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <memory>
#include <vector>

#include "absl/time/clock.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Bio Reader(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free); }

absl::StatusOr<std::vector<Certificate>> ParseCertificates(const std::string& path, const std::string& pem) {
  const Bio bio = Reader(pem);
  std::vector<Certificate> chain;
  while (X509* next = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr)) chain.emplace_back(next, X509_free);
  const unsigned long error = ERR_peek_last_error();
  ERR_clear_error();
  if (chain.empty()) return InvalidArgument("{}: no PEM certificate in it", path);
  if (ERR_GET_REASON(error) != PEM_R_NO_START_LINE) {
    return InvalidArgument("{}: what follows its first {} certificates is damaged: {}", path, chain.size(), ERR_reason_error_string(error));
  }
  return chain;
}

absl::StatusOr<absl::Time> ToTime(const ASN1_TIME* time) {
  std::tm parts = {};
  if (ASN1_TIME_to_tm(time, &parts) != 1) return InvalidArgument("its validity is no time");
  return absl::FromTM(parts, absl::UTCTimeZone());
}

// The end of the certificate's validity.
absl::StatusOr<absl::Time> CheckValidity(const X509* certificate, absl::Time now) {
  ASSIGN_OR_RETURN(const absl::Time from, ToTime(X509_get0_notBefore(certificate)));
  ASSIGN_OR_RETURN(const absl::Time until, ToTime(X509_get0_notAfter(certificate)));
  if (now < from) return InvalidArgument("the certificate is not valid before {}", absl::FormatTime(from, absl::UTCTimeZone()));
  if (now > until) return InvalidArgument("the certificate expired at {}", absl::FormatTime(until, absl::UTCTimeZone()));
  return until;
}

// The leaf first, each signed by the next.
absl::Status CheckChain(const std::vector<Certificate>& chain, const std::string& path) {
  for (size_t i = 0; i + 1 < chain.size(); ++i) {
    const bool issued = X509_check_issued(chain[i + 1].get(), chain[i].get()) == X509_V_OK;
    if (!issued || X509_verify(chain[i].get(), X509_get0_pubkey(chain[i + 1].get())) != 1) {
      ERR_clear_error();
      return InvalidArgument("{}: certificate {} is not signed by certificate {}; the order is leaf first, then its issuers", path, i + 1, i + 2);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Time> CheckPair(const TlsFiles& files, const TlsMaterial& material, absl::Time now) {
  ASSIGN_OR_RETURN(const std::vector<Certificate> chain, ParseCertificates(files.certificate, material.certificate));
  const Bio key_bio = Reader(material.key);
  const Key key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
  ERR_clear_error();
  if (!key) return InvalidArgument("{}: no PEM private key in it", files.key);
  if (X509_check_private_key(chain[0].get(), key.get()) != 1) {
    ERR_clear_error();
    return InvalidArgument("{}: this private key does not belong to the certificate in {}", files.key, files.certificate);
  }
  RETURN_IF_ERROR(CheckChain(chain, files.certificate));
  absl::StatusOr<absl::Time> until = CheckValidity(chain[0].get(), now);
  if (!until.ok()) return Annotate(until.status(), files.certificate);
  return until;
}

absl::Status CheckAuthorities(const TlsFiles& files, const TlsMaterial& material, absl::Time now) {
  ASSIGN_OR_RETURN(const std::vector<Certificate> authorities, ParseCertificates(files.authority, material.authority));
  absl::Status status;
  for (const Certificate& authority : authorities) {
    status = CheckValidity(authority.get(), now).status();
    if (status.ok()) return status;
  }
  return Annotate(status, files.authority);
}

}  // namespace

absl::StatusOr<TlsMaterial> LoadTlsMaterial(const TlsFiles& files, absl::Time now) {
  if (files.certificate.empty() != files.key.empty()) {
    return InvalidArgument("TLS needs certificate and key together, but the certificate is '{}' and the key is '{}'", files.certificate,
                           files.key);
  }
  TlsMaterial material;
  if (!files.certificate.empty()) {
    ASSIGN_OR_RETURN(material.certificate, ReadFile(files.certificate));
    ASSIGN_OR_RETURN(material.key, ReadFile(files.key));
    ASSIGN_OR_RETURN(material.expires, CheckPair(files, material, now));
  }
  if (!files.authority.empty()) {
    ASSIGN_OR_RETURN(material.authority, ReadFile(files.authority));
    RETURN_IF_ERROR(CheckAuthorities(files, material, now));
  }
  return material;
}

}  // namespace membank
