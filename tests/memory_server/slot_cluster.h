// Memory servers of one bank in this process whose slots move, and a trainer whose steps count: SGD with rate 1 and integer gradients.
#pragma once

#include <map>

#include "common/base/status_macros.h"
#include "memory_server/slot_move.h"
#include "tests/memory_server/shard_fixture.h"

namespace membank {

inline constexpr absl::Duration kLong = absl::Minutes(5);

class SlotCluster {
 public:
  explicit SlotCluster(const std::string& name, Durability durability = Durability::kCheckpoint)
      : durability_(durability), root_(fmt::format("{}/slot_move.{}.{}", testing::TempDir(), ::getpid(), name)),
        map_(*SlotMap::Striped({{"m0", "h:0"}, {"m1", "h:1"}})) {
    std::filesystem::remove_all(root_);
  }
  ~SlotCluster() { std::filesystem::remove_all(root_); }

  void StartAll() {
    for (const char* id : {"m0", "m1", "m2"}) Start(id);
  }
  // By the slot map as it is now. A server that runs ends as if it were killed.
  void Start(const std::string& id) { Start(id, durability_); }
  void Start(const std::string& id, Durability durability) {
    const absl::Status started = TryStart(id, durability);
    ASSERT_TRUE(started.ok()) << id << ": " << started;
  }
  absl::Status TryStart(const std::string& id, Durability durability) {
    servers_.erase(id);
    ShardOptions options;
    options.durability = durability;
    options.data_directory = root_ + "/" + id;
    options.server_id = id;
    options.open_store = InMemoryBlockStore::Open;
    options.optimizer_threads = 1;
    options.min_free_bytes = 0;
    options.keep_checkpoints = 3;
    ASSIGN_OR_RETURN(std::unique_ptr<Shard> shard, Shard::Open(spec_, map_, options));
    Server& server = servers_[id];
    server.shard = std::move(shard);
    server.mover = std::make_unique<SlotMover>(server.shard.get());
    return absl::OkStatus();
  }

  Shard& shard(const std::string& id) { return *servers_.at(id).shard; }
  SlotMover& mover(const std::string& id) { return *servers_.at(id).mover; }
  const SlotMap& map() const { return map_; }
  void SetMap(const SlotMap& map) { map_ = map; }
  const std::string& OwnerOf(BlockId id) const { return map_.servers()[map_.OwnerOf(id)].id; }

  absl::Status Begin(uint64_t first_step) {
    run_ = {"r", run_.epoch + 1, 1, 0, first_step, OptimizerKind::kSgd};
    for (const SlotServer& server : map_.servers()) RETURN_IF_ERROR(shard(server.id).BeginRun(run_).status());
    return absl::OkStatus();
  }
  StepId Id(uint64_t step) const { return {run_.run_id, run_.epoch, step}; }
  // `applied_by`: how many servers apply it; the others have prepared it.
  absl::Status Step(uint64_t step, const std::vector<BlockId>& blocks, size_t applied_by = ~size_t{0}) {
    const StepId id = Id(step);
    for (const SlotServer& server : map_.servers()) {
      ASSIGN_OR_RETURN(const auto push, shard(server.id).BeginPush(id, 0, {}, map_.epoch()));
      for (BlockId block : blocks) {
        if (OwnerOf(block) != server.id) continue;
        const std::vector<float> values(spec_.BlockElements(block.level), 1.0f);
        Buffer bytes(values.size() * 4);
        EncodePayload(values, DType::kF32, bytes.span());
        RETURN_IF_ERROR(push->AddBlock(block, {DType::kF32, std::move(bytes)}));
      }
      RETURN_IF_ERROR(push->Finish().status());
    }
    for (const SlotServer& server : map_.servers()) RETURN_IF_ERROR(shard(server.id).PrepareStep(id, absl::Now() + kLong).status());
    for (size_t i = 0; i < std::min(applied_by, map_.servers().size()); ++i)
      RETURN_IF_ERROR(shard(map_.servers()[i].id).ApplyStep(id, {1, 1, 0}).status());
    return absl::OkStatus();
  }
  // As a trainer does after a crash of servers whose steps are durable: to the last step that all have.
  absl::StatusOr<uint64_t> GoOn() {
    uint64_t head = ~uint64_t{0};
    for (const SlotServer& server : map_.servers()) head = std::min(head, shard(server.id).Status().head_step);
    for (const SlotServer& server : map_.servers()) {
      RETURN_IF_ERROR(shard(server.id).Rewind(head));
      run_.epoch = std::max(run_.epoch, shard(server.id).Status().run_epoch);
    }
    run_.epoch += 9;  // an epoch that was begun and has no step is in no status
    RETURN_IF_ERROR(Begin(head + 1));
    return head;
  }
  absl::Status Snapshot(const std::string& id, uint64_t step) {
    for (const SlotServer& server : map_.servers()) RETURN_IF_ERROR(shard(server.id).SnapshotCheckpoint(id, step));
    return absl::OkStatus();
  }
  absl::Status Checkpoint(const std::string& id, uint64_t step) {
    for (const SlotServer& server : map_.servers()) RETURN_IF_ERROR(shard(server.id).PrepareCheckpoint(id, step));
    for (const SlotServer& server : map_.servers()) RETURN_IF_ERROR(shard(server.id).CommitCheckpoint(id));
    return absl::OkStatus();
  }
  absl::Status Restore(const std::string& id) {
    for (const SlotServer& server : map_.servers()) RETURN_IF_ERROR(shard(server.id).RestoreCheckpoint(id));
    return absl::OkStatus();
  }

