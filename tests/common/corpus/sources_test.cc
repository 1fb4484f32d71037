#include "common/corpus/sources.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>
#include <zlib.h>

#include <filesystem>

#include "common/base/file.h"
#include "common/corpus/dictd.h"

namespace membank {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class SourcesTest : public ::testing::Test {
 protected:
  SourcesTest() : directory_(testing::TempDir() + "/sources_test." + std::to_string(::getpid())) { fs::create_directories(directory_); }
  ~SourcesTest() override { fs::remove_all(directory_); }

  std::string Write(const std::string& name, const std::string& contents) {
    const std::string path = directory_ + "/" + name;
    fs::create_directories(fs::path(path).parent_path());
    EXPECT_TRUE(WriteFileAtomic(path, contents).ok());
    return path;
  }

  static std::string Gzip(const std::string& text) {
    z_stream stream = {};
    deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
    std::string out(text.size() + 1000, '\0');
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
    stream.avail_in = text.size();
    stream.next_out = reinterpret_cast<Bytef*>(out.data());
    stream.avail_out = out.size();
    EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
    out.resize(stream.total_out);
    deflateEnd(&stream);
    return out;
  }

  static absl::StatusOr<LoadedDocuments> Load(const std::string& path, Encoding encoding = Encoding::kUtf8) { return LoadDocuments({{path, encoding}}); }

  static void ExpectRefused(const absl::StatusOr<LoadedDocuments>& loaded, absl::StatusCode code, const std::string& part) {
    ASSERT_FALSE(loaded.ok()) << part;
    EXPECT_EQ(loaded.status().code(), code) << loaded.status();
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(part));
  }

  const std::string directory_;
};

TEST_F(SourcesTest, ATextFileIsADocument) {
  auto loaded = Load(Write("notes.txt", "\xEF\xBB\xBFIron rusts.\n"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->documents.size(), 1u);
  EXPECT_EQ(loaded->documents[0].title, "notes");
  EXPECT_EQ(loaded->documents[0].text, "Iron rusts.\n");  // without the byte-order mark
}

TEST_F(SourcesTest, JsonLinesTakeTextIdTitleAndRetrieveOn) {
  auto loaded = Load(Write("a.jsonl", "{\"text\": \"one\", \"id\": 7, \"title\": \"T\", \"other\": []}\n\n{\"text\": \"tw\\u00f6\", \"id\": \"x\"}\r\n{\"text\": \"three\", \"retrieve_on\": \"which?\"}"));
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->documents.size(), 3u);
  EXPECT_EQ(loaded->documents[0].id, "7");
  EXPECT_EQ(loaded->documents[0].title, "T");
  EXPECT_EQ(loaded->documents[1].text, "tw\xC3\xB6");
  EXPECT_THAT(loaded->documents[2].id, HasSubstr("a.jsonl:4"));
  EXPECT_EQ(loaded->documents[1].retrieve_on, "");
  EXPECT_EQ(loaded->documents[2].retrieve_on, "which?");
}

TEST_F(SourcesTest, BadJsonLinesAreNamedByLine) {
  const auto refused = [&](const std::string& line, const std::string& part) {
    ExpectRefused(Load(Write("bad.jsonl", "{\"text\": \"fine\"}\n" + line + "\n")), absl::StatusCode::kInvalidArgument, part);
  };
  refused("{\"text\": ", "bad.jsonl:2: not JSON");
  refused("[1]", "bad.jsonl:2: expected an object");
  refused("{\"txt\": \"a\"}", "bad.jsonl:2: the key \"text\" is missing");
  refused("{\"text\": 5}", "bad.jsonl:2: \"text\" is a number, not a string");
  refused("{\"text\": \"  \\n\"}", "bad.jsonl:2: \"text\" is empty");
  refused("{\"text\": \"a\", \"id\": []}", "bad.jsonl:2: \"id\" is a array");
  refused("{\"text\": \"a\", \"title\": 1}", "bad.jsonl:2: \"title\" is a number");
  refused("{\"text\": \"a\", \"retrieve_on\": []}", "bad.jsonl:2: \"retrieve_on\" is a array");
  refused("{\"text\": \"\\ud800\"}", "bad.jsonl:2: not JSON");
  ExpectRefused(Load(Write("none.jsonl", "\n\n")), absl::StatusCode::kInvalidArgument, "none.jsonl: holds no documents");
}

TEST_F(SourcesTest, Latin1IsRefusedWithFileOffsetAndTheOptionThatConverts) {
  const std::string path = Write("latin.txt", "caf\xe9");
  ExpectRefused(Load(path), absl::StatusCode::kInvalidArgument, path + ": not UTF-8: byte 0xe9 at offset 3");
  ExpectRefused(Load(path), absl::StatusCode::kInvalidArgument, "--encoding latin1");
  auto converted = Load(path, Encoding::kLatin1);
  ASSERT_TRUE(converted.ok());
  EXPECT_EQ(converted->documents[0].text, "caf\xC3\xA9");
  EXPECT_EQ(Load(Write("windows.txt", "it\x92s 5 \x80"), Encoding::kLatin1)->documents[0].text, "it\u2019s 5 \u20ac");  // dict-gcide has a few
  EXPECT_EQ(Load(Write("utf8.txt", "caf\xC3\xA9"), Encoding::kLatin1)->documents[0].text, "caf\xC3\xA9");  // stays as it is
  EXPECT_FALSE(ParseEncoding("utf-16").ok());
  EXPECT_THAT(std::string(ParseEncoding("utf-16").status().message()), HasSubstr("allowed are utf-8 and latin1"));
}

