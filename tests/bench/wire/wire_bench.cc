// Fetch and push through the memory server against raw TCP on loopback with the same bytes, and against the naive way (a string from a map,
// protobuf bytes, a unary call, a copy out), all in one process, in windows that take turns so that a noisy machine disturbs all alike.
// A figure is the 90th percentile of its windows; what counts is the ratio. Usage: wire_bench [--seconds N per row] [--json FILE]
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>

#include "common/base/malloc_tuning.h"
#include "common/rpc/channel.h"
#include "common/rpc/wire.h"
#include "grpcpp/client_context.h"
#include "grpcpp/impl/client_unary_call.h"
#include "grpcpp/impl/rpc_service_method.h"
#include "grpcpp/support/method_handler.h"
#include "nlohmann/json.hpp"
#include "tests/testing/memory_cluster.h"

namespace membank {
namespace {

using Clock = std::chrono::steady_clock;

void Check(const absl::Status& status) {
  if (status.ok()) return;
  fprintf(stderr, "wire_bench: %s\n", status.ToString().c_str());
  exit(1);
}

// --- Raw TCP ----------------------------------------------------------------------------------------------------------------------------

void SendAll(int fd, const void* data, size_t size) {
  for (const char* p = static_cast<const char*>(data); size > 0;) {
    const ssize_t n = send(fd, p, size, MSG_NOSIGNAL);
    if (n <= 0) exit(1);
    p += n;
    size -= static_cast<size_t>(n);
  }
}

bool ReceiveAll(int fd, void* data, size_t size) {
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

// Answers a block's number with its bytes (fetch), or takes its bytes and answers its number (push).
class TcpBlocks {
 public:
  TcpBlocks(const std::vector<std::vector<uint8_t>>& blocks, bool push) : blocks_(blocks) {
    thread_ = std::thread([this, push] {
      uint32_t index;
      std::vector<uint8_t> received(blocks_[0].size());
      while (ReceiveAll(pair_.server, &index, 4)) {
        if (push) {
          if (!ReceiveAll(pair_.server, received.data(), received.size())) return;
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

constexpr char kNaiveMethod[] = "/membank.bench.Naive/Get";

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

class NaiveBlocks {
 public:
  explicit NaiveBlocks(const std::vector<std::vector<uint8_t>>& blocks) : service_(blocks) {
    server_ = *RpcServer::Start({}, {&service_});
    channel_ = (*MakeChannels(server_->address(), {}))[0];
  }
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
  NaiveService service_;
  std::unique_ptr<RpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
};

// --- Measuring --------------------------------------------------------------------------------------------------------------------------

struct Variant {
  std::string name;
  double target;                  // ratio to the first variant; 0: shown only
  std::function<double()> once;   // moves bytes_per_call bytes, returns the seconds that count
};

struct Row {
  std::string figure, baseline;
  double value, base, target;
  double cpu_seconds_per_gb;      // both ends and the kernel: what a busy machine does not change
};

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](timeval t) { return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec); };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Windows of 100 ms take turns; GB/s of each variant's 90th percentile.
std::vector<Row> Measure(const std::string& title, double bytes_per_call, const std::vector<Variant>& variants, double seconds) {
  std::vector<std::vector<double>> windows(variants.size());
  std::vector<double> cpu(variants.size()), moved(variants.size());
  for (const Variant& variant : variants) variant.once();  // warm
  const int rounds = std::max(5, static_cast<int>(seconds / 0.1 / static_cast<double>(variants.size())));
  for (int round = 0; round < rounds; ++round) {
    for (size_t v = 0; v < variants.size(); ++v) {
      double spent = 0, bytes = 0;
      const double cpu_start = CpuSeconds();
      while (spent < 0.1) {
        spent += variants[v].once();
        bytes += bytes_per_call;
      }
      windows[v].push_back(bytes / spent / 1e9);
      cpu[v] += CpuSeconds() - cpu_start;
      moved[v] += bytes / 1e9;
    }
  }
  std::vector<Row> rows;
  for (size_t v = 0; v < variants.size(); ++v) {
    std::sort(windows[v].begin(), windows[v].end());
    const double value = windows[v][windows[v].size() * 9 / 10];
    rows.push_back({title + ", " + variants[v].name, variants[0].name, value, rows.empty() ? value : rows[0].value, variants[v].target, cpu[v] / moved[v]});
    printf("%-67s %6.2f GB/s %6.2f cpu-s/GB  %5.2f of %s%s\n", rows.back().figure.c_str(), value, rows.back().cpu_seconds_per_gb, value / rows.back().base, variants[0].name.c_str(),
           variants[v].target == 0 ? "" : fmt::format("  target {:.2f}: {}", variants[v].target,
                                                      value / rows.back().base >= variants[v].target ? "held" : "NOT held").c_str());
    fflush(stdout);
  }
  return rows;
}

double Timed(const std::function<void()>& work) {
  const auto start = Clock::now();
  work();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// One level of `clusters` blocks of 3 * layers * 512 * width elements.
BankSpec Spec(uint32_t clusters, uint32_t width, DType dtype) {
  BankSpec spec = testing_support::TinySpec();
  spec.fan_out = clusters;
  spec.widths = {width};
  spec.layers = 35;
  spec.hidden = 512;
  spec.dtype = dtype;
  return spec;
}

std::vector<Row> BenchBlocks(const BankSpec& spec, double fetch_target, double seconds) {
  const size_t bytes = spec.BlockBytes(1);
  const uint32_t count = spec.fan_out;
  const std::string size = fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
  testing_support::MemoryCluster cluster(spec, 1);
  const auto client = cluster.Connect();

  // Train every block once, so that what is fetched are the shard's own payloads.
  RunSettings run;
  run.run_id = "bench";
  run.optimizer = OptimizerKind::kSgd;
  Check(client->BeginRun(run));
  std::vector<uint16_t> gradient(spec.BlockElements(1), FloatToBF16(-1.0f));
  const auto gradient_bytes = absl::MakeConstSpan(reinterpret_cast<const uint8_t*>(gradient.data()), gradient.size() * 2);
  uint64_t step = 0;
  const auto push = [&](uint32_t first, uint32_t n) {
    ++step;
    std::vector<BlockGradient> gradients;
    for (uint32_t i = 0; i < n; ++i) gradients.push_back({{1, (first + i) % count}, DType::kBF16, gradient_bytes});
    Check(client->Push({"bench", 1, step}, 0, gradients));
  };
  const auto prepare = [&] { Check(client->PrepareStep({"bench", 1, step}, std::chrono::seconds(20)).status()); };
  const auto apply = [&] { Check(client->ApplyStep({"bench", 1, step}, {1.0f, 1.0f, 0.0f})); };
  push(0, count);
  prepare();
  apply();

  std::vector<std::vector<uint8_t>> blocks(count, std::vector<uint8_t>(bytes));
  std::vector<BlockFetch> all;
  for (uint32_t i = 0; i < count; ++i) all.push_back({{1, i}, absl::MakeSpan(blocks[i])});
  Check(client->Fetch(absl::MakeSpan(all), {}));

  std::vector<Row> rows;
  {
    TcpBlocks tcp(blocks, false);
    NaiveBlocks naive(blocks);
    std::vector<std::vector<uint8_t>> destinations(4, std::vector<uint8_t>(bytes));
    uint32_t next = 0;
    const auto ours = [&](uint32_t n) {
      std::vector<BlockFetch> wanted;
      for (uint32_t i = 0; i < n; ++i, ++next) wanted.push_back({{1, next % count}, absl::MakeSpan(destinations[next % 4])});
      return Timed([&] { Check(client->Fetch(absl::MakeSpan(wanted), {})); });
    };
    // Four blocks a turn for every variant; the last one asks for all of them in one call.
    rows = Measure("fetch " + size, static_cast<double>(bytes) * 4,
                   {{"raw TCP", 0, [&] { return Timed([&] { for (int i = 0; i < 4; ++i) tcp.Fetch(next++ % count, &destinations[i]); }); }},
                    {"one block per call", fetch_target, [&] { return ours(1) + ours(1) + ours(1) + ours(1); }},
                    {"four blocks in one call", fetch_target, [&] { return ours(4); }},
                    {"naive (string, proto, unary, copy)", 0,
                     [&] { return Timed([&] { for (int i = 0; i < 4; ++i) naive.Fetch(next++ % count, &destinations[i]); }); }}},
                   seconds);
  }
  {
    std::vector<std::vector<uint8_t>> gradients(count, std::vector<uint8_t>(gradient_bytes.begin(), gradient_bytes.end()));
    TcpBlocks tcp(gradients, true);
    uint32_t next = 0;
    const auto turn = [&](bool with_sum) {
      next += 4;
      double spent = Timed([&] { push(next, std::min(4u, count)); });
      const double sum = Timed(prepare);
      apply();
      return with_sum ? spent + sum : spent;
    };
    const auto pushed = Measure("push of bf16 gradients, blocks of " + size, static_cast<double>(gradient_bytes.size()) * 4,
                                {{"raw TCP", 0, [&] { return Timed([&] { for (int i = 0; i < 4; ++i) tcp.Push(next++ % count); }); }},
                                 {"four blocks in one push", 0, [&] { return turn(false); }},
                                 {"pushed and summed into fp32", 0.65, [&] { return turn(true); }}},
                                seconds);
    rows.insert(rows.end(), pushed.begin(), pushed.end());
  }
  return rows;
}

}  // namespace
}  // namespace membank

int main(int argc, char** argv) {
  membank::TuneMalloc();
  double seconds = 6;
  std::string json_path;
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word == "--seconds" && i + 1 < argc) {
      seconds = std::atof(argv[++i]);
    } else if (word == "--json" && i + 1 < argc) {
      json_path = argv[++i];
    } else {
      fprintf(stderr, "wire_bench: unknown argument '%s' (allowed: --seconds N, --json FILE)\n", word.c_str());
      return 2;
    }
  }
  std::vector<membank::Row> rows = membank::BenchBlocks(membank::Spec(32, 16, membank::DType::kBF16), 0.65, seconds);
  const auto large = membank::BenchBlocks(membank::Spec(8, 64, membank::DType::kF32), 0.85, seconds);
  rows.insert(rows.end(), large.begin(), large.end());
  if (!json_path.empty()) {
    nlohmann::json out = nlohmann::json::array();
    for (const membank::Row& row : rows) {
      out.push_back({{"figure", row.figure}, {"value", row.value}, {"unit", "GB/s"}, {"baseline", row.baseline}, {"baseline_value", row.base},
                     {"ratio", row.value / row.base}, {"target", row.target}, {"cpu_seconds_per_gb", row.cpu_seconds_per_gb}});
    }
    membank::Check(membank::WriteFileAtomic(json_path, out.dump(1) + "\n"));
  }
  return 0;
}
