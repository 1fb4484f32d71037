#include <zlib.h>

#include <filesystem>

#include "common/base/file.h"
#include "common/base/hash.h"
#include "common/corpus/dictd.h"
#include "common/corpus/packed.h"
#include "common/corpus/sources.h"
#include "nlohmann/json.hpp"
#include "tests/fuzz/fuzz_target.h"

namespace membank::fuzz {
namespace {

std::string Gzip(const std::string& text) {
  z_stream stream = {};
  deflateInit2(&stream, 9, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(text.size() + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

// The index as a piece, then the text.
void RunDictd(std::string_view input) {
  Pieces pieces(input);
  const std::string index = WriteScratch("input.index", pieces.Piece());
  WriteScratch("input.dict", pieces.Rest());
  for (const Encoding encoding : {Encoding::kUtf8, Encoding::kLatin1}) (void)ReadDictd(ScratchDirectory() + "/input", encoding).ok();
}

std::vector<std::string> DictdSeeds() {
  return {MakePiece("00-database-info\tA\tB\nhydrogen\tA\tI\nH\tA\tI\noxygen\tI\tJ\nO\tI\tJ\tOxygen\n") + "hydrogenoxygen is"};
}

void RunGzip(std::string_view input) { (void)ReadGzip(WriteScratch("input.gz", input)).ok(); }

std::vector<std::string> GzipSeeds() { return {Gzip("hydrogen is the first element"), Gzip("a") + Gzip(std::string(5000, 'b'))}; }

// A byte, the index as a piece, then the shard. With an odd byte the index gets the checksums of what is there, so that what lies behind the
// checksums is reached too.
void RunPacked(std::string_view input) {
  Pieces pieces(input);
  const bool repair = pieces.Byte() % 2 == 1;
  std::string index(pieces.Piece());
  const std::string_view shard = pieces.Rest();
  const std::string directory = ScratchDirectory() + "/packed";
  std::filesystem::create_directories(directory);
  nlohmann::json json = nlohmann::json::parse(index, nullptr, /*allow_exceptions=*/false);
  if (repair && json.is_object() && json.contains("shards") && json["shards"].is_array() && json["shards"].size() == 1 &&
      json["shards"][0].is_object()) {
    json["shards"][0]["xxh3"] = Hash64Hex(shard);
    json["shards"][0]["bytes"] = shard.size();
    json.erase("xxh3");
    json["xxh3"] = Hash128Hex(json.dump());
    index = json.dump();
  }
  WriteScratch("packed/index.json", index);
  WriteScratch("packed/shard-00000.bin", shard);
  const auto corpus = PackedCorpus::Open(directory);
  if (!corpus.ok()) return;
  for (uint64_t i = 0; i < (*corpus)->size(); ++i) (void)(*corpus)->Read(i).ok();
}

std::vector<std::string> PackedSeeds() {
  const std::string directory = ScratchDirectory() + "/seed_packed";
  std::filesystem::remove_all(directory);
  PackedInfo info{.tokenizer_hash = "t", .tree_fingerprint = "f", .fan_out = 2, .depth = 2, .sequence_length = 8, .vocab_size = 70000};
  if (!WritePackedCorpus(directory, info, {{1, {5, 6, 69999}, {2, 3}}, {3, {7}, {1}}}).ok()) return {};
  const std::string index = *ReadFile(directory + "/index.json"), shard = *ReadFile(directory + "/shard-00000.bin");
  std::string nested = R"({"magic":"membank-corpus","x":)" + NestedLists(30000) + "}";
  return {std::string(1, 1) + MakePiece(index) + shard, std::string("\0", 1) + MakePiece(index) + shard, std::string("\0", 1) + MakePiece(nested)};
}

void RunJsonLines(std::string_view input) { (void)LoadDocuments({{WriteScratch("input.jsonl", input), Encoding::kUtf8}}).ok(); }

std::vector<std::string> JsonLinesSeeds() {
  return {"{\"text\":\"one\",\"id\":1,\"title\":\"t\"}\n\n{\"id\":\"x\",\"text\":\"two\\u00e9\"}\n", NestedLists(100000) + "\n"};
}

}  // namespace

std::vector<Target> CorpusTargets() {
  return {{"dictd", RunDictd, DictdSeeds}, {"gzip", RunGzip, GzipSeeds}, {"packed_corpus", RunPacked, PackedSeeds},
          {"json_lines", RunJsonLines, JsonLinesSeeds}};
}

}  // namespace membank::fuzz
