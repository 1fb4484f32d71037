#include "model_worker/train/collectives.h"

// The wheel's header wants this, and headers of Gloo: see gloo/context.h.
#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdlib>

#include "common/base/status_macros.h"

namespace membank {
namespace {

using c10d::ProcessGroupGloo;

bool IsLoopback(const std::string& address) { return address == "localhost" || address == "::1" || address.rfind("127.", 0) == 0; }

// As PyTorch's Python has it: GLOO_SOCKET_IFNAME, else this machine's name; ranks that meet on the loopback stay there.
auto MakeDevice(const RendezvousOptions& options) {
  if (const char* interface = std::getenv("GLOO_SOCKET_IFNAME")) return ProcessGroupGloo::createDeviceForInterface(interface);
  return IsLoopback(options.address) ? ProcessGroupGloo::createDeviceForHostname("127.0.0.1") : ProcessGroupGloo::createDefaultDevice();
}

}  // namespace

struct Collectives::Impl {
  c10::intrusive_ptr<ProcessGroupGloo> group;
  std::vector<c10::intrusive_ptr<c10d::Work>> started;
  std::string refused;   // by Gloo, at once
};

Collectives::Collectives(Rendezvous* rendezvous) : rendezvous_(rendezvous), impl_(std::make_unique<Impl>()) {}
Collectives::~Collectives() = default;

absl::StatusOr<std::unique_ptr<Collectives>> Collectives::Create(Rendezvous* rendezvous, const std::string& name) {
  std::unique_ptr<Collectives> collectives(new Collectives(rendezvous));
  try {
    auto options = ProcessGroupGloo::Options::create(rendezvous->options().timeout);
    options->devices.push_back(MakeDevice(rendezvous->options()));
    collectives->impl_->group =
        c10::make_intrusive<ProcessGroupGloo>(c10::make_intrusive<c10d::PrefixStore>(name, rendezvous->store()), static_cast<int>(collectives->rank()),
                                              static_cast<int>(collectives->world_size()), options);
  } catch (const std::exception& e) {
    return collectives->Broken("connecting the ranks", e.what());
  }
  return collectives;
}

template <typename Call>
void Collectives::Start(Call call) {
  if (!impl_->refused.empty()) return;
  try {
    impl_->started.push_back(call(*impl_->group));
  } catch (const std::exception& e) {
    impl_->refused = e.what();
  }
}

void Collectives::StartReduce(torch::Tensor tensor, uint32_t root) {
  Start([&](ProcessGroupGloo& group) {
    c10d::ReduceOptions options;
    options.rootRank = root;
    std::vector<torch::Tensor> tensors{tensor};
    return group.reduce(tensors, options);
  });
}

void Collectives::StartBroadcast(torch::Tensor tensor, uint32_t root) {
  Start([&](ProcessGroupGloo& group) {
    c10d::BroadcastOptions options;
    options.rootRank = root;
    std::vector<torch::Tensor> tensors{tensor};
    return group.broadcast(tensors, options);
  });
}

void Collectives::StartAllReduce(torch::Tensor tensor) {
  Start([&](ProcessGroupGloo& group) {
    std::vector<torch::Tensor> tensors{tensor};
    return group.allreduce(tensors);
  });
}

absl::Status Collectives::Wait(const std::string& what) {
  std::string why = impl_->refused;
  for (const auto& work : impl_->started) {
    try {
      work->wait();
    } catch (const std::exception& e) {
      if (why.empty()) why = e.what();
    }
  }
  impl_->started.clear();
  return why.empty() ? absl::OkStatus() : Broken(what, why);
}

absl::Status Collectives::Broken(const std::string& what, const std::string& why) {
  if (impl_->refused.empty()) impl_->refused = why;
  const std::string silent = rendezvous_->LeaveAndNameSilent(), reason = why.substr(0, why.find('\n'));
  const RendezvousOptions& o = rendezvous_->options();
  if (silent.empty())
    return DeadlineExceeded("rank {} of {} gave up {}, though all ranks are alive: {}. One of them failed or needs longer than --rank-timeout ({} s): "
                            "see their logs", o.rank, o.world_size, what, reason, o.timeout.count() / 1000);
  return Unavailable("rank {} of {} gave up {}: no sign of life from {} ({}). Start all ranks again: the run goes on from its newest checkpoint", o.rank,
                     o.world_size, what, silent, reason);
}

}  // namespace membank
