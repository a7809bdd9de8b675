// SPDX-License-Identifier: Apache-2.0
#include "service/messages.h"

#include <string>

#include "google/cloud/kms/v1/service.pb.h"
#include "gtest/gtest.h"
#include "kubernetes/kms/v2/api.pb.h"

namespace kek::service {
namespace {

// Whether size bytes at data are all zero.
bool IsZero(const char* data, size_t size) {
  return std::string(data, size) == std::string(size, '\0');
}

TEST(MessagesTest, BytesFieldsAreOverwrittenInPlaceAndTextStays) {
  v2::EncryptRequest request;
  request.set_plaintext(std::string(64, 'k'));
  request.set_uid("uid-1");
  const char* const buffer = request.plaintext().data();

  WipeBytesFields(request);

  EXPECT_TRUE(IsZero(buffer, 64));
  EXPECT_EQ(request.plaintext(), "");
  EXPECT_EQ(request.uid(), "uid-1");
}

TEST(MessagesTest, ShortSecretsInsideTheStringAreOverwrittenToo) {
  v2::DecryptResponse response;
  response.set_plaintext("short-key");
  const char* const buffer = response.plaintext().data();
  WipeBytesFields(response);
  EXPECT_TRUE(IsZero(buffer, 9));
}

TEST(MessagesTest, EmptyMessageAndTheSharedEmptyStringAreLeftAlone) {
  google::cloud::kms::v1::EncryptRequest request;
  WipeBytesFields(request);
  google::cloud::kms::v1::EncryptRequest other;
  EXPECT_EQ(other.plaintext(), "");
  EXPECT_EQ(request.SerializeAsString(), "");
}

TEST(MessagesTest, WhoeverLetsGoLastFrees) {
  WipingMessages<v2::EncryptRequest, v2::EncryptResponse> allocator;
  auto* holder = allocator.AllocateMessages();
  holder->request()->set_plaintext("secret");
  auto* messages = dynamic_cast<CallMessages*>(
      static_cast<grpc::RpcAllocatorState*>(holder));
  ASSERT_NE(messages, nullptr);
  CallMessages::Ref worker(messages);

  holder->Release();  // gRPC is done

  // Still there for the worker; AddressSanitizer would object otherwise.
  EXPECT_EQ(holder->request()->plaintext(), "secret");
  CallMessages::Ref moved(std::move(worker));
  holder->response()->set_ciphertext("late");
}

}  // namespace
}  // namespace kek::service
