// SPDX-License-Identifier: Apache-2.0
#include "base/metrics.h"

#include <map>

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include "base/sync.h"

namespace kek::base {
namespace {

class PrometheusCounter : public Metrics::Counter {
 public:
  explicit PrometheusCounter(prometheus::Counter& c) : c_(c) {}
  void Increment(double by) override { c_.Increment(by); }
  double Value() const override { return c_.Value(); }

 private:
  prometheus::Counter& c_;
};

class PrometheusGauge : public Metrics::Gauge {
 public:
  explicit PrometheusGauge(prometheus::Gauge& g) : g_(g) {}
  void Set(double value) override { g_.Set(value); }
  void Add(double by) override { g_.Increment(by); }
  double Value() const override { return g_.Value(); }
  prometheus::Gauge& gauge() { return g_; }

 private:
  prometheus::Gauge& g_;
};

class PrometheusHistogram : public Metrics::Histogram {
 public:
  explicit PrometheusHistogram(prometheus::Histogram& h) : h_(h) {}
  void Observe(double value) override { h_.Observe(value); }

 private:
  prometheus::Histogram& h_;
};

const prometheus::Histogram::BucketBoundaries& LatencyBuckets() {
  static const prometheus::Histogram::BucketBoundaries buckets = {
      0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05,
      0.1,    0.2,    0.5,    1,     2,     5,     10,   20,   50};
  return buckets;
}

using SeriesKey = std::pair<std::string, Metrics::Labels>;

prometheus::Labels ToMap(const Metrics::Labels& labels) {
  return {labels.begin(), labels.end()};
}

}  // namespace

struct Metrics::Registry {
  prometheus::Registry registry{prometheus::Registry::InsertBehavior::Merge};
  Mutex mu;
  std::map<SeriesKey, std::unique_ptr<PrometheusCounter>> counters
      ABSL_GUARDED_BY(mu);
  std::map<SeriesKey, std::unique_ptr<PrometheusGauge>> gauges
      ABSL_GUARDED_BY(mu);
  std::map<SeriesKey, std::unique_ptr<PrometheusHistogram>> histograms
      ABSL_GUARDED_BY(mu);
};

Metrics::Metrics() : registry_(std::make_unique<Registry>()) {}
Metrics::~Metrics() = default;

Metrics::Counter* Metrics::GetCounter(absl::string_view name,
                                      absl::string_view help,
                                      const Labels& labels) {
  MutexLock lock(registry_->mu);
  auto& slot = registry_->counters[{std::string(name), labels}];
  if (slot == nullptr) {
    auto& family = prometheus::BuildCounter()
                       .Name(std::string(name))
                       .Help(std::string(help))
                       .Register(registry_->registry);
    slot = std::make_unique<PrometheusCounter>(family.Add(ToMap(labels)));
  }
  return slot.get();
}

Metrics::Gauge* Metrics::GetGauge(absl::string_view name,
                                  absl::string_view help,
                                  const Labels& labels) {
  MutexLock lock(registry_->mu);
  auto& slot = registry_->gauges[{std::string(name), labels}];
  if (slot == nullptr) {
    auto& family = prometheus::BuildGauge()
                       .Name(std::string(name))
                       .Help(std::string(help))
                       .Register(registry_->registry);
    slot = std::make_unique<PrometheusGauge>(family.Add(ToMap(labels)));
  }
  return slot.get();
}

Metrics::Histogram* Metrics::GetLatency(absl::string_view name,
                                        absl::string_view help,
                                        const Labels& labels) {
  MutexLock lock(registry_->mu);
  auto& slot = registry_->histograms[{std::string(name), labels}];
  if (slot == nullptr) {
    auto& family = prometheus::BuildHistogram()
                       .Name(std::string(name))
                       .Help(std::string(help))
                       .Register(registry_->registry);
    slot = std::make_unique<PrometheusHistogram>(
        family.Add(ToMap(labels), LatencyBuckets()));
  }
  return slot.get();
}

void Metrics::RemoveGauge(absl::string_view name, const Labels& labels) {
  MutexLock lock(registry_->mu);
  auto it = registry_->gauges.find({std::string(name), labels});
  if (it == registry_->gauges.end()) return;
  auto& family = prometheus::BuildGauge()
                     .Name(std::string(name))
                     .Help("")
                     .Register(registry_->registry);
  family.Remove(&it->second->gauge());
  registry_->gauges.erase(it);
}

std::string Metrics::Expose() const {
  return prometheus::TextSerializer().Serialize(registry_->registry.Collect());
}

}  // namespace kek::base
