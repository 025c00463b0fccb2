// Deadline: a timer on a connection's strand. Used by http_server.cc only.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <chrono>
#include <cstdint>
#include <utility>

namespace lserve {

using Strand = boost::asio::strand<boost::asio::io_context::executor_type>;

// A timer that calls `action` on the strand unless it is set anew or cancelled before.
class Deadline {
 public:
  explicit Deadline(const Strand& strand) : timer_(strand) {}

  template <class Action>
  void Set(double seconds, Action action) {
    const uint64_t epoch = ++epoch_;
    timer_.expires_after(std::chrono::duration_cast<std::chrono::steady_clock::duration>(
        std::chrono::duration<double>(seconds)));
    timer_.async_wait(
        [this, epoch, action = std::move(action)](const boost::system::error_code& error) {
          // A timer that has fired can not be cancelled any more: hence the epoch. The action keeps
          // the owner of this object alive.
          if (!error && epoch == epoch_) action();
        });
  }
  void Cancel() {
    ++epoch_;
    timer_.cancel();
  }

 private:
  boost::asio::steady_timer timer_;
  uint64_t epoch_ = 0;
};

}  // namespace lserve
