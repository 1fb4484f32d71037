// The names of TLS files, for options and headers that know no gRPC; read and checked in tls.h.
#pragma once

#include <string>

namespace membank {

struct TlsFiles {
  std::string certificate;  // PEM chain; empty = no TLS (server) or no client certificate (client)
  std::string key;          // PEM private key of the certificate
  std::string authority;    // PEM of the authorities that the other side's certificate must come from

  bool any() const { return !certificate.empty() || !key.empty() || !authority.empty(); }
};

}  // namespace membank
