#include "memory_server/step_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "absl/cleanup/cleanup.h"
#include "common/base/bytes.h"
#include "common/base/crc32c.h"
#include "common/base/file.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"
#include "memory_server/block_record.h"
#include "memory_server/step_log_record.h"

namespace membank {
namespace {

namespace fs = std::filesystem;

absl::Status WriteAt(int file, absl::Span<const uint8_t> bytes, uint64_t* offset, const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n = ::pwrite(file, bytes.data(), bytes.size(), static_cast<off_t>(*offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, "write step log " + path);
    bytes.remove_prefix(static_cast<size_t>(n));
    *offset += static_cast<uint64_t>(n);
  }
  return absl::OkStatus();
}

absl::Status TruncateDurably(const std::string& path, uint64_t bytes) {
  const int file = ::open(path.c_str(), O_WRONLY | O_CLOEXEC);
  if (file < 0) return absl::ErrnoToStatus(errno, "open step log " + path);
  const bool failed = ::ftruncate(file, static_cast<off_t>(bytes)) != 0 || ::fdatasync(file) != 0;
  const int error = errno;
  ::close(file);
  return failed ? absl::ErrnoToStatus(error, fmt::format("cut step log {} to {} bytes", path, bytes)) : absl::OkStatus();
}

}  // namespace

// What lies at the end of a log of slots that moved here: their images, and "taken", which ends them. A step makes it void, and so does the next
// image, of another fence.
struct StepLog::Moved {
  absl::Status Add(const LogRecord& image) {
    if (taken.has_value()) Clear();
    ASSIGN_OR_RETURN(images.emplace_back(), DecodeLoggedImage(image));
    return absl::OkStatus();
  }
  void Clear() {
    taken.reset();
    images.clear();
  }

  std::optional<SlotsTaken> taken;
  std::vector<LoggedImage> images;  // borrowed from the mapped file
};

struct StepLog::Data {
  void Add(absl::Span<const uint8_t> part) {
    parts.push_back(part);
    bytes += part.size();
    crc = ExtendCrc32c(crc, part.data(), part.size());
  }
  static Data Of(const RankGradients& gradients) {
    Data data;
    for (const auto& [id, gradient] : gradients) data.Add(gradient.bytes.span());
    return data;
  }

  // Moves `offset` behind the record, also over a part of it that was written before an error.
  absl::Status WriteRecord(int file, const std::string& json, uint64_t* offset, const std::string& path) const {
    const uint64_t end = *offset + LogRecordBytes(json.size(), bytes);
    RETURN_IF_ERROR(WriteAt(file, AsBytes(EncodeLogRecord(json, bytes, crc)), offset, path));
    for (const absl::Span<const uint8_t> part : parts) RETURN_IF_ERROR(WriteAt(file, part, offset, path));
    return WriteAt(file, AsBytes(std::string(end - *offset, '\0')), offset, path);
  }

  std::vector<absl::Span<const uint8_t>> parts;
  uint64_t bytes = 0;
  uint32_t crc = 0;
};

absl::StatusOr<std::unique_ptr<StepLog>> StepLog::Open(const std::string& directory, const std::string& spec_hash) {
  RETURN_IF_ERROR(MakeDirectories(directory));
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory))
    if (entry.path().extension() == ".log") names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  std::unique_ptr<StepLog> log(new StepLog(directory, spec_hash));
  for (const std::string& name : names) {
    const absl::Status loaded = log->LoadSegment(name);
    if (loaded.ok()) continue;
    return Annotate(loaded, fmt::format("step log {}/{} (removing it gives up the steps since the last committed checkpoint)", directory, name));
  }
  return log;
}

StepLog::~StepLog() { Close(); }

void StepLog::Close() {
  if (file_ >= 0) ::close(file_);
  file_ = -1;
}

