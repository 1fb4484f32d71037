// TLS files that are followed: looked at (not read) when asked, read when they changed, and taken over only when everything in them holds together
// (tls_material.h). Otherwise the last good ones stay, the log says why, and membank_tls_reload_failures_total counts.
// membank_tls_certificate_expires_seconds is the end of the process's own certificate in use, as Unix time. One thread at a time.
#pragma once

#include <sys/stat.h>

#include <array>
#include <memory>
#include <string>
#include <tuple>

#include "absl/status/statusor.h"
#include "common/rpc/tls_material.h"

namespace membank {

class TlsFollower {
 public:
  // Errors: LoadTlsMaterial's, now.
  static absl::StatusOr<std::unique_ptr<TlsFollower>> Open(const TlsFiles& files);

  // Takes changed files over; true when they were.
  bool Look();
  const TlsMaterial& material() const { return material_; }

 private:
  // What changes when a file is written or replaced, also behind a symbolic link.
  using FileState = std::tuple<dev_t, ino_t, off_t, time_t, long>;
  using FileStates = std::array<FileState, 3>;

  TlsFollower(const TlsFiles& files, const FileStates& states, TlsMaterial material);
  static FileState StateOf(const std::string& path);
  static FileStates StatesOf(const TlsFiles& files) { return {StateOf(files.certificate), StateOf(files.key), StateOf(files.authority)}; }
  void ShowExpiry() const;

  const TlsFiles files_;
  FileStates states_;  // of the files that material_ was read from, taken before they were read
  TlsMaterial material_;
  std::string last_failure_;
};

}  // namespace membank
