// SPDX-License-Identifier: Apache-2.0
//
// The fault module driven directly, as a PKCS#11 application would, with
// SoftHSM behind it.
#include <dlfcn.h>
#include <p11-kit/pkcs11.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "base/sync.h"
#include "base/testing/matchers.h"
#include "base/testing/temp_dir.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/fault_module_rules.h"
#include "tests/support/fault_rules.h"

namespace kek::fault {
namespace {

using base::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

using Bytes = std::vector<CK_BYTE>;

base::Deadline Soon() { return base::DeadlineAfter(std::chrono::seconds(20)); }

TEST(FaultRuleTest, ParsesEveryWord) {
  ASSERT_OK_AND_ASSIGN(
      std::vector<Rule> rules,
      ParseRules("# comment\n\n"
                 "C_Encrypt after=3 count=-1 rv=DEVICE_ERROR post=1 "
                 "delay=5ms\n"
                 "C_Get* attr=CKA_EXTRACTABLE:1 every=4 size=32\n"
                 "* slot_offset=7\n"));
  ASSERT_EQ(rules.size(), 3u);
  EXPECT_EQ(rules[0].function, "C_Encrypt");
  EXPECT_EQ(rules[0].after, 3);
  EXPECT_EQ(rules[0].count, -1);
  EXPECT_EQ(rules[0].rv, CKR_DEVICE_ERROR);
  EXPECT_TRUE(rules[0].post);
  EXPECT_EQ(rules[0].delay, std::chrono::milliseconds(5));
  EXPECT_EQ(rules[1].attr->type, CKA_EXTRACTABLE);
  EXPECT_EQ(rules[1].attr->value, 1u);
  EXPECT_EQ(rules[1].every, 4);
  EXPECT_EQ(rules[1].size, 32u);
  EXPECT_EQ(rules[2].slot_offset, 7u);
}

TEST(FaultRuleTest, RefusesWhatItDoesNotUnderstand) {
  EXPECT_THAT(ParseRules("C_Login\nC_Encrypt rv=CKR_NO_SUCH\n"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("line 2: not understood: rv=CKR_NO_SUCH")));
  EXPECT_THAT(ParseRules("Encrypt rv=1"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseRules("C_Encrypt once=1"),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(ParseRules("C_Encrypt post=yes"),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(FaultRuleTest, AfterEveryAndCountSelectTheCalls) {
  ASSERT_OK_AND_ASSIGN(auto rules,
                       ParseRules("C_Encrypt after=1 every=2 count=2 rv=5"));
  RuleSet set(std::move(rules));
  std::string acted;
  for (int i = 0; i < 9; ++i) {
    acted += set.Match({"C_Encrypt"}).rv.has_value() ? 'x' : '.';
    EXPECT_FALSE(set.Match({"C_Decrypt"}).rv.has_value());
  }
  EXPECT_EQ(acted, "..x.x....");
}

TEST(FaultRuleTest, SameSessionStaysWithTheFirstSession) {
  ASSERT_OK_AND_ASSIGN(auto rules,
                       ParseRules("C_Encrypt same_session=1 count=-1 rv=5"));
  RuleSet set(std::move(rules));
  EXPECT_TRUE(set.Match({"C_Encrypt", 4}).rv.has_value());
  EXPECT_FALSE(set.Match({"C_Encrypt", 5}).rv.has_value());
  EXPECT_TRUE(set.Match({"C_Encrypt", 4}).rv.has_value());
}

TEST(FaultRuleTest, TheFirstRuleThatIsDueActs) {
  ASSERT_OK_AND_ASSIGN(
      auto rules, ParseRules("C_Encrypt after=1 rv=1\nC_* count=-1 rv=2\n"));
  RuleSet set(std::move(rules));
  EXPECT_EQ(set.Match({"C_Encrypt"}).rv, 2u);
  EXPECT_EQ(set.Match({"C_Encrypt"}).rv, 1u);
  EXPECT_EQ(set.Match({"C_Encrypt"}).rv, 2u);
}

class FaultModuleTest : public ::testing::Test {
 protected:
  void SetUp() override {
    tokens_.Write("softhsm2.conf",
                  "directories.tokendir = " + tokens_.path() +
                      "\nobjectstore.backend = file\nlog.level = ERROR\n"
                      "slots.removable = false\n");
    setenv("SOFTHSM2_CONF", tokens_.File("softhsm2.conf").c_str(), 1);
    rules_ = std::make_unique<FaultRules>();
    void* library = dlopen(FaultRules::ModulePath().c_str(), RTLD_NOW);
    ASSERT_NE(library, nullptr) << dlerror();
    const auto get_list = reinterpret_cast<CK_C_GetFunctionList>(
        dlsym(library, "C_GetFunctionList"));
    ASSERT_NE(get_list, nullptr);
    ASSERT_EQ(get_list(&p11_), CKR_OK);
    EXPECT_EQ(p11_->version.major, 2);
    EXPECT_EQ(p11_->version.minor, 40);
    Initialize();
    CK_SLOT_ID slot = Slots(CK_FALSE).back();
    CK_UTF8CHAR label[32];
    std::memset(label, ' ', sizeof label);
    std::memcpy(label, "fault", 5);
    ASSERT_EQ(p11_->C_InitToken(slot, Pin(), 4, label), CKR_OK);
    slot_ = Slots(CK_TRUE).front();
    CK_SESSION_HANDLE so = Open();
    ASSERT_EQ(p11_->C_Login(so, CKU_SO, Pin(), 4), CKR_OK);
    ASSERT_EQ(p11_->C_InitPIN(so, Pin(), 4), CKR_OK);
    ASSERT_EQ(p11_->C_CloseSession(so), CKR_OK);
    session_ = Open();
    ASSERT_EQ(p11_->C_Login(session_, CKU_USER, Pin(), 4), CKR_OK);
    key_ = Generate();
    rules_->Forget();
  }

  void TearDown() override {
    if (p11_ != nullptr) p11_->C_Finalize(nullptr);
  }

  static CK_UTF8CHAR_PTR Pin() {
    static CK_UTF8CHAR pin[] = "1234";
    return pin;
  }
  void Initialize() {
    CK_C_INITIALIZE_ARGS args = {};
    args.flags = CKF_OS_LOCKING_OK;
    ASSERT_EQ(p11_->C_Initialize(&args), CKR_OK);
  }
  std::vector<CK_SLOT_ID> Slots(CK_BBOOL present) {
    std::vector<CK_SLOT_ID> slots(16);
    CK_ULONG count = slots.size();
    EXPECT_EQ(p11_->C_GetSlotList(present, slots.data(), &count), CKR_OK);
    slots.resize(count);
    return slots;
  }
  CK_SESSION_HANDLE Open() {
    CK_SESSION_HANDLE session = 0;
    EXPECT_EQ(p11_->C_OpenSession(slot_, CKF_SERIAL_SESSION | CKF_RW_SESSION,
                                  nullptr, nullptr, &session),
              CKR_OK);
    return session;
  }
  CK_RV TryGenerate(CK_OBJECT_HANDLE* key) {
    CK_ULONG size = 32;
    CK_BBOOL yes = CK_TRUE;
    CK_BBOOL no = CK_FALSE;
    CK_ATTRIBUTE attributes[] = {
        {CKA_VALUE_LEN, &size, sizeof size},
        {CKA_TOKEN, &yes, 1},
        {CKA_PRIVATE, &yes, 1},
        {CKA_SENSITIVE, &yes, 1},
        {CKA_EXTRACTABLE, &no, 1},
        {CKA_ENCRYPT, &yes, 1},
        {CKA_DECRYPT, &yes, 1},
        {CKA_COPYABLE, &no, 1},
    };
    CK_MECHANISM mechanism = {CKM_AES_KEY_GEN, nullptr, 0};
    return p11_->C_GenerateKey(session_, &mechanism, attributes, 8, key);
  }
  CK_OBJECT_HANDLE Generate() {
    CK_OBJECT_HANDLE key = 0;
    EXPECT_EQ(TryGenerate(&key), CKR_OK);
    return key;
  }
  static CK_MECHANISM Gcm() {
    static CK_BYTE iv[12] = {0xab, 1};
    static CK_BYTE aad[] = {'a'};
    static CK_GCM_PARAMS params = {iv, sizeof iv, 96, aad, sizeof aad, 128};
    return {CKM_AES_GCM, &params, sizeof params};
  }
  CK_RV Encrypt(Bytes& out, CK_OBJECT_HANDLE key, CK_SESSION_HANDLE session) {
    CK_MECHANISM mechanism = Gcm();
    CK_RV rv = p11_->C_EncryptInit(session, &mechanism, key);
    if (rv != CKR_OK) return rv;
    Bytes in(32, 7);
    out.assign(64, 0);
    CK_ULONG size = out.size();
    rv = p11_->C_Encrypt(session, in.data(), in.size(), out.data(), &size);
    out.resize(size);
    return rv;
  }
  CK_RV Encrypt() {
    Bytes ignored;
    return Encrypt(ignored, key_, session_);
  }
  Bytes Encrypted(CK_OBJECT_HANDLE key) {
    Bytes out;
    EXPECT_EQ(Encrypt(out, key, session_), CKR_OK);
    return out;
  }
  Bytes Random(CK_ULONG size) {
    Bytes out(size);
    EXPECT_EQ(p11_->C_GenerateRandom(session_, out.data(), size), CKR_OK);
    return out;
  }

  base::testing::TempDir tokens_;
  std::unique_ptr<FaultRules> rules_;
  CK_FUNCTION_LIST_PTR p11_ = nullptr;
  CK_SLOT_ID slot_ = 0;
  CK_SESSION_HANDLE session_ = 0;
  CK_OBJECT_HANDLE key_ = 0;
};

TEST_F(FaultModuleTest, ForwardsAndLogsEveryCall) {
  EXPECT_EQ(Encrypted(key_).size(), 48u);
  const std::vector<FaultRules::Call> calls = rules_->Calls();
  ASSERT_EQ(calls.size(), 2u);
  EXPECT_EQ(calls[0].function, "C_EncryptInit");
  EXPECT_EQ(calls[0].rv, CKR_OK);
  EXPECT_EQ(calls[0].details.at("iv"), "ab0100000000000000000000");
  EXPECT_EQ(calls[0].details.at("session"), std::to_string(session_));
  EXPECT_EQ(calls[0].details.at("key"), std::to_string(key_));
  EXPECT_EQ(calls[1].function, "C_Encrypt");
  EXPECT_EQ(calls[1].details.at("size"), "32");
  EXPECT_EQ(rules_->Count("C_*crypt*"), 2);
  EXPECT_THAT(rules_->Violations(), IsEmpty());
}

TEST_F(FaultModuleTest, NoEntryOfTheFunctionListIsMissing) {
  // version, then pointers only.
  const auto* entry = reinterpret_cast<void* const*>(p11_) + 1;
  const auto* end = reinterpret_cast<void* const*>(p11_ + 1);
  for (; entry != end; ++entry) {
    EXPECT_NE(*entry, nullptr)
        << "entry " << entry - reinterpret_cast<void* const*>(p11_);
  }
}

TEST_F(FaultModuleTest, RulesChangeAtRunTime) {
  EXPECT_EQ(Encrypt(), CKR_OK);
  rules_->Set({"C_EncryptInit rv=CKR_DEVICE_ERROR"});
  EXPECT_EQ(Encrypt(), CKR_DEVICE_ERROR);
  EXPECT_EQ(Encrypt(), CKR_OK);
  rules_->Set({"C_EncryptInit rv=0x80000123 count=-1"});
  EXPECT_EQ(Encrypt(), 0x80000123u);
  EXPECT_EQ(Encrypt(), 0x80000123u);
  rules_->Clear();
  EXPECT_EQ(Encrypt(), CKR_OK);
}

TEST_F(FaultModuleTest, PostErrorComesAfterTheRealCall) {
  rules_->Set({"C_Encrypt rv=CKR_DEVICE_ERROR post=1"});
  EXPECT_EQ(Encrypt(), CKR_DEVICE_ERROR);
  // The operation ended: the session takes the next one.
  EXPECT_EQ(Encrypt(), CKR_OK);
  rules_->Set({"C_Encrypt rv=CKR_DEVICE_ERROR"});
  EXPECT_EQ(Encrypt(), CKR_DEVICE_ERROR);
  EXPECT_EQ(Encrypt(), CKR_OPERATION_ACTIVE);
}

TEST_F(FaultModuleTest, OutputIsChangedAsTold) {
  const Bytes honest = Encrypted(key_);
  rules_->Set({"C_Encrypt flip=9", "C_Encrypt zero=1", "C_Encrypt short=3",
               "C_Encrypt long=2"});
  Bytes flipped = Encrypted(key_);
  flipped[1] ^= 2;
  EXPECT_EQ(flipped, honest);
  EXPECT_EQ(Encrypted(key_), Bytes(48, 0));
  EXPECT_EQ(Encrypted(key_).size(), 45u);
  EXPECT_EQ(Encrypted(key_).size(), 50u);
  EXPECT_EQ(Encrypted(key_), honest);
}

TEST_F(FaultModuleTest, RandomCanBeZeroOrRepeat) {
  rules_->Set({"C_GenerateRandom zero=1", "C_GenerateRandom count=2 repeat=1"});
  EXPECT_EQ(Random(16), Bytes(16, 0));
  const Bytes first = Random(16);
  EXPECT_NE(first, Bytes(16, 0));
  EXPECT_EQ(Random(16), first);
  EXPECT_NE(Random(16), first);
}

TEST_F(FaultModuleTest, SwapkeyUsesAnotherKey) {
  const CK_OBJECT_HANDLE other = Generate();
  const Bytes by_key = Encrypted(key_);
  const Bytes by_other = Encrypted(other);
  ASSERT_NE(by_key, by_other);
  rules_->Set({"C_*cryptInit swapkey=1 count=-1"});
  EXPECT_EQ(Encrypted(key_), by_other);
  EXPECT_EQ(Encrypted(other), by_key);
  EXPECT_EQ(rules_->Calls("C_EncryptInit").back().details.at("swapped"),
            std::to_string(key_));
}

TEST_F(FaultModuleTest, DropsessionsClosesThemAll) {
  rules_->Set({"C_EncryptInit dropsessions=1"});
  EXPECT_EQ(Encrypt(), CKR_SESSION_HANDLE_INVALID);
  session_ = Open();
  EXPECT_EQ(Encrypt(), CKR_OBJECT_HANDLE_INVALID);
  EXPECT_EQ(p11_->C_Login(session_, CKU_USER, Pin(), 4), CKR_OK);
}

TEST_F(FaultModuleTest, LogoutEndsTheLoginAndKeepsTheSessions) {
  rules_->Set({"C_EncryptInit logout=1"});
  EXPECT_NE(Encrypt(), CKR_OK);
  CK_SESSION_INFO info = {};
  ASSERT_EQ(p11_->C_GetSessionInfo(session_, &info), CKR_OK);
  EXPECT_EQ(info.state, CKS_RW_PUBLIC_SESSION);
}

TEST_F(FaultModuleTest, FinalizeAndReinitHappenBehindTheCaller) {
  rules_->Set({"C_GenerateRandom finalize=1"});
  CK_BYTE byte;
  EXPECT_EQ(p11_->C_GenerateRandom(session_, &byte, 1),
            CKR_CRYPTOKI_NOT_INITIALIZED);
  Initialize();
  slot_ =
      Slots(CK_TRUE).front();  // SoftHSM renames a new slot at the next start
  session_ = Open();
  rules_->Set({"C_GenerateRandom reinit=1"});
  EXPECT_EQ(p11_->C_GenerateRandom(session_, &byte, 1),
            CKR_SESSION_HANDLE_INVALID);
  session_ = Open();
  EXPECT_EQ(p11_->C_GenerateRandom(session_, &byte, 1), CKR_OK);
}

TEST_F(FaultModuleTest, RulesGoOnCountingAcrossInitialize) {
  rules_->Set({"C_GenerateRandom rv=CKR_DEVICE_ERROR"});
  CK_BYTE byte;
  EXPECT_EQ(p11_->C_GenerateRandom(session_, &byte, 1), CKR_DEVICE_ERROR);
  ASSERT_EQ(p11_->C_Finalize(nullptr), CKR_OK);
  Initialize();
  slot_ = Slots(CK_TRUE).front();
  session_ = Open();
  EXPECT_EQ(p11_->C_GenerateRandom(session_, &byte, 1), CKR_OK);
}

TEST_F(FaultModuleTest, AttributesReadBackAreChanged) {
  CK_BBOOL extractable = CK_FALSE;
  CK_ULONG size = 0;
  CK_ATTRIBUTE attributes[] = {{CKA_EXTRACTABLE, &extractable, 1},
                               {CKA_VALUE_LEN, &size, sizeof size}};
  rules_->Set({"C_GetAttributeValue attr=CKA_EXTRACTABLE:1",
               "C_GetAttributeValue attr=CKA_VALUE_LEN:16",
               "C_GetAttributeValue attr=CKA_VALUE_LEN:none"});
  ASSERT_EQ(p11_->C_GetAttributeValue(session_, key_, attributes, 2), CKR_OK);
  EXPECT_EQ(extractable, CK_TRUE);
  EXPECT_EQ(size, 32u);
  ASSERT_EQ(p11_->C_GetAttributeValue(session_, key_, attributes, 2), CKR_OK);
  EXPECT_EQ(extractable, CK_FALSE);
  EXPECT_EQ(size, 16u);
  EXPECT_EQ(p11_->C_GetAttributeValue(session_, key_, attributes, 2),
            CKR_ATTRIBUTE_TYPE_INVALID);
  EXPECT_EQ(attributes[1].ulValueLen, CK_UNAVAILABLE_INFORMATION);
}

TEST_F(FaultModuleTest, FindFindsNoneOrOneTwice) {
  const auto find = [&] {
    std::vector<CK_OBJECT_HANDLE> found(8);
    CK_ULONG count = 0;
    EXPECT_EQ(p11_->C_FindObjectsInit(session_, nullptr, 0), CKR_OK);
    EXPECT_EQ(p11_->C_FindObjects(session_, found.data(), 8, &count), CKR_OK);
    EXPECT_EQ(p11_->C_FindObjectsFinal(session_), CKR_OK);
    found.resize(count);
    return found;
  };
  rules_->Set({"C_FindObjects find=0", "C_FindObjects find=2"});
  EXPECT_THAT(find(), IsEmpty());
  EXPECT_THAT(find(), ElementsAre(key_, key_));
  EXPECT_THAT(find(), ElementsAre(key_));
}

TEST_F(FaultModuleTest, TemplatesWithAnAttributeAreRefused) {
  CK_OBJECT_HANDLE key = 0;
  rules_->Set({"C_GenerateKey refuse_attr=CKA_COPYABLE:TEMPLATE_INCONSISTENT",
               "C_GenerateKey refuse_attr=CKA_TRUSTED"});
  EXPECT_EQ(TryGenerate(&key), CKR_TEMPLATE_INCONSISTENT);
  EXPECT_EQ(TryGenerate(&key), CKR_OK);
}

TEST_F(FaultModuleTest, TokenFlagsAndSessionStateAreChanged) {
  rules_->Set({"C_GetTokenInfo flags=0x20000 flags_clear=0x4 count=-1",
               "C_GetSessionInfo state=0"});
  CK_TOKEN_INFO token = {};
  ASSERT_EQ(p11_->C_GetTokenInfo(slot_, &token), CKR_OK);
  EXPECT_TRUE(token.flags & CKF_USER_PIN_FINAL_TRY);
  EXPECT_FALSE(token.flags & CKF_LOGIN_REQUIRED);
  CK_SESSION_INFO session = {};
  ASSERT_EQ(p11_->C_GetSessionInfo(session_, &session), CKR_OK);
  EXPECT_EQ(session.state, CKS_RO_PUBLIC_SESSION);
  ASSERT_EQ(p11_->C_GetSessionInfo(session_, &session), CKR_OK);
  EXPECT_EQ(session.state, CKS_RW_USER_FUNCTIONS);
}

TEST_F(FaultModuleTest, SlotsVanishReverseAndMove) {
  // SoftHSM shows the next free slot, and the token's lasting slot id, from the
  // next start on.
  ASSERT_EQ(p11_->C_Finalize(nullptr), CKR_OK);
  Initialize();
  slot_ = Slots(CK_TRUE).front();
  const std::vector<CK_SLOT_ID> slots = Slots(CK_FALSE);
  ASSERT_EQ(slots.size(), 2u);
  rules_->Set({"C_GetSlotList slots=none", "C_GetSlotList slots=reverse"});
  EXPECT_THAT(Slots(CK_FALSE), IsEmpty());
  EXPECT_THAT(Slots(CK_FALSE), ElementsAre(slots[1], slots[0]));
  rules_->Set({"* slot_offset=100"});
  EXPECT_THAT(Slots(CK_FALSE), ElementsAre(slots[0] + 100, slots[1] + 100));
  CK_TOKEN_INFO token = {};
  EXPECT_EQ(p11_->C_GetTokenInfo(slot_ + 100, &token), CKR_OK);
  EXPECT_EQ(p11_->C_GetTokenInfo(slot_, &token), CKR_SLOT_ID_INVALID);
}

TEST_F(FaultModuleTest, HangsUntilReleasedAndLetsOthersPass) {
  rules_->Set({"C_Encrypt hang=" + rules_->HangFile()});
  const CK_SESSION_HANDLE hung = Open();
  CK_RV rv = CKR_GENERAL_ERROR;
  std::thread thread([&] {
    Bytes out;
    rv = Encrypt(out, key_, hung);
  });
  EXPECT_TRUE(rules_->WaitForHangs(1, Soon()));
  EXPECT_EQ(Encrypt(), CKR_OK);
  EXPECT_THAT(rules_->Violations(), IsEmpty());
  // What must not be done meanwhile is seen.
  CK_SESSION_INFO info;
  p11_->C_GetSessionInfo(hung, &info);
  EXPECT_THAT(rules_->Violations(),
              ElementsAre("! C_GetSessionInfo on busy session " +
                          std::to_string(hung)));
  rules_->Release();
  thread.join();
  EXPECT_EQ(rv, CKR_OK);
}

TEST_F(FaultModuleTest, ABadRuleFileKeepsTheOldRules) {
  rules_->Set({"C_EncryptInit rv=CKR_DEVICE_ERROR count=-1"});
  EXPECT_EQ(Encrypt(), CKR_DEVICE_ERROR);
  // The next line is still being written; the file is not replaced by rename.
  const std::string path = std::getenv("KEKD_FAULT_RULES");
  std::FILE* file = std::fopen(path.c_str(), "a");
  ASSERT_NE(file, nullptr);
  std::fputs("C_Encr", file);
  std::fclose(file);
  EXPECT_EQ(Encrypt(), CKR_DEVICE_ERROR);
  EXPECT_THAT(rules_->Violations(), IsEmpty());
  file = std::fopen(path.c_str(), "a");
  ASSERT_NE(file, nullptr);
  std::fputs("ypt nonsense=1\n", file);
  std::fclose(file);
  EXPECT_EQ(Encrypt(), CKR_DEVICE_ERROR);
  EXPECT_THAT(rules_->Violations(), ElementsAre(HasSubstr("nonsense=1")));
}

TEST_F(FaultModuleTest, ResetsUnderLoadDisturbOnlyAsTold) {
  rules_->Set({"C_Encrypt every=50 count=20 logout=1",
               "C_Encrypt every=97 count=20 delay=1ms"});
  std::atomic<int> calls{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, session = Open()] {
      while (calls.fetch_add(1) < 2000) {
        Bytes out;
        CK_OBJECT_HANDLE key = key_;
        Encrypt(out, key, session);
        p11_->C_Login(session, CKU_USER, Pin(), 4);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(rules_->Violations(), IsEmpty());
}

TEST_F(FaultModuleTest, AbortAndExitEndTheProcess) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        rules_->Set({"C_Encrypt abort=1"});
        Encrypt();
      },
      "");
  EXPECT_EXIT(
      {
        rules_->Set({"C_Encrypt exit=7"});
        Encrypt();
      },
      ::testing::ExitedWithCode(7), "");
}

}  // namespace
}  // namespace kek::fault