absl::Status StepLog::LoadSegment(const std::string& name) {
  Segment segment;
  segment.path = directory_ + "/" + name;
  segment.number = std::strtoull(name.c_str(), nullptr, 10);
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(segment.path));
  const std::optional<LogRecord> first = DecodeLogRecord(file->bytes());
  if (!first.has_value()) {
    if (FindProof(file->bytes(), 0, 0).has_value()) return DataLoss("its first record is damaged");
    LOG_WARN("removing {}: a crash tore off its first record, no step in it was acknowledged", segment.path);
    return ::unlink(segment.path.c_str()) == 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "unlink");
  }
  ASSIGN_OR_RETURN(SegmentHeader header, DecodeSegment(*first));
  if (header.spec_hash != spec_hash_)
    return FailedPrecondition("it belongs to a bank with spec hash {}, this bank's is {}", header.spec_hash, spec_hash_);
  segment.base = std::move(header.base);
  segment.slots = header.slots;
  segment.continues = header.continues;
  segment.bytes = file->bytes().size();
  segments_.push_back(std::move(segment));
  return absl::OkStatus();
}

uint64_t StepLog::bytes() const {
  uint64_t bytes = 0;
  for (const Segment& segment : segments_) bytes += segment.bytes;
  return bytes;
}

// --- Replay ------------------------------------------------------------------------------------------------------------------------------

absl::StatusOr<SlotSet> StepLog::Replay(const LogBase& base, const SlotSet& slots, uint64_t last_step, const LogReplay& replay) {
  Close();
  waiting_.reset();
  size_t first = segments_.size();
  for (size_t i = 0; i < segments_.size(); ++i)
    if (segments_[i].base == base) first = i;
  const auto goes_on = [&](size_t i) { return i < segments_.size() && segments_[i].continues && segments_[i].base.marks.step <= last_step; };
  Reading reading{base.marks.step, last_step, slots, first < segments_.size() ? segments_[first].slots : slots};
  size_t end = first;
  for (; end == first ? first < segments_.size() : goes_on(end); ++end) {
    if (segments_[end].base.marks.step != reading.head)
      return DataLoss("the step log has steps up to {} and from {} on ({}); those between are lost. Removing {} gives up the steps from there on",
                      reading.head, segments_[end].base.marks.step + 1, segments_[end].path, segments_[end].path);
    reading.owned &= segments_[end].slots;
    reading.last_segment = !goes_on(end + 1);
    RETURN_IF_ERROR(ReplaySegment(&segments_[end], &reading, replay));
  }
  RETURN_IF_ERROR(RemoveSegments(end, segments_.size()));
  RETURN_IF_ERROR(RemoveSegments(0, first));
  RETURN_IF_ERROR(OpenLast());
  if (reading.took_last) RETURN_IF_ERROR(WriteOwned(reading.owned));  // before any step that has them
  return reading.owned;
}

