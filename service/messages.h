// SPDX-License-Identifier: Apache-2.0
#pragma once

// (gRPC-heavy; include only from adapters.)

#include <atomic>
#include <memory>
#include <utility>

#include <google/protobuf/message.h>
#include <grpcpp/support/message_allocator.h>

namespace kek::service {

// Overwrites every bytes field of message (sub-messages included, maps not: no
// map of ours carries plaintext) and leaves it empty.
void WipeBytesFields(google::protobuf::Message& message) noexcept;

// CallMessages models the request and response of one call, which may outlive
// the call: gRPC holds one reference until the call is done, the worker that
// computes the answer another one. Whoever lets go last wipes both and frees
// them. References are thread-safe, the messages are not: the worker alone
// touches them while it works, gRPC before it starts and after it has finished
// the call.
class CallMessages {
 public:
  CallMessages() = default;
  CallMessages(const CallMessages&) = delete;
  CallMessages& operator=(const CallMessages&) = delete;

  // A reference; drops it on destruction.
  class Ref {
   public:
    Ref() = default;
    explicit Ref(CallMessages* messages) : messages_(messages) {
      if (messages_ != nullptr) messages_->references_.fetch_add(1);
    }
    Ref(Ref&& other) noexcept
        : messages_(std::exchange(other.messages_, nullptr)) {}
    Ref& operator=(Ref&& other) noexcept {
      std::swap(messages_, other.messages_);
      return *this;
    }
    ~Ref() {
      if (messages_ != nullptr) messages_->Drop();
    }

   private:
    CallMessages* messages_ = nullptr;
  };

 protected:
  virtual ~CallMessages() = default;
  void Drop() {
    if (references_.fetch_sub(1) == 1) delete this;
  }

 private:
  std::atomic<int> references_{1};
};

// Allocates the messages of one method so that they can outlive their call and
// are wiped. Dispatch::Run insists on it: an adapter has one per method,
//
//   WipingMessages<EncryptRequest, EncryptResponse> encrypt_messages_;
//   ... in the constructor: SetMessageAllocatorFor_Encrypt(&encrypt_messages_);
//
// Stateless and thread-safe; must outlive the server.
template <typename Request, typename Response>
class WipingMessages : public grpc::MessageAllocator<Request, Response> {
 public:
  grpc::MessageHolder<Request, Response>* AllocateMessages() override {
    return new Holder;
  }

 private:
  class Holder : public grpc::MessageHolder<Request, Response>,
                 public CallMessages {
   public:
    Holder() {
      this->set_request(&own_request_);
      this->set_response(&own_response_);
    }
    void Release() override { Drop(); }

   private:
    ~Holder() override {
      WipeBytesFields(own_request_);
      WipeBytesFields(own_response_);
    }
    Request own_request_;
    Response own_response_;
  };
};

}  // namespace kek::service
