//! What every request needs of its worker, with or without state.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;

use crate::config::settings::{HttpConfig, ProxyConfig};
use crate::http::drain_state::DrainState;
use crate::http::offload::Offload;
use crate::http::request_id::RequestIdGenerator;
use crate::http::services::app_services::AppServices;
use crate::http::services::cell_handle::CellHandle;
use crate::http::streams::worker_streams::WorkerStreams;
use crate::http::untrusted_proxy::UntrustedProxyDetector;
use crate::http::worker::Worker;
use crate::scoreboard::cell::WorkerCell;

/// What the walk of a request reads of its worker: names, bounds, and where it is counted.
pub(crate) struct WorkerContext {
    pub(crate) worker: Worker,
    /// `X-Worker-Id`, made once: it goes with every response.
    pub(crate) worker_id: HeaderValue,
    request_ids: RequestIdGenerator,
    started: Instant,
    pub(crate) cell: CellHandle,
    pub(crate) drain: DrainState,
    /// Its event streams and WebSockets.
    pub(crate) streams: Arc<WorkerStreams>,
    pub(crate) http: HttpConfig,
    pub(crate) proxy: ProxyConfig,
    pub(crate) offload: Offload,
    pub(crate) untrusted_proxies: UntrustedProxyDetector,
}

impl WorkerContext {
    pub(crate) fn new(parts: &AppServices) -> Self {
        let started = Instant::now();
        let cell = CellHandle::new(&parts.scoreboard, parts.worker.slot(), parts.cell);
        Self {
            worker: parts.worker.clone().serving(started, cell.clone()),
            worker_id: HeaderValue::from(parts.worker.pid()),
            request_ids: RequestIdGenerator::new(parts.worker.pid()),
            started,
            streams: Arc::new(WorkerStreams::of_worker(parts, cell.clone())),
            cell,
            drain: parts.drain.clone(),
            http: parts.config.http.clone(),
            proxy: parts.config.proxy.clone(),
            offload: Offload::default(),
            untrusted_proxies: UntrustedProxyDetector::default(),
        }
    }

    /// How long this worker has been serving.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// This worker's cell of the scoreboard.
    pub(crate) fn cell(&self) -> WorkerCell<'_> {
        self.cell.cell()
    }

    /// A new request's id.
    pub(crate) fn request_id(&self) -> HeaderValue {
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