absl::Status StepLog::ReplaySegment(Segment* segment, Reading* reading, const LogReplay& replay) {
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(segment->path));
  const absl::Span<const uint8_t> bytes = file->bytes();
  uint64_t& head = reading->head;
  const auto damaged = [&](size_t offset, const std::string& what) {
    return DataLoss("step log {} at offset {}: {}; steps up to {} are whole. Moving the file away gives up the steps it holds", segment->path,
                    offset, what, head);
  };
  Moved moved;
  const auto take = [&]() -> absl::Status {
    RETURN_IF_ERROR(replay.take(*moved.taken, moved.images));
    head = moved.taken->marks.step;
    moved.Clear();
    return absl::OkStatus();
  };
  size_t offset = 0, good = 0;
  std::optional<LogRecord> gradients;
  while (offset < bytes.size()) {
    const size_t at = offset;
    const std::optional<LogRecord> record = DecodeLogRecord(bytes.subspan(at));
    if (!record.has_value()) {
      // A later step is written only after this one was synced. The rest of one step proves nothing: the disk may have written it in any order.
      if (const std::optional<std::string> later = FindProof(bytes, at + kLogAlignment, head + 2); later.has_value())
        return damaged(at, fmt::format("a damaged record, but {} lies behind it", *later));
      LOG_WARN("step log {}: {} bytes that a crash left behind step {} are cut off", segment->path, bytes.size() - good, head);
      break;
    }
    offset += record->bytes;
    const std::string kind = record->json.value("kind", "");
    if (kind == "segment" && at == 0) {
      good = offset;
    } else if (kind == "gradients") {
      if (head >= reading->last_step) break;
      gradients = record;
    } else if (kind == "apply") {
      uint64_t step;
      ApplyParameters parameters;
      RETURN_IF_ERROR(DecodeApply(*record, &step, &parameters));
      if (step != head + 1 || !gradients.has_value()) return damaged(at, fmt::format("step {} came where step {} was due", step, head + 1));
      absl::StatusOr<LoggedStep> logged = DecodeGradients(*gradients);
      if (!logged.ok() || logged->step != step) return damaged(at, fmt::format("no gradients of step {}: {}", step, logged.status().ToString()));
      logged->parameters = parameters;
      RETURN_IF_ERROR(replay.apply(*std::move(logged)));
      gradients.reset();
      moved.Clear();
      head = step;
      good = offset;
    } else if (kind == "image") {
      if (const absl::Status added = moved.Add(*record); !added.ok()) return damaged(at, std::string(added.message()));
    } else if (kind == "taken") {
      absl::StatusOr<SlotsTaken> decoded = DecodeTaken(*record);
      if (!decoded.ok()) return damaged(at, std::string(decoded.status().message()));
      if (decoded->joins ? decoded->marks.step < head : decoded->marks.step != head)
        return damaged(at, fmt::format("slots {} came at step {}, the log is at step {}", FormatSlots(decoded->slots), decoded->marks.step, head));
      moved.taken = *std::move(decoded);
      good = offset;
    } else if (kind == "owned") {
      const absl::StatusOr<SlotSet> owned = DecodeOwned(*record);
      if (!owned.ok()) return damaged(at, std::string(owned.status().message()));
      const SlotSet gained = *owned & ~reading->owned;
      if (gained.any() && (!moved.taken.has_value() || (gained & ~moved.taken->slots).any()))
        return damaged(at, fmt::format("slots {} without their blocks", FormatSlots(gained)));
      if (gained.any()) RETURN_IF_ERROR(take());
      reading->owned = *owned;
      good = offset;
    } else {
      return damaged(at, fmt::format("a record of kind \"{}\"", kind));
    }
  }
  if (reading->last_segment && moved.taken.has_value() && (moved.taken->slots & ~reading->slots).none()) {
    reading->owned |= moved.taken->slots;
    reading->took_last = true;
    RETURN_IF_ERROR(take());
  }
  waiting_ = std::move(moved.taken);
  if (good < bytes.size()) RETURN_IF_ERROR(TruncateDurably(segment->path, good));
  segment->bytes = good;
  return absl::OkStatus();
}

absl::Status StepLog::OpenLast() {
  if (segments_.empty()) return absl::OkStatus();
  file_ = ::open(segments_.back().path.c_str(), O_WRONLY | O_CLOEXEC);
  return file_ >= 0 ? absl::OkStatus() : absl::ErrnoToStatus(errno, "open step log " + segments_.back().path);
}

// The last one first: what is left after a crash is a prefix.
absl::Status StepLog::RemoveSegments(size_t begin, size_t end) {
  for (size_t i = end; i > begin; --i) {
    const std::string& path = segments_[i - 1].path;
    if (::unlink(path.c_str()) != 0 && errno != ENOENT) return absl::ErrnoToStatus(errno, "remove step log " + path);
    if (i == segments_.size()) Close();
    segments_.erase(segments_.begin() + static_cast<std::ptrdiff_t>(i - 1));
  }
  return begin < end ? SyncDirectory(directory_) : absl::OkStatus();
}

// --- Appending ---------------------------------------------------------------------------------------------------------------------------

