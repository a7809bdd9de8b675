// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace kek::base {

// Metrics owns every counter, gauge and histogram of the process, in
// Prometheus' data model. Look a series up once and keep the pointer:
// Increment, Set and Observe are lock-free or nearly so, the look-up is not.
// Asking again for the same name and labels gives the same series; a name must
// keep its type. Names begin "kekd_". Label values come from small fixed sets
// (method, code, CK_RV name), never from callers; key names only where the
// operator's own config bounds them. Thread-safe. Series live as long as
// Metrics.
class Metrics {
 public:
  using Labels = std::vector<std::pair<std::string, std::string>>;

  class Counter {
   public:
    virtual ~Counter() = default;
    virtual void Increment(double by = 1) = 0;
    virtual double Value() const = 0;
  };
  class Gauge {
   public:
    virtual ~Gauge() = default;
    virtual void Set(double value) = 0;
    virtual void Add(double by) = 0;
    virtual double Value() const = 0;
  };
  class Histogram {
   public:
    virtual ~Histogram() = default;
    virtual void Observe(double value) = 0;
  };

  Metrics();
  ~Metrics();
  Metrics(const Metrics&) = delete;
  Metrics& operator=(const Metrics&) = delete;

  Counter* GetCounter(absl::string_view name, absl::string_view help,
                      const Labels& labels = {});
  Gauge* GetGauge(absl::string_view name, absl::string_view help,
                  const Labels& labels = {});
  // Buckets of 0.1 ms to 50 s; values in seconds.
  Histogram* GetLatency(absl::string_view name, absl::string_view help,
                        const Labels& labels = {});
  // Forgets one gauge series, for a thing that is gone (a key version).
  void RemoveGauge(absl::string_view name, const Labels& labels);

  // Everything in Prometheus' text format 0.0.4.
  std::string Expose() const;

 private:
  struct Registry;
  std::unique_ptr<Registry> registry_;
};

}  // namespace kek::base
