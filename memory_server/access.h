// Who may do what on this server, decided from the caller's certificate (promise P7): the bank's access table, durable in <data>/access.json,
// and the identities that may train and administer. Knows no gRPC; caller.h reads the certificate.
//
// Without a list of administrators everybody administers what nobody owns; what somebody owns is left to its owner. Anonymous callers (no TLS,
// or no client certificate) own nothing. Errors: PERMISSION_DENIED names block or call, and the caller. Any thread.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "common/bank/access_table.h"

namespace membank {

// The subject alternative names of a verified client certificate; none = anonymous.
struct Caller {
  std::vector<std::string> names;
};
std::string ToString(const Caller& caller);

// Who may make a call at all, before any block is looked at.
enum class CallRole { kEverybody, kTrainer, kAdministrator };
// Of a call of the MemoryService by its name in the .proto (tests/lint: every rpc has a row); of unknown names kAdministrator.
CallRole RoleOf(const std::string& rpc);

struct AccessOptions {
  std::set<std::string> administrators;  // empty: everybody
  std::set<std::string> trainers;        // empty: everybody; administrators count
};

class AccessControl {
 public:
  // DATA_LOSS: access.json is damaged; nothing is served then.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Open(const std::string& data_directory, uint32_t fan_out, uint32_t depth,
                                                             const AccessOptions& options);

  // The table in force; a snapshot.
  std::shared_ptr<const AccessTable> table() const ABSL_LOCKS_EXCLUDED(mu_);

  absl::Status CheckCall(const Caller& caller, const std::string& rpc) const;
  // Reading is refused to strangers. Whether the block is blocked is another question: see IsBlocked.
  absl::Status CheckFetch(const AccessTable& table, const Caller& caller, BlockId id) const;
  bool IsBlocked(const AccessTable& table, BlockId id) const { return !table.rules.empty() && table.IsBlocked(id, fan_out_); }
  // Gradients are taken from the owner only, and not for blocked blocks (FAILED_PRECONDITION).
  absl::Status CheckPush(const AccessTable& table, const Caller& caller, BlockId id) const;
  // The caller may change everything about the prefix; the prefix is blocked (else FAILED_PRECONDITION).
  absl::Status CheckPurge(const Caller& caller, TreePrefix prefix) const;

  // Takes `next` over, durably, when the caller may make each change in it. The same table again is OK; ABORTED when next.epoch is not above
  // the epoch in force.
  absl::Status Replace(const Caller& caller, const AccessTable& next) ABSL_LOCKS_EXCLUDED(change_mu_, mu_);
  // Takes the table of the server that this one copies blocks from over, durably, when it is newer.
  absl::Status Follow(const AccessTable& next) ABSL_LOCKS_EXCLUDED(change_mu_, mu_);

 private:
  AccessControl(const std::string& path, uint32_t fan_out, uint32_t depth, const AccessOptions& options)
      : path_(path), fan_out_(fan_out), depth_(depth), options_(options) {}
  absl::Status CheckControls(const AccessTable& table, const Caller& caller, TreePrefix prefix) const;

  const std::string path_;
  const uint32_t fan_out_, depth_;
  const AccessOptions options_;

  absl::Mutex change_mu_ ABSL_ACQUIRED_BEFORE(mu_);  // one change at a time; held while the file is written
  mutable absl::Mutex mu_;
  std::shared_ptr<const AccessTable> table_ ABSL_GUARDED_BY(mu_) = std::make_shared<AccessTable>();
};

}  // namespace membank