TEST_F(SourcesTest, EmptyUnknownAndMissingSourcesAreRefused) {
  ExpectRefused(Load(Write("empty.txt", " \n\t")), absl::StatusCode::kInvalidArgument, "empty.txt: the document is empty");
  ExpectRefused(Load(Write("book.pdf", "x")), absl::StatusCode::kInvalidArgument, "book.pdf: unknown extension '.pdf'; known are .txt");
  ExpectRefused(Load(directory_ + "/nowhere"), absl::StatusCode::kNotFound, "/nowhere: no such file or folder");
  fs::create_directories(directory_ + "/folder");
  ExpectRefused(Load(directory_ + "/folder"), absl::StatusCode::kInvalidArgument, "/folder: the folder holds no documents");
  ExpectRefused(LoadDocuments({}), absl::StatusCode::kInvalidArgument, "there is no source");
}

TEST_F(SourcesTest, AFolderIsReadInOrderAndOtherFilesAreCounted) {
  Write("f/b.txt", "second");
  Write("f/a/z.md", "first");
  Write("f/c.jsonl", "{\"text\": \"third\"}\n");
  Write("f/picture.png", "x");
  Write("f/README", "x");
  auto loaded = Load(directory_ + "/f");
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  ASSERT_EQ(loaded->documents.size(), 3u);
  EXPECT_EQ(loaded->documents[0].text, "first");
  EXPECT_EQ(loaded->documents[2].text, "third");
  EXPECT_EQ(loaded->skipped, (std::map<std::string, int>{{"", 1}, {".png", 1}}));
}

TEST_F(SourcesTest, ADictionaryHasAPagePerHeadword) {
  //                       0         10        20        30
  const std::string text = "header....iron\n metal  Iron\n age  aurum\n gold ";
  Write("d.dict.dz", Gzip(text));
  Write("d.index",
        "00-database-short\tA\tK\n00databaseinfo\tA\tK\n"
        "aurum\th\tM\ngold\th\tM\niron\tK\tN\niron\tX\tK\n");
  for (const char* name : {"/d.index", "/d.dict.dz", "/d"}) {
    auto loaded = Load(directory_ + name);
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    ASSERT_EQ(loaded->documents.size(), 2u);
    EXPECT_EQ(loaded->documents[0].id, "d:iron");
    EXPECT_EQ(loaded->documents[0].text, "iron\n metal\n\nIron\n age");  // both entries of the headword
    EXPECT_EQ(loaded->documents[1].title, "aurum");                       // "gold" is another name of the same entry
    EXPECT_EQ(loaded->documents[1].text, "aurum\n gold");
  }
  EXPECT_EQ(LoadDocuments({{directory_ + "/d.index"}, {directory_ + "/d.dict.dz"}})->documents.size(), 2u);  // read once
}

TEST_F(SourcesTest, ADamagedDictionaryIsNamed) {
  const std::string text = "iron metal", zipped = Gzip(std::string(5000, 'a') + text);
  const std::string index = Write("d.index", "iron\tA\tK\n");
  ExpectRefused(Load(index), absl::StatusCode::kNotFound, "has no text beside it");
  Write("d.dict.dz", zipped.substr(0, zipped.size() - 12));
  ExpectRefused(Load(index), absl::StatusCode::kDataLoss, "d.dict.dz: the gzip stream ends early");
  Write("d.dict.dz", "");
  ExpectRefused(Load(index), absl::StatusCode::kDataLoss, "d.dict.dz");
  Write("d.dict.dz", "this is not gzip");
  ExpectRefused(Load(index), absl::StatusCode::kDataLoss, "d.dict.dz: not a whole gzip stream");
  std::string flipped = zipped;
  flipped[flipped.size() - 6] ^= 1;  // its CRC
  Write("d.dict.dz", flipped);
  ExpectRefused(Load(index), absl::StatusCode::kDataLoss, "d.dict.dz: not a whole gzip stream");
  Write("d.dict.dz", Gzip(text));
  ASSERT_TRUE(Load(index).ok());
  Write("d.index", "iron\tA\tZ\n");
  ExpectRefused(Load(index), absl::StatusCode::kDataLoss, "d.index:1: 'iron' lies at 0..25, but the dictionary's text has 10 bytes");
  Write("d.index", "iron\tA\n");
  ExpectRefused(Load(index), absl::StatusCode::kInvalidArgument, "d.index:1: expected headword, offset and size");
  Write("d.index", "iron\tA\t-\n");
  ExpectRefused(Load(index), absl::StatusCode::kInvalidArgument, "d.index:1: size '-' is not a base-64 number");
}

TEST_F(SourcesTest, ADictionaryInLatin1IsConverted) {
  Write("l.dict", "caf\xe9 coffee");
  const std::string index = Write("l.index", "caf\xe9\tA\tL\n");
  ExpectRefused(Load(index), absl::StatusCode::kInvalidArgument, "l.dict: not UTF-8: byte 0xe9 at offset 3");
  auto loaded = Load(index, Encoding::kLatin1);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->documents[0].title, "caf\xC3\xA9");
  EXPECT_EQ(loaded->documents[0].text, "caf\xC3\xA9 coffee");
}

}  // namespace
}  // namespace membank