absl::Status StepLog::Begin(const LogBase& base, const SlotSet& slots, bool continues) {
  Segment segment{segments_.empty() ? 1 : segments_.back().number + 1};
  segment.path = fmt::format("{}/{:010}.log", directory_, segment.number);
  segment.base = base;
  segment.slots = slots;
  segment.continues = continues && !segments_.empty();
  const int file = ::open(segment.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return absl::ErrnoToStatus(errno, "create step log " + segment.path);
  Close();
  waiting_.reset();
  file_ = file;
  directory_synced_ = false;
  segments_.push_back(std::move(segment));
  const absl::Status written = Append(SegmentJson(spec_hash_, base, slots, segments_.back().continues), {});
  if (!written.ok()) {
    ::unlink(segments_.back().path.c_str());
    segments_.pop_back();
    Close();
    const absl::Status reopened = OpenLast();
    return reopened.ok() ? written : reopened;
  }
  if (segments_.back().continues) return absl::OkStatus();
  RETURN_IF_ERROR(Sync());
  return RemoveSegments(0, segments_.size() - 1);
}

absl::Status StepLog::Append(const std::string& json, const Data& data) {
  RETURN_IF_ERROR(failure_);
  Segment& segment = segments_.back();
  uint64_t offset = segment.bytes;
  const absl::Status written = data.WriteRecord(file_, json, &offset, segment.path);
  if (written.ok()) segment.bytes = offset;
  else if (::ftruncate(file_, static_cast<off_t>(segment.bytes)) != 0) failure_ = absl::ErrnoToStatus(errno, "cut step log " + segment.path);
  return written;
}

absl::Status StepLog::WriteGradients(const RunSettings& run, uint64_t step, const RankGradients& gradients) {
  const uint64_t begin = segments_.empty() ? 0 : segments_.back().bytes;
  RETURN_IF_ERROR(Append(GradientsJson(run, step, gradients), Data::Of(gradients)));
  // The disk begins now; WriteApply waits for the rest.
  ::sync_file_range(file_, static_cast<off_t>(begin), static_cast<off_t>(segments_.back().bytes - begin), SYNC_FILE_RANGE_WRITE);
  return absl::OkStatus();
}

absl::Status StepLog::WriteApply(uint64_t step, const ApplyParameters& parameters) {
  RETURN_IF_ERROR(Append(ApplyJson(step, parameters), {}));
  waiting_.reset();
  return Sync();
}

absl::Status StepLog::WriteImage(const BlockImage& image) {
  const ImageRecords records = RecordsOf(image);
  Data data;
  data.Add(AsBytes(records.weights_header));
  data.Add(records.payload);
  const uint64_t weights_bytes = data.bytes;
  data.Add(AsBytes(records.state_header));
  for (const absl::Span<const uint8_t> array : records.state) data.Add(array);
  waiting_.reset();
  return Append(ImageJson(image.id, weights_bytes, data.bytes - weights_bytes), data);
}

absl::Status StepLog::WriteTaken(const SlotsTaken& taken) {
  RETURN_IF_ERROR(Append(TakenJson(taken), {}));
  RETURN_IF_ERROR(Sync());
  waiting_ = taken;
  return absl::OkStatus();
}

absl::Status StepLog::WriteOwned(const SlotSet& slots) {
  RETURN_IF_ERROR(Append(OwnedJson(slots), {}));
  if (waiting_.has_value() && (waiting_->slots & slots).any()) waiting_.reset();
  return Sync();
}

absl::Status StepLog::ReadWaiting(const std::function<absl::Status(const SlotsTaken&, const std::vector<LoggedImage>&)>& take) const {
  const Segment& segment = segments_.back();
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> file, MappedFile::Open(segment.path));
  Moved moved;
  for (size_t offset = 0; offset < segment.bytes;) {
    const std::optional<LogRecord> record = DecodeLogRecord(file->bytes().subspan(offset));
    if (!record.has_value()) return DataLoss("step log {} at offset {}: a damaged record among the blocks of slots that moved", segment.path, offset);
    offset += record->bytes;
    const std::string kind = record->json.value("kind", "");
    if (kind == "apply") moved.Clear();
    if (kind == "image") RETURN_IF_ERROR(moved.Add(*record));
    if (kind == "taken") moved.taken = *waiting_;  // the last one is
  }
  return take(*waiting_, moved.images);
}

