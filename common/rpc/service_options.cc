#include "common/rpc/service_options.h"

#include "CLI/CLI.hpp"
#include "common/base/status_macros.h"

namespace membank {

void BindOptions(CLI::App& app, ServiceOptions* o) {
  app.add_option("--listen", o->listen, "Address of the gRPC services, host:port (port 0: any free one) or unix:/path");
  app.add_option("--admin-listen", o->admin_listen, "Address of /livez, /readyz and /metrics over HTTP, host:port; empty: none");
  app.add_option("--memory-quota-bytes", o->memory_quota_bytes, "Bytes of transport buffers of all calls together; above, reading pauses")
      ->check(CLI::Range(uint64_t{16} << 20, uint64_t{1} << 46));
  app.add_option("--drain-timeout-ms", o->drain_timeout_ms, "Milliseconds that running calls get to end after SIGTERM or SIGINT")
      ->check(CLI::Range(uint64_t{0}, uint64_t{3600000}));
  app.add_option("--tls-certificate", o->tls.certificate, "PEM certificate chain, shown to clients and to the servers this one calls; empty: no TLS");
  app.add_option("--tls-key", o->tls.key, "PEM private key of the certificate");
  app.add_option("--tls-authority", o->tls.authority, "PEM authorities that the other side's certificate must come from; clients must then show one");
  app.add_option("--ready-file", o->ready_file, "File to write the bound addresses and the process id into, as JSON, once calls are served");
  app.add_option("--log-level", o->log_level, "trace, debug, info, warn, error or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}));
}

absl::Status Validate(const ServiceOptions& options) {
  if (options.listen.empty()) return InvalidArgument("--listen is empty; allowed: host:port or unix:/path");
  const TlsFiles& tls = options.tls;
  if (tls.certificate.empty() != tls.key.empty()) {
    return InvalidArgument("--tls-certificate is '{}' and --tls-key is '{}'; give both or none", tls.certificate, tls.key);
  }
  if (!tls.authority.empty() && tls.certificate.empty()) {
    return InvalidArgument("--tls-authority {} without --tls-certificate and --tls-key; without TLS no client shows a certificate", tls.authority);
  }
  return absl::OkStatus();
}

}  // namespace membank
