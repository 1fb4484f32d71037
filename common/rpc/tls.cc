#include "common/rpc/tls.h"

#include <openssl/pem.h>
#include <openssl/x509.h>

#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Bio Reader(const std::string& pem) { return Bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), BIO_free); }

absl::Status CheckPair(const TlsFiles& files, const std::string& certificate_pem, const std::string& key_pem) {
  Bio certificate_bio = Reader(certificate_pem), key_bio = Reader(key_pem);
  Certificate certificate(PEM_read_bio_X509(certificate_bio.get(), nullptr, nullptr, nullptr), X509_free);
  if (!certificate) return InvalidArgument("{}: no PEM certificate in it", files.certificate);
  Key key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, nullptr, nullptr), EVP_PKEY_free);
  if (!key) return InvalidArgument("{}: no PEM private key in it", files.key);
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return InvalidArgument("{}: this private key does not belong to the certificate in {}", files.key, files.certificate);
  }
  return absl::OkStatus();
}

struct Pems {
  std::string certificate, key, authority;
};

absl::StatusOr<Pems> Load(const TlsFiles& files) {
  if (files.certificate.empty() != files.key.empty()) {
    return InvalidArgument("TLS needs certificate and key together, but the certificate is '{}' and the key is '{}'", files.certificate,
                           files.key);
  }
  Pems pems;
  if (!files.certificate.empty()) {
    ASSIGN_OR_RETURN(pems.certificate, ReadFile(files.certificate));
    ASSIGN_OR_RETURN(pems.key, ReadFile(files.key));
    RETURN_IF_ERROR(CheckPair(files, pems.certificate, pems.key));
  }
  if (!files.authority.empty()) {
    ASSIGN_OR_RETURN(pems.authority, ReadFile(files.authority));
    Bio bio = Reader(pems.authority);
    if (!Certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr), X509_free)) {
      return InvalidArgument("{}: no PEM certificate in it", files.authority);
    }
  }
  return pems;
}

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ServerCredentials>> ServerCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureServerCredentials();
  if (files.certificate.empty()) return InvalidArgument("a TLS server needs a certificate and a key, not only the authority {}", files.authority);
  ASSIGN_OR_RETURN(Pems pems, Load(files));
  grpc::SslServerCredentialsOptions options(pems.authority.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                                                   : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = pems.authority;
  options.pem_key_cert_pairs.push_back({pems.key, pems.certificate});
  return grpc::SslServerCredentials(options);
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> ClientCredentials(const TlsFiles& files) {
  if (!files.any()) return grpc::InsecureChannelCredentials();
  ASSIGN_OR_RETURN(Pems pems, Load(files));
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = pems.authority;
  options.pem_cert_chain = pems.certificate;
  options.pem_private_key = pems.key;
  return grpc::SslCredentials(options);
}

}  // namespace membank