absl::Status StepLog::Sync() {
  RETURN_IF_ERROR(failure_);
  if (file_ < 0) return absl::OkStatus();
  // After a failed sync the kernel may have dropped what it could not write: nothing in memory says what the file holds (fsyncgate).
  if (::fdatasync(file_) != 0)
    failure_ = Annotate(absl::ErrnoToStatus(errno, "sync step log " + segments_.back().path),
                        "no step is durable any more; start the server again, it goes back to the last acknowledged step");
  else if (!directory_synced_)
    failure_ = SyncDirectory(directory_);
  directory_synced_ = failure_.ok();
  return failure_;
}

absl::Status StepLog::RemoveBefore(const LogBase& base) {
  for (size_t i = segments_.size(); i-- > 0;)
    if (segments_[i].base == base) return RemoveSegments(0, i);
  return absl::OkStatus();
}

absl::Status StepLog::Clear() { return RemoveSegments(0, segments_.size()); }

// --- Purging -----------------------------------------------------------------------------------------------------------------------------

absl::Status StepLog::Purge(const std::function<bool(BlockId)>& covered) {
  RETURN_IF_ERROR(failure_);
  Close();
  absl::Status purged;
  for (size_t i = 0; i < segments_.size() && purged.ok(); ++i) {
    purged = PurgeSegment(&segments_[i], covered);
    if (!purged.ok()) purged = Annotate(purged, "purging step log " + segments_[i].path);
  }
  const absl::Status opened = OpenLast();
  return purged.ok() ? opened : purged;
}

absl::Status StepLog::PurgeSegment(Segment* segment, const std::function<bool(BlockId)>& covered) {
  ASSIGN_OR_RETURN(const std::shared_ptr<MappedFile> mapped, MappedFile::Open(segment->path));
  const absl::Span<const uint8_t> bytes = mapped->bytes();
  const std::string path = segment->path + ".new";
  const int file = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return absl::ErrnoToStatus(errno, "create " + path);
  const absl::Cleanup closed = [&] {
    ::close(file);
    ::unlink(path.c_str());  // unless it was renamed
  };
  uint64_t written = 0, head = segment->base.marks.step;
  for (size_t offset = 0; offset < bytes.size();) {
    const std::optional<LogRecord> record = DecodeLogRecord(bytes.subspan(offset));
    if (!record.has_value()) {  // a torn tail goes, as in Replay
      if (const std::optional<std::string> later = FindProof(bytes, offset + kLogAlignment, head + 2); later.has_value())
        return DataLoss("a damaged record at offset {}, but {} lies behind it", offset, *later);
      break;
    }
    const std::string kind = record->json.value("kind", "");
    if (kind == "gradients") {
      ASSIGN_OR_RETURN(LoggedStep logged, DecodeGradients(*record));
      std::erase_if(logged.gradients, [&](const auto& gradient) { return covered(gradient.first); });
      RETURN_IF_ERROR(Data::Of(logged.gradients).WriteRecord(file, GradientsJson(logged.run, logged.step, logged.gradients), &written, path));
    } else if (kind == "image") {
      ASSIGN_OR_RETURN(const LoggedImage image, DecodeLoggedImage(*record));
      if (!covered(image.id)) RETURN_IF_ERROR(WriteAt(file, bytes.subspan(offset, record->bytes), &written, path));
    } else {
      ApplyParameters unused;
      if (kind == "apply") RETURN_IF_ERROR(DecodeApply(*record, &head, &unused));
      RETURN_IF_ERROR(WriteAt(file, bytes.subspan(offset, record->bytes), &written, path));
    }
    offset += record->bytes;
  }
  if (::fdatasync(file) != 0) return absl::ErrnoToStatus(errno, "sync " + path);
  if (::rename(path.c_str(), segment->path.c_str()) != 0) return absl::ErrnoToStatus(errno, fmt::format("rename {} to {}", path, segment->path));
  segment->bytes = written;
  return SyncDirectory(directory_);
}

}  // namespace membank
