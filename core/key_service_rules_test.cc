// SPDX-License-Identifier: Apache-2.0
#include "core/key_service_rules.h"

#include "base/testing/matchers.h"

namespace kek::core {
namespace {

using base::testing::IsOkAndHolds;
using base::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::Optional;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
const absl::Time kDay1 = absl::FromUnixSeconds(1'800'000'000);

TEST(ChooseAlgorithmTest, DefaultExistsForEncryptDecryptOnly) {
  EXPECT_THAT(ChooseAlgorithm(catalog::Purpose::kEncryptDecrypt, 0),
              IsOkAndHolds(1));
  for (const catalog::Purpose purpose :
       {catalog::Purpose::kAsymmetricSign, catalog::Purpose::kAsymmetricDecrypt,
        catalog::Purpose::kRawEncryptDecrypt, catalog::Purpose::kMac}) {
    EXPECT_THAT(ChooseAlgorithm(purpose, 0), StatusIs(kInvalid));
  }
}

TEST(ChooseAlgorithmTest, AlgorithmOfAnotherPurposeIsRefused) {
  EXPECT_THAT(ChooseAlgorithm(catalog::Purpose::kEncryptDecrypt, 32),
              StatusIs(kInvalid));
  EXPECT_THAT(ChooseAlgorithm(catalog::Purpose::kMac, 1), StatusIs(kInvalid));
}

TEST(CheckScheduleTest, PeriodHasBoundsAndNeedsANextTime) {
  constexpr auto kPurpose = catalog::Purpose::kEncryptDecrypt;
  EXPECT_OK(CheckSchedule(kPurpose, std::nullopt, std::nullopt));
  EXPECT_OK(CheckSchedule(kPurpose, std::nullopt, kDay1));
  EXPECT_OK(CheckSchedule(kPurpose, absl::Hours(24), kDay1));
  EXPECT_OK(CheckSchedule(kPurpose, absl::Hours(876000), kDay1));
  EXPECT_THAT(CheckSchedule(kPurpose, absl::Seconds(86399), kDay1),
              StatusIs(kInvalid, HasSubstr("rotation_period")));
  EXPECT_THAT(
      CheckSchedule(kPurpose, absl::Hours(876000) + absl::Seconds(1), kDay1),
      StatusIs(kInvalid, HasSubstr("rotation_period")));
  EXPECT_THAT(CheckSchedule(kPurpose, absl::Hours(24), std::nullopt),
              StatusIs(kInvalid, HasSubstr("next_rotation_time")));
}

TEST(CheckScheduleTest, OnlyEncryptDecryptRotates) {
  EXPECT_OK(CheckSchedule(catalog::Purpose::kMac, std::nullopt, std::nullopt));
  EXPECT_THAT(CheckSchedule(catalog::Purpose::kMac, absl::Hours(24), kDay1),
              StatusIs(kInvalid));
  EXPECT_THAT(CheckSchedule(catalog::Purpose::kMac, std::nullopt, kDay1),
              StatusIs(kInvalid));
}

TEST(CheckLabelsTest, KeysAndValuesHaveAForm) {
  EXPECT_OK(CheckLabels({}));
  EXPECT_OK(CheckLabels({{"team", ""}, {"a-b_9", "x-1"}}));
  EXPECT_OK(CheckLabels({{std::string(63, 'a'), std::string(63, '9')}}));
  EXPECT_THAT(CheckLabels({{"", "x"}}), StatusIs(kInvalid));
  EXPECT_THAT(CheckLabels({{"Team", "x"}}), StatusIs(kInvalid));
  EXPECT_THAT(CheckLabels({{"1team", "x"}}), StatusIs(kInvalid));
  EXPECT_THAT(CheckLabels({{"team", "a\nb"}}), StatusIs(kInvalid));
  EXPECT_THAT(CheckLabels({{std::string(64, 'a'), ""}}), StatusIs(kInvalid));
  std::map<std::string, std::string> many;
  for (int i = 0; i < 64; ++i) many["k" + std::to_string(i)] = "";
  EXPECT_OK(CheckLabels(many));
  many["one-more"] = "";
  EXPECT_THAT(CheckLabels(many), StatusIs(kInvalid));
}

TEST(NextRotationTest, MovesByOnePeriodWhenOnTime) {
  EXPECT_THAT(NextRotation(absl::Hours(24), kDay1, kDay1),
              Optional(kDay1 + absl::Hours(24)));
  EXPECT_THAT(NextRotation(absl::Hours(24), kDay1, kDay1 + absl::Hours(23)),
              Optional(kDay1 + absl::Hours(24)));
}

TEST(NextRotationTest, SkipsWhatWasMissed) {
  EXPECT_THAT(NextRotation(absl::Hours(24), kDay1, kDay1 + absl::Hours(24)),
              Optional(kDay1 + absl::Hours(48)));
  EXPECT_THAT(NextRotation(absl::Hours(24), kDay1, kDay1 + absl::Hours(100)),
              Optional(kDay1 + absl::Hours(120)));
}

TEST(NextRotationTest, WithoutAPeriodThereIsNone) {
  EXPECT_EQ(NextRotation(std::nullopt, kDay1, kDay1), std::nullopt);
}

}  // namespace
}  // namespace kek::core
