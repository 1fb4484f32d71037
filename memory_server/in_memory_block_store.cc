#include "memory_server/in_memory_block_store.h"

#include <cstring>
#include <filesystem>

#include "common/base/bytes.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

// blocks.bin: records of {key size: u32, value size: u64, key, value}, little-endian, then the CRC32C of all of it.
constexpr char kFile[] = "/blocks.bin";

template <typename T>
void Append(std::string* out, T value) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

template <typename T>
bool Take(std::string_view* in, T* value) {
  if (in->size() < sizeof(T)) return false;
  std::memcpy(value, in->data(), sizeof(T));
  in->remove_prefix(sizeof(T));
  return true;
}

bool Take(std::string_view* in, uint64_t size, std::string* text) {
  if (in->size() < size) return false;
  text->assign(in->substr(0, size));
  in->remove_prefix(size);
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> InMemoryBlockStore::Open(const std::string& directory, StoreAccess access) {
  const bool exists = std::filesystem::exists(directory + kFile);
  if (access == StoreAccess::kReadOnly && !exists) return NotFound("block store {} does not exist", directory);
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::unique_ptr<InMemoryBlockStore> store(new InMemoryBlockStore(directory, access == StoreAccess::kReadWrite));
  if (exists) RETURN_IF_ERROR(store->Load());
  return store;
}

absl::Status InMemoryBlockStore::CheckWritable() const {
  return writable_ ? absl::OkStatus() : FailedPrecondition("block store {} is open read-only", directory_);
}

absl::Status InMemoryBlockStore::Put(std::string_view key, absl::Span<const uint8_t> value) {
  const Write write{std::string(key), {value}};
  return Apply({&write, 1});
}

absl::Status InMemoryBlockStore::Delete(std::string_view key) {
  const Write write{std::string(key), {}, true};
  return Apply({&write, 1});
}

absl::Status InMemoryBlockStore::Apply(absl::Span<const Write> batch) {
  RETURN_IF_ERROR(CheckWritable());
  absl::MutexLock lock(&mu_);
  for (const Write& write : batch) {
    if (write.erase) {
      values_.erase(write.key);
      continue;
    }
    std::string& value = values_[write.key];
    value.clear();
    for (absl::Span<const uint8_t> part : write.parts) value.append(reinterpret_cast<const char*>(part.data()), part.size());
  }
  return absl::OkStatus();
}

absl::Status InMemoryBlockStore::Get(std::string_view key, const std::function<void(absl::Span<const uint8_t>)>& visit) {
  absl::ReaderMutexLock lock(&mu_);
  const auto it = values_.find(key);
  if (it == values_.end()) return NotFound("block store {} has no such key", directory_);
  visit(AsBytes(it->second));
  return absl::OkStatus();
}

absl::Status InMemoryBlockStore::Scan(std::string_view prefix, const Visitor& visit) {
  absl::ReaderMutexLock lock(&mu_);
  for (auto it = values_.lower_bound(prefix); it != values_.end() && std::string_view(it->first).starts_with(prefix); ++it)
    RETURN_IF_ERROR(visit(it->first, AsBytes(it->second)));
  return absl::OkStatus();
}

absl::Status InMemoryBlockStore::Seek(std::string_view key, const Visitor& visit) {
  absl::ReaderMutexLock lock(&mu_);
  const auto it = values_.lower_bound(key);
  return it == values_.end() ? absl::OkStatus() : visit(it->first, AsBytes(it->second));
}

absl::Status InMemoryBlockStore::Verify() {
  if (!std::filesystem::exists(directory_ + kFile)) return absl::OkStatus();
  InMemoryBlockStore on_disk(directory_, /*writable=*/false);
  return on_disk.Load();
}

absl::Status InMemoryBlockStore::Erase(std::string_view first, std::string_view last) {
  RETURN_IF_ERROR(CheckWritable());
  {
    absl::MutexLock lock(&mu_);
    values_.erase(values_.lower_bound(first), values_.lower_bound(last));
  }
  return Flush();
}

absl::Status InMemoryBlockStore::Flush() {
  RETURN_IF_ERROR(CheckWritable());
  absl::ReaderMutexLock lock(&mu_);
  return Save(directory_);
}

absl::Status InMemoryBlockStore::Cut(const std::string& directory) {
  if (std::filesystem::exists(directory)) return AlreadyExists("{} exists, a cut needs a new directory", directory);
  RETURN_IF_ERROR(MakeDirectories(directory));
  absl::ReaderMutexLock lock(&mu_);
  return Save(directory);
}

absl::Status InMemoryBlockStore::Save(const std::string& directory) const {
  std::string image;
  for (const auto& [key, value] : values_) {
    Append(&image, static_cast<uint32_t>(key.size()));
    Append(&image, static_cast<uint64_t>(value.size()));
    image += key;
    image += value;
  }
  Append(&image, Crc32c(image.data(), image.size()));
  return WriteFileAtomic(directory + kFile, image);
}

absl::Status InMemoryBlockStore::Load() {
  ASSIGN_OR_RETURN(const std::string image, ReadFile(directory_ + kFile));
  const auto damaged = [&] { return DataLoss("block store file {}{} is damaged", directory_, kFile); };
  uint32_t crc;
  if (image.size() < sizeof(crc)) return damaged();
  std::string_view rest(image.data(), image.size() - sizeof(crc));
  std::memcpy(&crc, rest.data() + rest.size(), sizeof(crc));
  if (Crc32c(rest.data(), rest.size()) != crc) return damaged();
  absl::MutexLock lock(&mu_);
  while (!rest.empty()) {
    uint32_t key_size;
    uint64_t value_size;
    std::string key, value;
    if (!Take(&rest, &key_size) || !Take(&rest, &value_size) || !Take(&rest, key_size, &key) || !Take(&rest, value_size, &value))
      return damaged();
    values_[std::move(key)] = std::move(value);
  }
  return absl::OkStatus();
}

}  // namespace membank
