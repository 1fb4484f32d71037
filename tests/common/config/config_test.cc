#include "common/config/config.h"

#include <fstream>

#include "common/base/status_macros.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace membank::config {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Options {
  std::string listen = "127.0.0.1:7000";
  uint64_t cache_bytes = 1024;
  double rate = 0.5;
  std::vector<std::string> worker;
  bool verbose = false;
};

struct Outcome {
  std::optional<int> code;
  std::string out, err;
  Options options;
};

Outcome Try(std::vector<const char*> arguments, const std::function<absl::Status(const Options&)>& validate = {}) {
  Outcome outcome;
  Options& o = outcome.options;
  CLI::App app("a test program", "prog");
  app.add_option("--listen", o.listen, "Address to serve on");
  app.add_option("--cache-bytes", o.cache_bytes, "Size of the cache [bytes]")->check(CLI::Range(uint64_t{16}, uint64_t{1} << 40));
  app.add_option("--rate", o.rate, "Rate [1/s]");
  app.add_option("--worker", o.worker, "A worker; repeat for more");
  app.add_flag("--verbose", o.verbose, "Say more");
  arguments.insert(arguments.begin(), "prog");
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  outcome.code = Parse(app, static_cast<int>(arguments.size()), arguments.data(),
                       [&] { return validate ? validate(o) : absl::OkStatus(); });
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

class ConfigTest : public testing::Test {
 protected:
  std::string File(const std::string& text) {
    const std::string path = testing::TempDir() + "config_test.toml";
    std::ofstream(path) << text;
    return path;
  }
  void SetEnvironment(const char* name, const char* value) {
    setenv(name, value, 1);
    set_.push_back(name);
  }
  void TearDown() override {
    for (const char* name : set_) unsetenv(name);
  }

 private:
  std::vector<const char*> set_;
};

TEST_F(ConfigTest, DefaultsHoldWhenNothingIsSaid) {
  const Outcome outcome = Try({});
  EXPECT_EQ(outcome.code, std::nullopt);
  EXPECT_EQ(outcome.options.cache_bytes, 1024u);
  EXPECT_TRUE(outcome.options.worker.empty());
}

TEST_F(ConfigTest, FlagBeatsEnvironmentBeatsFileBeatsDefault) {
  const std::string file = File("listen = \"file:1\"\ncache-bytes = 100\nrate = 2.5\n");
  SetEnvironment("MEMBANK_CACHE_BYTES", "200");
  SetEnvironment("MEMBANK_LISTEN", "environment:2");
  const Outcome outcome = Try({"--config", file.c_str(), "--listen", "flag:3"});
  EXPECT_EQ(outcome.code, std::nullopt) << outcome.err;
  EXPECT_EQ(outcome.options.listen, "flag:3");
  EXPECT_EQ(outcome.options.cache_bytes, 200u);
  EXPECT_EQ(outcome.options.rate, 2.5);
}

TEST_F(ConfigTest, ListsAndSwitchesFromEverySource) {
  const std::string file = File("worker = [\"a:1\", \"b:2\"]\nverbose = true\n");
  EXPECT_THAT(Try({"--config", file.c_str()}).options.worker, ElementsAre("a:1", "b:2"));
  EXPECT_TRUE(Try({"--config", file.c_str()}).options.verbose);
  EXPECT_THAT(Try({"--worker", "c:3", "--worker", "d:4"}).options.worker, ElementsAre("c:3", "d:4"));
  SetEnvironment("MEMBANK_VERBOSE", "true");
  EXPECT_TRUE(Try({}).options.verbose);
}

TEST_F(ConfigTest, UnknownFlagIsFatalAndSuggestsTheNearest) {
  const Outcome outcome = Try({"--cache-byte=5"});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("unknown flag --cache-byte; did you mean --cache-bytes?"));
  EXPECT_THAT(Try({"--something-else-entirely"}).err, HasSubstr("--help lists them all"));
  EXPECT_THAT(Try({"stray"}).err, HasSubstr("unexpected argument 'stray'"));
}

TEST_F(ConfigTest, UnknownKeyIsFatalAndSuggestsTheNearest) {
  const std::string file = File("# a comment\nlisen = \"x:1\"\n");
  const Outcome outcome = Try({"--config", file.c_str()});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr(file + ": unknown key 'lisen'; did you mean listen?"));
  const std::string section = File("[server]\nlisten = \"x:1\"\n");
  EXPECT_THAT(Try({"--config", section.c_str()}).err, HasSubstr("unknown key 'server.listen'"));
}

