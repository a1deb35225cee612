//! Helpers for series of the two collectors.

use std::fmt;

use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

/// A gauge without labels.
pub(super) fn gauge(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    out.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// One series of a counter.
pub(super) fn add_counter(
    family: &mut MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    value: u64,
) -> fmt::Result {
    family.encode_family(labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 microseconds, which are 142 years")]
pub(super) fn micros_to_seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52 milliseconds")]
pub(super) fn millis_to_seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}
