#include "model_worker/serve/bank_stack.h"

#include <algorithm>

#include "absl/time/clock.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "model_worker/model/bank_levels.h"

namespace membank {
namespace {

constexpr std::chrono::seconds kVersionsTimeout{10};  // of the memory servers, to say which versions they have

std::string VersionName(const std::string& version) { return version.empty() ? "(live head)" : version; }

absl::Status CheckBank(const BankSpec& bank, const AnchorWeights& anchor) {
  RETURN_IF_ERROR(bank.CheckFits(AnchorShapeOf(anchor.config)));
  if (bank.anchor_fingerprint != anchor.origin) {
    return FailedPrecondition("bank {} was trained beside the anchor with fingerprint {}, this one's is {}; serve it with its own anchor",
                              bank.bank_id, bank.anchor_fingerprint, anchor.origin);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<BankStack>> BankStack::Create(const std::vector<ServedBank>& banks, const AnchorWeights& anchor,
                                                             const BlockLoaderOptions& loader) {
  std::unique_ptr<BankStack> stack(new BankStack());
  size_t levels = 0;
  for (const ServedBank& served : banks) {
    const BankSpec& spec = served.client->spec();
    RETURN_IF_ERROR(CheckBank(spec, anchor));
    for (size_t i = 0; i < stack->size(); ++i) {
      if (stack->spec(i).bank_id == spec.bank_id) {
        return FailedPrecondition("both banks are named {}; stacked banks are chosen by name: give one of them another", spec.bank_id);
      }
    }
    BlockLoaderOptions own = loader;
    own.access = served.access;
    stack->banks_.push_back({served, levels, std::make_unique<BlockLoader>(served.client, own)});
    stack->banks_.back().loader->KeepResident(served.version);
    levels += spec.depth();
    absl::MutexLock lock(&stack->mu_);
    stack->versions_.push_back(served.version);
  }
  return stack;
}

MemoryBatch BankStack::Levels() const {
  MemoryBatch levels;
  for (size_t i = 0; i < size(); ++i)
    for (uint32_t level = 1; level <= spec(i).depth(); ++level) levels.push_back(LevelOf(spec(i), level, i));
  return levels;
}

absl::StatusOr<size_t> BankStack::Find(const std::string& name) const {
  if (banks_.empty()) return FailedPrecondition("this worker serves its anchor without a bank; there is no version to use");
  if (name.empty()) return size_t{0};
  std::vector<std::string> names;
  for (size_t i = 0; i < size(); ++i) {
    if (spec(i).bank_id == name) return i;
    names.push_back(spec(i).bank_id);
  }
  return NotFound("bank \"{}\" is not served here; these are: {}", name, fmt::join(names, ", "));
}

absl::StatusOr<std::vector<BlockId>> BankStack::BlocksOf(size_t number, const MemoryChoice& memory) const {
  const BlockPath& path = memory.path;
  if (path.mode == MemoryMode::kNone) return std::vector<BlockId>();
  if (banks_.empty()) {
    return FailedPrecondition("this worker serves its anchor without a bank; memory '{}' is not possible, only 'none'",
                              path.mode == MemoryMode::kGeneric ? "generic" : "fetched");
  }
  if (number >= size()) return InvalidArgument("memory of {} banks is asked for; {} are served here", number + 1, size());
  const BankSpec& bank = spec(number);
  if (path.mode == MemoryMode::kFetched) {
    const uint32_t leaves = ClusterCount(bank.fan_out, bank.depth());
    if (path.depth != bank.depth() || path.leaf >= leaves) {
      return InvalidArgument("unknown path: leaf {} of depth {}; bank {} has depth {} and leaves 0 to {}", path.leaf, path.depth,
                             bank.bank_id, bank.depth(), leaves - 1);
    }
  }
  for (uint32_t level : memory.levels) {
    if (level < 1 || level > bank.depth()) {
      return InvalidArgument("unknown level {}; bank {} has levels 1 to {}", level, bank.bank_id, bank.depth());
    }
  }
  std::vector<BlockId> blocks = bank.BlocksOf(path);
  if (!memory.levels.empty()) {
    std::erase_if(blocks, [&](BlockId id) { return std::find(memory.levels.begin(), memory.levels.end(), id.level) == memory.levels.end(); });
  }
  return blocks;
}

std::vector<std::string> BankStack::Versions() const {
  absl::MutexLock lock(&mu_);
  return versions_;
}

absl::StatusOr<std::string> BankStack::UseVersion(const std::string& bank, const std::string& version, bool check_only) {
  ASSIGN_OR_RETURN(const size_t number, Find(bank));
  if (!version.empty()) {
    ASSIGN_OR_RETURN(const std::vector<std::string> versions, banks_[number].served.client->ListVersions(kVersionsTimeout));
    if (std::find(versions.begin(), versions.end(), version) == versions.end()) {
      return NotFound("bank version \"{}\" is not on every memory server; these are: {}", version,
                      versions.empty() ? "none" : fmt::format("{}", fmt::join(versions, ", ")));
    }
  }
  std::string before;
  {
    absl::MutexLock lock(&mu_);
    if (check_only) return versions_[number];
    LOG_INFO("new sequences get version {} of bank {} after {}", VersionName(version), spec(number).bank_id, VersionName(versions_[number]));
    before = std::exchange(versions_[number], version);
  }
  if (before != version) banks_[number].loader->KeepResident(version);
  return before;
}

absl::StatusOr<std::vector<BankUse>> BankStack::UsesOf(const MemoryChoice& memory) const {
  std::vector<BankUse> uses;
  for (size_t i = 0; i <= memory.stacked.size(); ++i) {
    const MemoryChoice& choice = i == 0 ? memory : memory.stacked[i - 1];
    ASSIGN_OR_RETURN(std::vector<BlockId> ids, BlocksOf(i, choice));
    if (ids.empty()) continue;
    BankUse& use = uses.emplace_back();
    use.bank = i;
    use.first_level = banks_[i].first_level;
    use.version = choice.bank_version.has_value() ? *choice.bank_version : Versions()[i];
    use.ids = std::move(ids);
  }
  return uses;
}

void BankStack::Load(BankUse* use, BlockLoader::Done done) {
  const Bank& bank = banks_[use->bank];
  use->asked_epoch = bank.served.access == nullptr ? 0 : bank.served.access->epoch();
  use->asked_at = absl::Now();
  bank.loader->Load(use->version, use->ids, std::move(done));
}

absl::Status BankStack::Check(const BankUse& use) const {
  const AccessWatch* access = banks_[use.bank].served.access;
  if (access == nullptr || use.blocks.empty()) return absl::OkStatus();
  for (const BlockHandle& block : use.blocks) {
    if (!block->blocked && access->IsBlocked(block->id)) {
      return Aborted("block {} was blocked while the answer was made with it; ask again", ToString(block->id));
    }
  }
  return access->CheckLease();
}

bool BankStack::RightSeen(const BankUse& use) const {
  const AccessWatch* access = banks_[use.bank].served.access;
  return use.bank == 0 || access == nullptr || access->epoch() == use.seen_epoch;
}

absl::Status BankStack::CheckAnswered(const BankUse& use, absl::Time now) const {
  const AccessWatch* access = banks_[use.bank].served.access;
  if (access == nullptr || now - use.asked_at <= access->lease()) return absl::OkStatus();
  return Unavailable("the memory servers of bank {} did not say within {} whether its blocks may still be read; ask again",
                     spec(use.bank).bank_id, absl::FormatDuration(access->lease()));
}

}  // namespace membank
