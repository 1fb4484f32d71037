// Debian's abseil and gRPC are not built with ThreadSanitizer, so it would not see that absl's locks and the operations of a call order
// anything, and every guarded member would be reported. This file, linked into every program of the preset tsan, stands in front of the
// functions that we and gRPC use, tells the sanitizer what they order, and calls the real ones. While abseil evaluates Conditions (which it
// does in whatever thread unlocks) their reads are not looked at: they happen under the lock, but between our two notes.
#include <dlfcn.h>
#include <sanitizer/tsan_interface.h>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "grpc/grpc.h"

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
}

namespace {

template <typename Function>
Function* Real(const char* mangled) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, mangled));
}

// What a waiting call does: gives up what `order` protects, sees what its wakers did.
template <typename Wait>
auto Waiting(const void* order, Wait wait) {
  struct Around {
    explicit Around(const void* order) : order(const_cast<void*>(order)) {
      __tsan_release(this->order);
      AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    }
    ~Around() {
      AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
      __tsan_acquire(order);
    }
    void* const order;
  } around(order);
  return wait();
}

// After the last line of `unlock` the lock may be gone.
template <typename Unlock>
void Unlocking(void* lock, Unlock unlock) {
  __tsan_release(lock);
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  unlock();
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
}

}  // namespace

#define ABSL_SYMBOL(rest) "_ZN4absl7debian3" rest
#define ABSL_CONST_SYMBOL(rest) "_ZNK4absl7debian3" rest

namespace absl {

void Mutex::Lock() {
  static const auto real = Real<void(Mutex*)>(ABSL_SYMBOL("5Mutex4LockEv"));
  real(this);
  __tsan_acquire(this);
}

bool Mutex::TryLock() {
  static const auto real = Real<bool(Mutex*)>(ABSL_SYMBOL("5Mutex7TryLockEv"));
  if (!real(this)) return false;
  __tsan_acquire(this);
  return true;
}

void Mutex::Unlock() {
  static const auto real = Real<void(Mutex*)>(ABSL_SYMBOL("5Mutex6UnlockEv"));
  Unlocking(this, [&] { real(this); });
}

void Mutex::ReaderLock() {
  static const auto real = Real<void(Mutex*)>(ABSL_SYMBOL("5Mutex10ReaderLockEv"));
  real(this);
  __tsan_acquire(this);
}

void Mutex::ReaderUnlock() {
  static const auto real = Real<void(Mutex*)>(ABSL_SYMBOL("5Mutex12ReaderUnlockEv"));
  Unlocking(this, [&] { real(this); });
}

void Mutex::Await(const Condition& condition) {
  static const auto real = Real<void(Mutex*, const Condition&)>(ABSL_SYMBOL("5Mutex5AwaitERKNS0_9ConditionE"));
  Waiting(this, [&] { real(this, condition); });
}

bool Mutex::AwaitWithTimeout(const Condition& condition, Duration timeout) {
  static const auto real = Real<bool(Mutex*, const Condition&, Duration)>(ABSL_SYMBOL("5Mutex16AwaitWithTimeoutERKNS0_9ConditionENS0_8DurationE"));
  return Waiting(this, [&] { return real(this, condition, timeout); });
}

bool Mutex::AwaitWithDeadline(const Condition& condition, Time deadline) {
  static const auto real = Real<bool(Mutex*, const Condition&, Time)>(ABSL_SYMBOL("5Mutex17AwaitWithDeadlineERKNS0_9ConditionENS0_4TimeE"));
  return Waiting(this, [&] { return real(this, condition, deadline); });
}

void CondVar::Wait(Mutex* mutex) {
  static const auto real = Real<void(CondVar*, Mutex*)>(ABSL_SYMBOL("7CondVar4WaitEPNS0_5MutexE"));
  Waiting(mutex, [&] { real(this, mutex); });
}

bool CondVar::WaitWithTimeout(Mutex* mutex, Duration timeout) {
  static const auto real = Real<bool(CondVar*, Mutex*, Duration)>(ABSL_SYMBOL("7CondVar15WaitWithTimeoutEPNS0_5MutexENS0_8DurationE"));
  return Waiting(mutex, [&] { return real(this, mutex, timeout); });
}

bool CondVar::WaitWithDeadline(Mutex* mutex, Time deadline) {
  static const auto real = Real<bool(CondVar*, Mutex*, Time)>(ABSL_SYMBOL("7CondVar16WaitWithDeadlineEPNS0_5MutexENS0_4TimeE"));
  return Waiting(mutex, [&] { return real(this, mutex, deadline); });
}

void Notification::Notify() {
  static const auto real = Real<void(Notification*)>(ABSL_SYMBOL("12Notification6NotifyEv"));
  Unlocking(this, [&] { real(this); });
}

void Notification::WaitForNotification() const {
  static const auto real = Real<void(const Notification*)>(ABSL_CONST_SYMBOL("12Notification19WaitForNotificationEv"));
  Waiting(this, [&] { real(this); });
}

bool BlockingCounter::DecrementCount() {
  static const auto real = Real<bool(BlockingCounter*)>(ABSL_SYMBOL("15BlockingCounter14DecrementCountEv"));
  __tsan_release(this);
  return real(this);
}

void BlockingCounter::Wait() {
  static const auto real = Real<void(BlockingCounter*)>(ABSL_SYMBOL("15BlockingCounter4WaitEv"));
  Waiting(this, [&] { real(this); });
}

}  // namespace absl

// gRPC hands what belongs to a call between threads through queues without locks: what happened before an operation of a call was started
// happened before its end is told, which begins with giving back the reference to the call.
extern "C" grpc_call_error grpc_call_start_batch(grpc_call* call, const grpc_op* operations, size_t count, void* tag, void* reserved) {
  static const auto real = Real<grpc_call_error(grpc_call*, const grpc_op*, size_t, void*, void*)>("grpc_call_start_batch");
  __tsan_release(call);
  return real(call, operations, count, tag, reserved);
}

extern "C" void grpc_call_unref(grpc_call* call) {
  static const auto real = Real<void(grpc_call*)>("grpc_call_unref");
  __tsan_release(call);
  __tsan_acquire(call);
  real(call);
}