  // All blocks that the servers give out of a checkpoint, as `membank checkpoint export` asks for them.
  std::vector<std::string> Exported(const std::string& id) {
    std::vector<std::string> blocks;
    for (const SlotServer& server : map_.servers()) {
      CutReader::Position position{{1, 0}, 0};
      for (bool more = true; more;) {
        const absl::Status read = shard(server.id).ReadCheckpoint(id, position, UINT64_MAX, [&](const CutReader::Piece& piece, const CutMarks&) {
          more = !piece.bytes.empty();
          if (more) blocks.push_back(ToString({piece.next.block.level, piece.next.block.cluster - 1}));
          position = piece.next;
        });
        EXPECT_TRUE(read.ok()) << read;
        more = more && read.ok();
      }
    }
    std::sort(blocks.begin(), blocks.end());
    return blocks;
  }

  // One round of copying, as slot_stream.cc does it over the wire.
  absl::Status Copy(const std::string& move_id, const std::string& from, const std::string& to, const SlotSet& slots, bool last) {
    SlotMover& target = mover(to);
    const SlotSourceState source = mover(from).State();
    ASSIGN_OR_RETURN(const uint64_t copied, target.BeginRound(move_id, slots, source));
    for (const MergeSource& cut : source.cuts) {
      if (target.Holds(cut, slots)) continue;
      ASSIGN_OR_RETURN(const auto merge, target.BeginMerge(cut, slots));
      if (merge == nullptr) continue;
      RETURN_IF_ERROR(mover(from).ExportCut(cut.checkpoint_id, slots, [&](BlockId id, auto weights, auto state) {
        return merge->Add(id, weights, state);
      }));
      RETURN_IF_ERROR(merge->Finish());
      RETURN_IF_ERROR(target.Install(merge.get()));
    }
    RETURN_IF_ERROR(target.CommitAs(source));
    RETURN_IF_ERROR(mover(from).ExportHead(slots, copied, [&](BlockId id, auto weights, auto state) {
      return target.Stage(move_id, id, weights, state);
    }));
    return target.EndRound(move_id, slots, source, last);
  }
  absl::Status SealBoth(const std::string& move_id, const std::string& from, const std::string& to) {
    ASSIGN_OR_RETURN(uint64_t fence, mover(from).Seal(move_id, 0, kLong));
    if (!map_.ServerIndex(to).ok()) return absl::OkStatus();
    ASSIGN_OR_RETURN(fence, mover(to).Seal(move_id, fence, kLong));
    RETURN_IF_ERROR(mover(from).Seal(move_id, fence, kLong).status());
    RETURN_IF_ERROR(mover(from).AwaitSealed(move_id, absl::Now()));
    return mover(to).AwaitSealed(move_id, absl::Now());
  }
  // `crashed`: a server that dies before it adopts the new map.
  void Replace(const std::string& to, const SlotSet& slots) { map_ = *map_.Move(slots, {to, "h:" + to.substr(1)}, {}); }
  absl::Status Adopt() {
    for (auto& [id, server] : servers_) RETURN_IF_ERROR(server.mover->Adopt(map_));
    return absl::OkStatus();
  }
  void Switch(const std::string& to, const SlotSet& slots, const std::string& crashed = "") {
    map_ = *map_.Move(slots, {to, "h:" + to.substr(1)}, {});
    if (!crashed.empty()) Start(crashed);
    for (auto& [id, server] : servers_) {
      const absl::Status adopted = server.mover->Adopt(map_);
      ASSERT_TRUE(adopted.ok()) << adopted;
    }
  }

  // By its owner; every other server must refuse it.
  int Count(BlockId id) {
    int count = -1000;
    for (auto& [name, server] : servers_) {
      const auto read = server.shard->Read(id);
      EXPECT_EQ(read.ok(), name == OwnerOf(id)) << ToString(id) << " on " << name << " " << read.status();
      if (!read.ok()) continue;
      std::vector<float> values(read->payload->size() / 4);
      DecodePayload(read->payload->span(), DType::kF32, absl::MakeSpan(values));
      count = static_cast<int>(-values.back());
    }
    return count;
  }
  std::vector<BlockId> Blocks() const {
    std::vector<BlockId> blocks;
    for (uint32_t cluster = 0; cluster < 9; ++cluster) blocks.push_back({2, cluster});
    return blocks;
  }

 private:
  struct Server {
    std::unique_ptr<Shard> shard;
    std::unique_ptr<SlotMover> mover;
  };
  const BankSpec spec_ = SmallSpec();
  const Durability durability_;
  const std::string root_;
  SlotMap map_;
  RunSettings run_;
  std::map<std::string, Server> servers_;
};

}  // namespace membank
