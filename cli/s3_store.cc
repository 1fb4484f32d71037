#include "cli/s3_store.h"

#include <curl/curl.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "absl/strings/escaping.h"
#include "common/base/crc32c.h"
#include "common/base/log.h"
#include "common/base/status_macros.h"

namespace membank {
namespace {

constexpr int kAttempts = 7;  // waits 0.5, 1, 2, ... seconds between them

std::string Environment(std::initializer_list<const char*> names, const char* otherwise = "") {
  for (const char* name : names)
    if (const char* value = std::getenv(name); value != nullptr && *value != '\0') return value;
  return otherwise;
}

struct Answer {
  long code = 0;
  std::string body;
};

struct Upload {
  std::string_view left;
};

size_t TakeBody(char* bytes, size_t size, size_t count, void* body) {
  static_cast<std::string*>(body)->append(bytes, size * count);
  return size * count;
}

size_t GiveBody(char* bytes, size_t size, size_t count, void* upload) {
  std::string_view& left = static_cast<Upload*>(upload)->left;
  const size_t give = std::min(left.size(), size * count);
  std::memcpy(bytes, left.data(), give);
  left.remove_prefix(give);
  return give;
}

class S3Store final : public ObjectStore {
 public:
  S3Store(std::string place, std::string url) : place_(std::move(place)), url_(std::move(url)) {
    credentials_ = Environment({"AWS_ACCESS_KEY_ID"}) + ":" + Environment({"AWS_SECRET_ACCESS_KEY"});
    token_ = Environment({"AWS_SESSION_TOKEN"});
    signature_ = "aws:amz:" + Region() + ":s3";
  }
  static std::string Region() { return Environment({"AWS_REGION", "AWS_DEFAULT_REGION"}, "us-east-1"); }

  std::string PlaceOf(const std::string& name) const override { return place_ + "/" + name; }

  absl::Status Put(const std::string& name, std::string_view contents, bool only_new) override {
    const uint32_t crc = Crc32c(contents.data(), contents.size());
    const std::string big_endian = {static_cast<char>(crc >> 24), static_cast<char>(crc >> 16), static_cast<char>(crc >> 8), static_cast<char>(crc)};
    std::vector<std::string> headers = {"x-amz-checksum-crc32c: " + absl::Base64Escape(big_endian), "Content-Type: application/octet-stream", "Expect:"};
    if (only_new) headers.push_back("If-None-Match: *");
    ASSIGN_OR_RETURN(const Answer answer, Request(name, headers, &contents));
    if (answer.code == 412 || answer.code == 409) return AlreadyExists("{} exists", PlaceOf(name));
    return answer.code == 200 ? absl::OkStatus() : Refused("PUT", name, answer);
  }

  absl::StatusOr<std::string> Get(const std::string& name) override {
    ASSIGN_OR_RETURN(Answer answer, Request(name, {}, nullptr));
    if (answer.code == 404) return NotFound("{} does not exist", PlaceOf(name));
    if (answer.code != 200) return Refused("GET", name, answer);
    return std::move(answer.body);
  }

 private:
  absl::Status Refused(const char* method, const std::string& name, const Answer& answer) const {
    const std::string message = fmt::format("{} {} at {} was answered {}: {}", method, PlaceOf(name), url_, answer.code, answer.body.substr(0, 400));
    if (answer.code == 401 || answer.code == 403)
      return absl::PermissionDeniedError(message + " (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY decide who asks)");
    return answer.code == 429 || answer.code >= 500 ? absl::UnavailableError(message) : absl::FailedPreconditionError(message);
  }

  absl::StatusOr<Answer> Request(const std::string& name, const std::vector<std::string>& headers, const std::string_view* upload) const {
    static thread_local std::mt19937 random{std::random_device()()};
    for (int attempt = 1;; ++attempt) {
      const absl::StatusOr<Answer> answer = RequestOnce(name, headers, upload);
      const bool later = !answer.ok() || answer->code == 429 || answer->code >= 500;
      if (!later || attempt == kAttempts) return answer;
      const auto wait = std::chrono::milliseconds(250 << attempt) / 2 + std::chrono::milliseconds(random() % (250u << attempt));
      LOG_WARN("{}: {}; trying again in {} ms", PlaceOf(name), answer.ok() ? fmt::format("HTTP {}", answer->code) : answer.status().ToString(),
               wait.count());
      std::this_thread::sleep_for(wait);
    }
  }

