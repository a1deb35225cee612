//! What every request needs of its worker, with or without state.

use std::fmt;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::config::settings::{HttpConfig, ProxyConfig};
use crate::http::drain_state::DrainState;
use crate::http::offload::Offload;
use crate::http::request_id::RequestIdGenerator;
use crate::http::services::app_services::AppServices;
use crate::http::services::cell_handle::CellHandle;
use crate::http::untrusted_proxy::UntrustedProxyDetector;
use crate::http::worker::Worker;
use crate::scoreboard::cell::WorkerCell;

/// What the walk of a request reads of its worker: names, bounds, and where it is counted.
pub(in crate::http) struct WorkerContext {
    pub(in crate::http) worker: Worker,
    /// `X-Worker-Id`, made once: it goes with every response.
    pub(in crate::http) worker_id: HeaderValue,
    request_ids: RequestIdGenerator,
    started: Instant,
    pub(in crate::http) cell: CellHandle,
    pub(in crate::http) drain: DrainState,
    pub(in crate::http) http: HttpConfig,
    pub(in crate::http) proxy: ProxyConfig,
    pub(in crate::http) offload: Offload,
    pub(in crate::http) untrusted_proxies: UntrustedProxyDetector,
}

impl WorkerContext {
    pub(in crate::http) fn new(parts: &AppServices) -> Self {
        Self {
            worker: parts.worker.clone(),
            worker_id: HeaderValue::from(parts.worker.pid()),
            request_ids: RequestIdGenerator::new(parts.worker.pid()),
            started: Instant::now(),
            cell: CellHandle::new(&parts.scoreboard, parts.worker.slot(), parts.cell),
            drain: parts.drain.clone(),
            http: parts.config.http.clone(),
            proxy: parts.config.proxy.clone(),
            offload: Offload::default(),
            untrusted_proxies: UntrustedProxyDetector::default(),
        }
    }

    /// How long this worker has been serving.
    pub(in crate::http) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// This worker's cell of the scoreboard.
    pub(in crate::http) fn cell(&self) -> WorkerCell<'_> {
        self.cell.cell()
    }

    /// A new request's id.
    pub(in crate::http) fn request_id(&self) -> HeaderValue {
        self.request_ids.next()
    }
}

impl fmt::Debug for WorkerContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WorkerContext")
            .field("worker", &self.worker)
            .field("drain", &self.drain)
            .finish_non_exhaustive()
    }
}
