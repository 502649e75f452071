// Locks that a forked child can use: all of them are held while the process forks, so that no copy is locked for ever.
//
// A child has only the thread that forked; whatever another thread held at that moment nobody would release in the child.
#pragma once

#include <algorithm>
#include <mutex>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <unistd.h>
#else
inline int getpid() { return 0; }
#endif

namespace rolltree {

/// A mutex that is taken before a fork and released on both sides. Holders must not fork or wait for each other.
class ForkSafeMutex {
 public:
  ForkSafeMutex() {
    std::lock_guard lock(registry().mutex);
    registry().all.push_back(&mutex_);
  }
  ~ForkSafeMutex() {
    std::lock_guard lock(registry().mutex);
    std::erase(registry().all, &mutex_);
  }
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  struct Registry {
    std::mutex mutex;
    std::vector<std::mutex*> all;
    Registry() {
#if defined(__unix__) || defined(__APPLE__)
      pthread_atfork(before, after, after);
#endif
    }
  };
  static Registry& registry() {
    static Registry* one = new Registry;  // never destroyed: a late fork may still ask for it
    return *one;
  }
  static void before() {
    registry().mutex.lock();
    for (std::mutex* m : registry().all) m->lock();
  }
  static void after() {
    for (std::mutex* m : registry().all) m->unlock();
    registry().mutex.unlock();
  }
  std::mutex mutex_;
};

}  // namespace rolltree
