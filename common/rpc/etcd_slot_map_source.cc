#include "common/rpc/etcd_slot_map_source.h"

#include <atomic>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "common/base/status_macros.h"
#include "common/rpc/channel.h"
#include "common/rpc/status.h"
#include "grpcpp/client_context.h"
#include "third_party/etcd/etcd.grpc.pb.h"

namespace membank {
namespace {

namespace etcd = ::etcdserverpb;

constexpr absl::Duration kMemberTimeout = absl::Seconds(3);   // of one call of one member
constexpr absl::Duration kLongestWatch = absl::Seconds(10);   // then the map is read in any case
constexpr absl::Duration kPause = absl::Seconds(1);           // before a member is asked again after one was away

bool IsAway(const absl::Status& status) { return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status); }

class EtcdSlotMapSource final : public SlotMapSource {
 public:
  explicit EtcdSlotMapSource(const EtcdSlotMapOptions& options) : options_(options) {}

  absl::Status Connect() {
    ChannelOptions channel;
    channel.tls = options_.tls;
    for (const std::string& address : options_.members) {
      ASSIGN_OR_RETURN(const auto channels, MakeChannels(address, channel));
      members_.push_back({address, etcd::KV::NewStub(channels[0]), etcd::Watch::NewStub(channels[0])});
    }
    return absl::OkStatus();
  }

  absl::StatusOr<SlotMap> Load() override {
    ASSIGN_OR_RETURN(const Stored stored, Read());
    return stored.map;
  }

  absl::Status Create(const SlotMap& map) override {
    etcd::Compare missing;
    missing.set_target(etcd::Compare::VERSION);
    missing.set_version(0);
    ASSIGN_OR_RETURN(const bool created, PutIf(missing, map));
    return created ? absl::OkStatus() : AlreadyExists("there is a slot map at {} already; `membank bank slots` changes it", options_.location);
  }

  absl::Status Replace(const SlotMap& next) override {
    ASSIGN_OR_RETURN(const Stored stored, Read());
    if (stored.map.epoch() + 1 != next.epoch()) return SlotMapConflict(options_.location, stored.map.epoch(), next.epoch());
    etcd::Compare unchanged;
    unchanged.set_target(etcd::Compare::MOD);
    unchanged.set_mod_revision(stored.revision);
    ASSIGN_OR_RETURN(const bool replaced, PutIf(unchanged, next));
    if (replaced) return absl::OkStatus();
    ASSIGN_OR_RETURN(const Stored now, Read());
    return SlotMapConflict(options_.location, now.map.epoch(), next.epoch());
  }

  void AwaitChange() override {
    grpc::ClientContext context;
    {
      absl::MutexLock lock(&mu_);
      if (stop_.HasBeenNotified()) return;
      watching_ = &context;
    }
    const bool changed_or_late = Watch(&context);
    {
      absl::MutexLock lock(&mu_);
      watching_ = nullptr;
    }
    if (!changed_or_late) stop_.WaitForNotificationWithTimeout(kPause);
  }

  void Stop() override {
    absl::MutexLock lock(&mu_);
    stop_.Notify();
    if (watching_ != nullptr) watching_->TryCancel();
  }

 private:
  struct Member {
    std::string address;
    std::unique_ptr<etcd::KV::Stub> kv;
    std::unique_ptr<etcd::Watch::Stub> watch;
  };
  struct Stored {
    SlotMap map;
    int64_t revision;
  };

  // The first answer of a member. `unsure`, when given: whether a member that did not answer may have done it all the same.
  template <typename Request, typename Reply>
  absl::Status Ask(grpc::Status (etcd::KV::Stub::*method)(grpc::ClientContext*, const Request&, Reply*), const Request& request, Reply* reply,
                   bool* unsure = nullptr) {
    std::string failures;
    const size_t first = first_.load();
    for (size_t i = 0; i < members_.size(); ++i) {
      const size_t index = (first + i) % members_.size();
      grpc::ClientContext context;
      context.set_deadline(absl::ToChronoTime(absl::Now() + kMemberTimeout));
      const absl::Status status = FromGrpc((members_[index].kv.get()->*method)(&context, request, reply), members_[index].address);
      if (status.ok()) first_.store(index);
      if (!IsAway(status)) return status.ok() ? status : Annotate(status, fmt::format("slot map {}", options_.location));
      if (unsure != nullptr) *unsure = true;
      failures += fmt::format("; {}", std::string(status.message()));
    }
    return Unavailable("slot map {} cannot be reached: no member of etcd answers{}", options_.location, failures);
  }

  absl::StatusOr<Stored> Read() {
    etcd::RangeRequest request;
    request.set_key(options_.key);
    etcd::RangeResponse reply;
    RETURN_IF_ERROR(Ask(&etcd::KV::Stub::Range, request, &reply));
    if (reply.kvs().empty()) {
      return NotFound("there is no slot map at {}; `membank bank slots init --output {}` makes one", options_.location, options_.location);
    }
    absl::StatusOr<SlotMap> map = SlotMap::FromJson(reply.kvs(0).value());
    if (!map.ok()) return Annotate(map.status(), options_.location);
    const int64_t revision = reply.header().revision();
    for (int64_t seen = seen_.load(); seen < revision && !seen_.compare_exchange_weak(seen, revision);) {
    }
    return Stored{*std::move(map), reply.kvs(0).mod_revision()};
  }

  // Writes the map when the condition holds; false when it does not. A repetition at another member is safe: the condition holds once.
  absl::StatusOr<bool> PutIf(etcd::Compare condition, const SlotMap& map) {
    condition.set_key(options_.key);
    etcd::TxnRequest request;
    *request.add_compare() = condition;
    etcd::PutRequest* put = request.add_success()->mutable_request_put();
    put->set_key(options_.key);
    put->set_value(map.ToJson());
    etcd::TxnResponse reply;
    bool unsure = false;
    RETURN_IF_ERROR(Ask(&etcd::KV::Stub::Txn, request, &reply, &unsure));
    if (reply.succeeded() || !unsure) return reply.succeeded();
    ASSIGN_OR_RETURN(const Stored now, Read());  // a member that did not answer may have done it
    return now.map.ToJson() == map.ToJson();
  }

  // True: the key changed, or nothing happened for long; false: the member is away, another one is asked next.
  bool Watch(grpc::ClientContext* context) {
    context->set_deadline(absl::ToChronoTime(absl::Now() + kLongestWatch));
    const auto stream = members_[first_.load()].watch->Watch(context);
    etcd::WatchRequest request;
    request.mutable_create_request()->set_key(options_.key);
    request.mutable_create_request()->set_start_revision(seen_.load() + 1);
    stream->Write(request);
    bool changed = false;
    for (etcd::WatchResponse response; !changed && stream->Read(&response);) changed = !response.created() || response.canceled();
    context->TryCancel();
    const grpc::Status status = stream->Finish();
    if (changed || status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) return true;
    first_.store((first_.load() + 1) % members_.size());
    return false;
  }

  const EtcdSlotMapOptions options_;
  std::vector<Member> members_;
  std::atomic<size_t> first_{0};     // the member to ask first
  std::atomic<int64_t> seen_{0};     // newest revision of the store at which the key was read; the key's own may be compacted away

  absl::Mutex mu_;
  absl::Notification stop_;
  grpc::ClientContext* watching_ ABSL_GUARDED_BY(mu_) = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<SlotMapSource>> OpenEtcdSlotMap(const EtcdSlotMapOptions& options) {
  auto source = std::make_unique<EtcdSlotMapSource>(options);
  RETURN_IF_ERROR(source->Connect());
  return source;
}

}  // namespace membank