  absl::StatusOr<Answer> RequestOnce(const std::string& name, const std::vector<std::string>& headers, const std::string_view* upload) const {
    const std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(), curl_easy_cleanup);
    if (curl == nullptr) return absl::InternalError("libcurl cannot be started");
    curl_slist* lines = nullptr;
    for (const std::string& header : headers) lines = curl_slist_append(lines, header.c_str());
    if (!token_.empty()) lines = curl_slist_append(lines, ("x-amz-security-token: " + token_).c_str());
    lines = curl_slist_append(lines, "x-amz-content-sha256: UNSIGNED-PAYLOAD");
    const std::unique_ptr<curl_slist, decltype(&curl_slist_free_all)> owned_lines(lines, curl_slist_free_all);
    Answer answer;
    Upload body{upload == nullptr ? std::string_view() : *upload};
    curl_easy_setopt(curl.get(), CURLOPT_URL, (url_ + "/" + name).c_str());
    curl_easy_setopt(curl.get(), CURLOPT_AWS_SIGV4, signature_.c_str());
    curl_easy_setopt(curl.get(), CURLOPT_USERPWD, credentials_.c_str());
    curl_easy_setopt(curl.get(), CURLOPT_HTTPHEADER, lines);
    curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl.get(), CURLOPT_CONNECTTIMEOUT, 10L);
    curl_easy_setopt(curl.get(), CURLOPT_LOW_SPEED_LIMIT, 1024L);  // bytes per second...
    curl_easy_setopt(curl.get(), CURLOPT_LOW_SPEED_TIME, 30L);     // ...for so long: given up
    curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, TakeBody);
    curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &answer.body);
    if (upload != nullptr) {
      curl_easy_setopt(curl.get(), CURLOPT_UPLOAD, 1L);
      curl_easy_setopt(curl.get(), CURLOPT_INFILESIZE_LARGE, static_cast<curl_off_t>(upload->size()));
      curl_easy_setopt(curl.get(), CURLOPT_READFUNCTION, GiveBody);
      curl_easy_setopt(curl.get(), CURLOPT_READDATA, &body);
    }
    const CURLcode code = curl_easy_perform(curl.get());
    if (code != CURLE_OK) return Unavailable("{} at {}: {}", PlaceOf(name), url_, curl_easy_strerror(code));
    curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &answer.code);
    return answer;
  }

  const std::string place_, url_;
  std::string credentials_, token_, signature_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<ObjectStore>> OpenS3Store(const std::string& place) {
  const std::string rest = place.substr(std::strlen("s3://"));
  const size_t slash = rest.find('/');
  const std::string bucket = rest.substr(0, slash);
  std::string prefix = slash == std::string::npos ? "" : rest.substr(slash + 1);
  while (!prefix.empty() && prefix.back() == '/') prefix.pop_back();
  const bool plain = std::all_of(rest.begin(), rest.end(), [](unsigned char c) { return std::isalnum(c) || std::strchr("/-_.", c) != nullptr; });
  if (bucket.empty() || prefix.empty() || !plain)
    return InvalidArgument("\"{}\" names no S3 prefix; expected s3://bucket/prefix with characters of A-Z a-z 0-9 / - _ .", place);
  if (Environment({"AWS_ACCESS_KEY_ID"}).empty() || Environment({"AWS_SECRET_ACCESS_KEY"}).empty())
    return absl::FailedPreconditionError("AWS_ACCESS_KEY_ID or AWS_SECRET_ACCESS_KEY is not set; S3 needs both");
  curl_global_init(CURL_GLOBAL_DEFAULT);
  std::string endpoint = Environment({"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"});
  while (!endpoint.empty() && endpoint.back() == '/') endpoint.pop_back();
  const std::string url = endpoint.empty() ? fmt::format("https://{}.s3.{}.amazonaws.com/{}", bucket, S3Store::Region(), prefix)
                                           : fmt::format("{}/{}/{}", endpoint, bucket, prefix);
  return std::make_unique<S3Store>(fmt::format("s3://{}/{}", bucket, prefix), url);
}

}  // namespace membank
