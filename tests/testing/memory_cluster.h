// In-process memory servers on loopback for tests: shards over in-memory stores, one RpcServer each, and the slot map file for clients.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "common/base/file.h"
#include "common/client/memory_client.h"
#include "common/rpc/server.h"
#include "fmt/format.h"
#include "gtest/gtest.h"
#include "memory_server/in_memory_block_store.h"
#include "memory_server/memory_service.h"
#include "tests/testing/tiny_spec.h"

namespace membank::testing_support {

// A directory that goes away with the object.
class ScratchDirectory {
 public:
  ScratchDirectory() {
    std::string name = ::testing::TempDir() + "/membank-XXXXXX";
    path_ = mkdtemp(name.data());
  }
  ~ScratchDirectory() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

class MemoryCluster {
 public:
  // With 0 servers: none before Start.
  MemoryCluster(const BankSpec& spec, int servers, uint64_t epoch = 1) : spec_(spec) {
    if (servers == 0) return;
    std::vector<SlotServer> names;
    for (int i = 0; i < servers; ++i) names.push_back({fmt::format("m{}", i), "127.0.0.1:0"});
    auto map = SlotMap::Striped(names, epoch);
    EXPECT_TRUE(map.ok()) << map.status();
    Start(*map);
  }

  // Starts one server per entry of `map`, listening where the entry says, and writes the client's slot map file.
  void Start(const SlotMap& map) {
    servers_.clear();
    ++generation_;
    std::string json = map.ToJson();
    for (const SlotServer& entry : map.servers()) {
      auto server = std::make_unique<Server>();
      ShardOptions options;
      options.data_directory = directory_.path() + "/" + std::to_string(generation_) + "-" + entry.id;
      options.server_id = entry.id;
      options.open_store = InMemoryBlockStore::Open;
      options.min_free_bytes = 0;
      options.optimizer_threads = 2;
      auto shard = Shard::Open(spec_, map, options);
      EXPECT_TRUE(shard.ok()) << shard.status();
      server->shard = *std::move(shard);
      server->service = std::make_unique<MemoryService>(server->shard.get(), 2, 32);
      RpcServerOptions rpc;
      rpc.listen = entry.address;
      auto started = RpcServer::Start(rpc, {server->service.get()});
      EXPECT_TRUE(started.ok()) << started.status();
      server->rpc = *std::move(started);
      const std::string quoted = "\"" + entry.address + "\"";
      const size_t at = json.find(quoted);
      EXPECT_NE(at, std::string::npos);
      json.replace(at, quoted.size(), "\"" + server->rpc->address() + "\"");
      servers_.push_back(std::move(server));
    }
    EXPECT_TRUE(WriteFileAtomic(slot_map_path(), json).ok());
  }

  void Stop() { servers_.clear(); }

  std::string slot_map_path() const { return directory_.path() + "/slots.json"; }
  const std::string& address(int i) const { return servers_[i]->rpc->address(); }
  Shard& shard(int i) { return *servers_[i]->shard; }
  const std::string& directory() const { return directory_.path(); }

  std::unique_ptr<MemoryClient> Connect() const {
    MemoryClientOptions options;
    options.slot_map_path = slot_map_path();
    options.connect_timeout = std::chrono::seconds(10);
    options.call_timeout = std::chrono::seconds(20);
    auto client = MemoryClient::Connect(options);
    EXPECT_TRUE(client.ok()) << client.status();
    return client.ok() ? *std::move(client) : nullptr;
  }

 private:
  struct Server {  // destroyed from the last member to the first
    std::unique_ptr<Shard> shard;
    std::unique_ptr<MemoryService> service;
    std::unique_ptr<RpcServer> rpc;
    ~Server() {
      if (shard) shard->Shutdown();
      if (rpc) rpc->Shutdown(std::chrono::seconds(1));
    }
  };

  const BankSpec spec_;
  ScratchDirectory directory_;
  int generation_ = 0;
  std::vector<std::unique_ptr<Server>> servers_;
};

}  // namespace membank::testing_support
