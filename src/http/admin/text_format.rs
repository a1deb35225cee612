//! The two text formats of metrics: `OpenMetrics` 1.0, and Prometheus text 0.0.4 for clients that do not ask for it.
//!
//! Pure.

use http::{HeaderMap, header};

/// A format that a client understands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextFormat {
    OpenMetrics,
    Prometheus,
}

impl TextFormat {
    /// The format of the highest quality in `Accept`, the first one of equals, as Prometheus's own libraries choose;
    /// Prometheus text where neither is named.
    pub(super) fn negotiate(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges = values.flat_map(|value| value.split(',')).filter_map(parse_range);
        // `max_by` takes the last of equals, so the order is turned round.
        let ranges: Vec<_> = ranges.filter(|(_, quality)| *quality > 0.0).collect();
        let best = ranges.into_iter().rev().max_by(|one, other| one.1.total_cmp(&other.1));
        best.map_or(Self::Prometheus, |(format, _)| format)
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A text in this format, from one of `OpenMetrics`.
    pub(super) fn convert(self, open_metrics: String) -> String {
        match self {
            Self::OpenMetrics => open_metrics,
            Self::Prometheus => to_prometheus_text(&open_metrics),
        }
    }
}

/// A range of `Accept` and its quality, if it is a format of this program. A wildcard is Prometheus text.
fn parse_range(range: &str) -> Option<(TextFormat, f32)> {
    let mut parts = range.split(';').map(str::trim);
    let media_type = parts.next()?.to_ascii_lowercase();
    let (mut version, mut quality) = (None, 1.0);
    for (name, value) in parts.filter_map(|part| part.split_once('=')) {
        match name.trim().to_ascii_lowercase().as_str() {
            "version" => version = Some(value.trim().trim_matches('"')),
            "q" => quality = value.trim().parse().unwrap_or(0.0),
            _ => {}
        }
    }
    match (media_type.as_str(), version) {
        ("application/openmetrics-text", None | Some("1.0.0")) => Some((TextFormat::OpenMetrics, quality)),
        ("text/plain", None | Some("0.0.4")) => Some((TextFormat::Prometheus, quality)),
        ("*/*" | "text/*", _) => Some((TextFormat::Prometheus, quality)),
        _ => None,
    }
}

/// The same series: in 0.0.4 a counter is described under its whole name, and there are no units, no infos, no end.
fn to_prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) =
            line.strip_prefix("# TYPE ").and_then(|described| described.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            if let Some((_, help)) = help.take().filter(|(described, _)| *described == name) {
                text.push_str(&format!("# HELP {name}{suffix} {help}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negotiated(accept: &[&str]) -> TextFormat {
        let mut headers = HeaderMap::new();
        for value in accept {
            headers.append(header::ACCEPT, value.parse().unwrap());
        }
        TextFormat::negotiate(&headers)
    }

    #[test]
    fn the_format_of_the_highest_quality_is_chosen() {
        let prometheus_2 = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        let prometheus_3 = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             application/openmetrics-text;version=0.0.1;q=0.4,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,\
             text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        let text_first = "text/plain;version=0.0.4;q=0.9,application/openmetrics-text;version=1.0.0;q=0.8";
        for (accept, expected) in [
            (prometheus_2, TextFormat::OpenMetrics),
            (prometheus_3, TextFormat::OpenMetrics),
            (text_first, TextFormat::Prometheus),
            ("application/openmetrics-text", TextFormat::OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.1", TextFormat::OpenMetrics),
            ("text/plain, application/openmetrics-text", TextFormat::Prometheus),
            ("application/openmetrics-text, text/plain", TextFormat::OpenMetrics),
            ("application/openmetrics-text;q=0, */*", TextFormat::Prometheus),
            ("application/openmetrics-text;q=nonsense", TextFormat::Prometheus),
            ("application/openmetrics-text;version=2.0.0", TextFormat::Prometheus),
            ("application/vnd.google.protobuf;q=0.9,text/html", TextFormat::Prometheus),
            ("*/*", TextFormat::Prometheus),
            ("", TextFormat::Prometheus),
        ] {
            assert_eq!(negotiated(&[accept]), expected, "{accept}");
        }
        assert_eq!(negotiated(&[]), TextFormat::Prometheus);
        assert_eq!(negotiated(&["*/*;q=0.1", "application/openmetrics-text"]), TextFormat::OpenMetrics);
    }

    #[test]
    fn a_counter_is_described_under_its_whole_name() {
        let open_metrics = "# HELP x_build What this is.\n# TYPE x_build info\nx_build_info{version=\"1\"} 1\n\
             # HELP x_cpu_seconds CPU time.\n# TYPE x_cpu_seconds counter\n# UNIT x_cpu_seconds seconds\n\
             x_cpu_seconds_total{slot=\"0\"} 1.5\n# HELP x_up Up.\n# TYPE x_up gauge\nx_up 1\n# EOF\n";
        let expected = "# HELP x_build_info What this is.\n# TYPE x_build_info gauge\nx_build_info{version=\"1\"} 1\n\
             # HELP x_cpu_seconds_total CPU time.\n# TYPE x_cpu_seconds_total counter\n\
             x_cpu_seconds_total{slot=\"0\"} 1.5\n# HELP x_up Up.\n# TYPE x_up gauge\nx_up 1\n";
        assert_eq!(TextFormat::Prometheus.convert(open_metrics.to_owned()), expected);
        assert_eq!(TextFormat::OpenMetrics.convert(open_metrics.to_owned()), open_metrics);
    }
}
