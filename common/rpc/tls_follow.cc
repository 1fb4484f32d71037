#include "common/rpc/tls_follow.h"

#include <utility>

#include "common/base/log.h"
#include "common/base/metrics.h"
#include "common/base/status_macros.h"

namespace membank {

absl::StatusOr<std::unique_ptr<TlsFollower>> TlsFollower::Open(const TlsFiles& files) {
  const FileStates states = StatesOf(files);
  ASSIGN_OR_RETURN(TlsMaterial material, LoadTlsMaterial(files));
  return std::unique_ptr<TlsFollower>(new TlsFollower(files, states, std::move(material)));
}

TlsFollower::TlsFollower(const TlsFiles& files, const FileStates& states, TlsMaterial material)
    : files_(files), states_(states), material_(std::move(material)) {
  ShowExpiry();
}

TlsFollower::FileState TlsFollower::StateOf(const std::string& path) {
  struct stat info = {};
  if (path.empty() || ::stat(path.c_str(), &info) != 0) return {};
  return {info.st_dev, info.st_ino, info.st_size, info.st_mtim.tv_sec, info.st_mtim.tv_nsec};
}

bool TlsFollower::Look() {
  const FileStates states = StatesOf(files_);  // before reading: a file that changes while it is read is read again
  if (states == states_) return false;
  absl::StatusOr<TlsMaterial> material = LoadTlsMaterial(files_);
  if (!material.ok()) {
    static prometheus::Counter& failures = GetCounter("membank_tls_reload_failures_total", "Looks at changed TLS files that were not taken over");
    failures.Increment();
    const std::string reason(material.status().message());
    if (reason != last_failure_) LOG_ERROR("the TLS files changed but are not taken over, the last good ones stay: {}", reason);
    last_failure_ = reason;
    return false;
  }
  material_ = *std::move(material);
  states_ = states;
  last_failure_.clear();
  ShowExpiry();
  LOG_INFO("the TLS files changed and were taken over; the certificate expires at {}", absl::FormatTime(material_.expires, absl::UTCTimeZone()));
  return true;
}

void TlsFollower::ShowExpiry() const {
  if (material_.certificate.empty()) return;
  static prometheus::Gauge& expires = GetGauge("membank_tls_certificate_expires_seconds", "Unix time at which the certificate in use expires");
  expires.Set(static_cast<double>(absl::ToUnixSeconds(material_.expires)));
}

}  // namespace membank