TEST_F(ConfigTest, BadValuesSayWhereTheyCameFrom) {
  const Outcome flag = Try({"--cache-bytes", "5"});
  EXPECT_EQ(flag.code, 2);
  EXPECT_THAT(flag.err, HasSubstr("--cache-bytes: Value 5 not in range 16 to"));
  SetEnvironment("MEMBANK_RATE", "fast");
  const Outcome environment = Try({});
  EXPECT_EQ(environment.code, 2);
  EXPECT_THAT(environment.err, HasSubstr("MEMBANK_RATE=fast"));
}

TEST_F(ConfigTest, BadValueInTheFileNamesTheFile) {
  const std::string file = File("cache-bytes = 5\n");
  const Outcome outcome = Try({"--config", file.c_str()});
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.err, HasSubstr(file));
}

TEST_F(ConfigTest, MissingFileAndHashInQuotesAreErrors) {
  const Outcome missing = Try({"--config", "/nowhere/at/all.toml"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("/nowhere/at/all.toml"));
  const std::string file = File("rate = 1\nlisten = \"a#b\"  # fine here\n");
  EXPECT_THAT(Try({"--config", file.c_str()}).err, HasSubstr("line 2: '#' inside a quoted value"));
}

TEST_F(ConfigTest, PrintedConfigReadsBackTheSame) {
  const Outcome printed = Try({"--listen", "host:9", "--worker", "a:1", "--worker", "b:2", "--rate", "0.25", "--verbose", "--print-config"});
  EXPECT_EQ(printed.code, 0) << printed.err;
  EXPECT_THAT(printed.out, HasSubstr("# Size of the cache [bytes]\ncache-bytes = 1024\n"));
  const std::string file = File(printed.out);
  const Outcome read = Try({"--config", file.c_str()});
  EXPECT_EQ(read.code, std::nullopt) << read.err;
  EXPECT_EQ(read.options.listen, "host:9");
  EXPECT_EQ(read.options.rate, 0.25);
  EXPECT_TRUE(read.options.verbose);
  EXPECT_THAT(read.options.worker, ElementsAre("a:1", "b:2"));
  EXPECT_EQ(Try({"--config", file.c_str(), "--print-config"}).out, printed.out);
}

TEST_F(ConfigTest, PrintedDefaultsReadBack) {
  const std::string file = File(Try({"--print-config"}).out);
  const Outcome read = Try({"--config", file.c_str()});
  EXPECT_EQ(read.code, std::nullopt) << read.err;
  EXPECT_TRUE(read.options.worker.empty());
}

TEST_F(ConfigTest, CheckConfigRunsTheValidation) {
  const auto validate = [](const Options& o) { return o.worker.empty() ? InvalidArgument("no worker: give --worker") : absl::OkStatus(); };
  const Outcome bad = Try({"--check-config"}, validate);
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.err, HasSubstr("no worker: give --worker"));
  EXPECT_EQ(Try({"--check-config", "--worker", "a:1"}, validate).code, 0);
}

TEST_F(ConfigTest, VersionAndHelp) {
  const Outcome version = Try({"--version"});
  EXPECT_EQ(version.code, 0);
  EXPECT_THAT(version.out, HasSubstr("commit"));
  EXPECT_THAT(Try({"--help"}).out, HasSubstr("Size of the cache"));
}

TEST(SubcommandTest, TheirFlagsGetTheEnvironmentAndSuggestions) {
  std::string router = "localhost:1";
  const auto run = [&](std::vector<const char*> arguments) {
    CLI::App app("commands", "prog");
    CLI::App* ask = app.add_subcommand("ask", "Asks");
    ask->add_option("--router", router, "Router");
    testing::internal::CaptureStderr();
    const auto code = Parse(app, static_cast<int>(arguments.size()), arguments.data());
    return std::make_pair(code, testing::internal::GetCapturedStderr());
  };
  const auto [code, err] = run({"prog", "ask", "--ruter", "x"});
  EXPECT_EQ(code, 2);
  EXPECT_THAT(err, HasSubstr("did you mean --router?"));
  setenv("MEMBANK_ROUTER", "there:2", 1);
  EXPECT_EQ(run({"prog", "ask"}).first, std::nullopt);
  unsetenv("MEMBANK_ROUTER");
  EXPECT_EQ(router, "there:2");
}

TEST(NearestTest, PicksTheClosestWithinReason) {
  EXPECT_EQ(Nearest("ports", {"port", "host"}), "port");
  EXPECT_EQ(Nearest("zzzzz", {"port", "host"}), std::nullopt);
}

TEST(EnvironmentNameTest, IsUpperCaseWithUnderscores) { EXPECT_EQ(EnvironmentName("--http-listen"), "MEMBANK_HTTP_LISTEN"); }

}  // namespace
}  // namespace membank::config
