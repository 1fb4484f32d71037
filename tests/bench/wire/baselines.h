// The baselines: blocks over raw TCP on loopback, and the naive way to build the same service. Private to wire_bench.
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "common/rpc/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/impl/client_unary_call.h"
#include "grpcpp/impl/rpc_service_method.h"
#include "grpcpp/support/method_handler.h"
#include "membank/v1/memory.grpc.pb.h"

namespace membank {

// --- Raw TCP ----------------------------------------------------------------------------------------------------------------------------

inline void SendAll(int fd, const void* data, size_t size) {
  for (const char* p = static_cast<const char*>(data); size > 0;) {
    const ssize_t n = send(fd, p, size, MSG_NOSIGNAL);
    if (n <= 0) exit(1);
    p += n;
    size -= static_cast<size_t>(n);
  }
}

inline bool ReceiveAll(int fd, void* data, size_t size) {
  for (char* p = static_cast<char*>(data); size > 0;) {
    const ssize_t n = recv(fd, p, size, 0);
    if (n <= 0) return false;
    p += n;
    size -= static_cast<size_t>(n);
  }
  return true;
}

// Two ends of a TCP connection over loopback.
struct TcpPair {
  TcpPair() {
    const int listener = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t length = sizeof(address);
    bind(listener, reinterpret_cast<sockaddr*>(&address), length);
    listen(listener, 1);
    getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
    client = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(client, reinterpret_cast<sockaddr*>(&address), length) != 0) exit(1);
    server = accept(listener, nullptr, nullptr);
    close(listener);
    const int on = 1;
    for (int fd : {client, server}) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  }
  ~TcpPair() {
    close(client);
    close(server);
  }
  int client, server;
};

// Answers a block's number with its bytes (fetch), or takes its bytes and answers its number (push). What is pushed is kept for a while, as
// gradients are until their step is applied: eight buffers take turns.
class TcpBlocks {
 public:
  TcpBlocks(const std::vector<std::vector<uint8_t>>& blocks, bool push) : blocks_(blocks) {
    thread_ = std::thread([this, push] {
      uint32_t index;
      std::vector<std::vector<uint8_t>> received(8, std::vector<uint8_t>(blocks_[0].size()));
      for (size_t turn = 0; ReceiveAll(pair_.server, &index, 4); ++turn) {
        if (push) {
          std::vector<uint8_t>& to = received[turn % received.size()];
          if (!ReceiveAll(pair_.server, to.data(), to.size())) return;
          SendAll(pair_.server, &index, 4);
        } else {
          SendAll(pair_.server, blocks_[index].data(), blocks_[index].size());
        }
      }
    });
  }
  ~TcpBlocks() {
    shutdown(pair_.client, SHUT_RDWR);
    thread_.join();
  }
  void Fetch(uint32_t index, std::vector<uint8_t>* destination) {
    SendAll(pair_.client, &index, 4);
    if (!ReceiveAll(pair_.client, destination->data(), destination->size())) exit(1);
  }
  void Push(uint32_t index) {
    SendAll(pair_.client, &index, 4);
    SendAll(pair_.client, blocks_[index].data(), blocks_[index].size());
    if (!ReceiveAll(pair_.client, &index, 4)) exit(1);
  }

 private:
  const std::vector<std::vector<uint8_t>>& blocks_;
  TcpPair pair_;
  std::thread thread_;
};

// --- The naive way ----------------------------------------------------------------------------------------------------------------------

inline constexpr char kNaiveMethod[] = "/membank.bench.Naive/Get";

// Answers cluster i with block i.
class NaiveService final : public grpc::Service {
 public:
  explicit NaiveService(const std::vector<std::vector<uint8_t>>& blocks) {
    for (size_t i = 0; i < blocks.size(); ++i) store_[i] = std::string(blocks[i].begin(), blocks[i].end());
    AddMethod(new grpc::internal::RpcServiceMethod(
        kNaiveMethod, grpc::internal::RpcMethod::NORMAL_RPC,
        new grpc::internal::RpcMethodHandler<NaiveService, v1::BlockId, v1::FetchChunk, google::protobuf::MessageLite, google::protobuf::MessageLite>(
            [](NaiveService* service, grpc::ServerContext*, const v1::BlockId* request, v1::FetchChunk* reply) {
              const std::string value = service->store_.at(request->cluster());  // DB::Get(key, &value)
              reply->set_data(value);
              return grpc::Status::OK;
            },
            this)));
  }

 private:
  std::map<size_t, std::string> store_;
};

class NaiveClient {
 public:
  explicit NaiveClient(const std::string& address) : channel_((*MakeChannels(address, {}))[0]) {}
  void Fetch(uint32_t index, std::vector<uint8_t>* destination) {
    grpc::ClientContext context;
    v1::BlockId request;
    request.set_cluster(index);
    v1::FetchChunk reply;
    const grpc::internal::RpcMethod method(kNaiveMethod, grpc::internal::RpcMethod::NORMAL_RPC);
    const grpc::Status status = grpc::internal::BlockingUnaryCall<v1::BlockId, v1::FetchChunk, google::protobuf::MessageLite,
                                                                  google::protobuf::MessageLite>(channel_.get(), method, &context, request, &reply);
    if (!status.ok()) exit(1);
    std::memcpy(destination->data(), reply.data().data(), destination->size());  // tensor.clone()
  }

 private:
  std::shared_ptr<grpc::Channel> channel_;
};

}  // namespace membank
