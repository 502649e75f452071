// A few threads that share out the rows of a batch, or its parts; each has its own scratch memory.
//
// Rows and parts must be independent of each other: the result does not depend on the number of threads. Small batches run
// on the caller's thread, because waking others costs microseconds. Threads start with the first large batch, look out for
// the next one for a moment, and sleep between steps. Threads do not survive a fork: a pool that came from another process is left behind, not joined. Where threads
// cannot be started, those that could do the work. One batch at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "fork_guard.h"

namespace rolltree {

template <class Scratch>
class Workers {
 public:
  static constexpr std::size_t kSmall = 32;  // rows that one thread does faster than it wakes another
  static constexpr std::size_t kMost = 4;    // the work is bound by memory latency beyond
  static constexpr std::size_t kChunk = 8;   // rows taken at a time
  static constexpr int kSpins = 1000;        // pauses before a thread sleeps, 20 to 50 microseconds

  explicit Workers(std::size_t threads = 0)
      : threads_(threads ? threads : std::clamp<std::size_t>(std::thread::hardware_concurrency() / 2, 1, kMost)) {}

  ~Workers() { stop(); }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  void set_threads(std::size_t threads) {
    stop();
    threads_ = std::max<std::size_t>(1, threads);
  }

  /// Calls work(from, to, scratch) for ranges of at most kChunk rows, which together are all below `rows`.
  template <class Work>
  void run(std::size_t rows, Work&& work) {
    divide((rows + kChunk - 1) / kChunk, rows < kSmall, [&](std::size_t chunk, Scratch& scratch) {
      work(chunk * kChunk, std::min((chunk + 1) * kChunk, rows), scratch);
    });
  }
  /// Calls work(part) for every part below `parts`, on this thread where the work is `small`.
  template <class Work>
  void share(std::size_t parts, bool small, Work&& work) {
    divide(parts, small, [&](std::size_t part, Scratch&) { work(part); });
  }

 private:
  template <class Work>
  void divide(std::size_t parts, bool small, Work&& work) {
    if (small || threads_ == 1) {
      for (std::size_t part = 0; part < parts; ++part) work(part, scratch_);
      return;
    }
    if (!pool_ || owner_ != getpid()) {
      stop();
      pool_ = std::make_unique<Pool>(threads_ - 1);
      owner_ = getpid();
    }
    std::atomic<std::size_t> next{0};
    const std::function<void(Scratch&)> share = [&](Scratch& scratch) {
      for (std::size_t part; (part = next.fetch_add(1)) < parts;) work(part, scratch);
    };
    pool_->run(share, scratch_);
  }
  void stop() {
    if (owner_ == getpid())
      pool_.reset();
    else
      (void)pool_.release();  // after a fork its threads do not exist: nothing to join
  }

  class Pool {
   public:
    explicit Pool(std::size_t others) : scratch_(others) {
      threads_.reserve(others);
      try {
        for (std::size_t i = 0; i < others; ++i) threads_.emplace_back([this, i] { serve(scratch_[i]); });
      } catch (const std::system_error&) {  // no more threads to be had: the caller's and those that started do it
      }
    }
    ~Pool() {
      {
        std::lock_guard lock(mutex_);
        stop_ = true;
      }
      wake_.notify_all();
      for (std::thread& t : threads_) t.join();
    }
    void run(const std::function<void(Scratch&)>& share, Scratch& mine) {
      {
        std::lock_guard lock(mutex_);
        share_ = &share;
        busy_ = threads_.size();
        ++round_;
      }
      wake_.notify_all();
      attempt(share, mine);
      spin([this] { return busy_ == 0; });
      std::unique_lock lock(mutex_);
      done_.wait(lock, [this] { return busy_ == 0; });
      if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
    }

   private:
    /// Waits for a moment without sleeping: the next part of a step comes sooner than a thread wakes.
    template <class Ready>
    static void spin(Ready&& ready) {
      for (int i = 0; i < kSpins && !ready(); ++i) pause();
    }
    static void pause() {
#if defined(__x86_64__) && defined(__GNUC__)
      __builtin_ia32_pause();
#else
      std::this_thread::yield();
#endif
    }
    /// The first exception of a batch is thrown to its caller, once all threads are done with it.
    void attempt(const std::function<void(Scratch&)>& share, Scratch& scratch) {
      try {
        share(scratch);
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!failure_) failure_ = std::current_exception();
      }
    }
    void serve(Scratch& scratch) {
      std::size_t seen = 0;
      std::unique_lock lock(mutex_);
      while (true) {
        lock.unlock();
        spin([&] { return stop_ || round_ != seen; });
        lock.lock();
        wake_.wait(lock, [&] { return stop_ || round_ != seen; });
        if (stop_) return;
        seen = round_;
        const auto* share = share_;
        lock.unlock();
        attempt(*share, scratch);
        lock.lock();
        if (--busy_ == 0) done_.notify_one();
      }
    }
    std::mutex mutex_;
    std::condition_variable wake_, done_;
    const std::function<void(Scratch&)>* share_ = nullptr;
    std::atomic<std::size_t> busy_{0}, round_{0};  // changed under the mutex
    std::exception_ptr failure_;
    std::atomic<bool> stop_{false};
    std::vector<Scratch> scratch_;
    std::vector<std::thread> threads_;
  };

  std::size_t threads_;
  int owner_ = 0;
  Scratch scratch_;
  std::unique_ptr<Pool> pool_;
};

}  // namespace rolltree
