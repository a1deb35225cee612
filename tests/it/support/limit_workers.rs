//! Workers as far as limits are concerned: over one real Redis, without HTTP around them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use regatta::__internals::config::settings::ScriptingMode;
use regatta::__internals::config::{ConfigFile, ConfigInputs};
use regatta::__internals::limiter::commands::RateLimitCheck;
use regatta::__internals::limiter::gcra::WorkerShare;
use regatta::__internals::limiter::pending::{FallbackOutcome, LimitDecisions, LimitGrant};
use regatta::__internals::limiter::request_limiter::LimitAdmission;
use regatta::__internals::limiter::{LimitSubject, PolicyTable, RequestLimiter};
use regatta::__internals::request_state::begin;

use crate::support::redis::{TestRedis, connect};
use regatta::__internals::request_state::StateClient;

pub(crate) const CLIENT: &str = "10.0.0.1";

/// A worker, as far as limits are concerned.
#[derive(Clone)]
pub(crate) struct Worker {
    pub(crate) desk: Arc<RequestLimiter>,
    pub(crate) redis: StateClient,
    pub(crate) part: WorkerShare,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Verdict {
    Allowed(LimitGrant),
    Denied(LimitDecisions),
    Closed,
}

impl Verdict {
    pub(crate) fn is_allowed(&self) -> bool {
        matches!(self, Self::Allowed(_))
    }
}

pub(crate) fn policies(text: &str) -> PolicyTable {
    let text = format!("[limits.default]\nenabled = false\n{text}");
    let content = ConfigFile::Contents { path: PathBuf::from("regatta.toml"), text, real: None };
    let config =
        regatta::__internals::config::load(&ConfigInputs { content, ..ConfigInputs::default() }).unwrap();
    PolicyTable::new(&config.limits, "p")
}

pub(crate) async fn workers<const N: usize>(server: &TestRedis, text: &str) -> [Worker; N] {
    let mut made = Vec::new();
    for _ in 0..N {
        let redis = connect(server, "p", ScriptingMode::Auto).await;
        let desk = RequestLimiter::new(
            policies(text),
            redis.redis().clone(),
            Duration::from_millis(500),
            Instant::now,
        );
        let part = WorkerShare { instances: 1, workers: N as u64, rank: made.len() as u64 };
        made.push(Worker { desk, redis, part });
    }
    made.try_into().unwrap_or_else(|_| unreachable!("as many as were made"))
}

impl Worker {
    /// The same with another connection and these policies.
    pub(crate) fn on(self, redis: StateClient, text: &str) -> Self {
        let desk = RequestLimiter::new(
            policies(text),
            redis.redis().clone(),
            Duration::from_millis(500),
            Instant::now,
        );
        Self { desk, redis, ..self }
    }

    /// One request of a client, as the exchange of a request does it.
    pub(crate) async fn ask(&self, client: &str) -> Verdict {
        let set = self.desk.policies().select("GET", "/", |_| None);
        let subject = LimitSubject { client, ..LimitSubject::default() };
        let mut asked = match self.desk.check(&set, 0, &subject).await {
            LimitAdmission::Denied(replies) => return Verdict::Denied(replies),
            LimitAdmission::Pending(asked) => asked,
        };
        if asked.checks().is_empty() {
            return Verdict::Allowed(asked.grant(&set, &[]));
        }
        let mut answer;
        loop {
            let request = begin::BeginRequest {
                limits: asked.checks(),
                token: asked.permit_name(),
                ..Default::default()
            };
            answer = self.redis.begin(&request).await;
            match &answer {
                Ok(begin::BeginReply::Denied { limits }) if asked.reclaim_held_quota(&set, limits).await => {}
                _ => break,
            }
        }
        match answer {
            Ok(begin::BeginReply::Granted { limits, .. }) => Verdict::Allowed(asked.grant(&set, &limits)),
            Ok(begin::BeginReply::Denied { limits }) => Verdict::Denied(asked.deny(&set, &limits)),
            Err(error) => match asked.fall_back(&set, &error, &self.part) {
                FallbackOutcome::Allowed(granted) => Verdict::Allowed(granted),
                FallbackOutcome::Denied(replies) => Verdict::Denied(replies),
                FallbackOutcome::FailClosed => Verdict::Closed,
            },
        }
    }

    /// How many of so many requests, one after the other, are allowed.
    pub(crate) async fn allowed(&self, requests: usize) -> usize {
        let mut allowed = 0;
        for _ in 0..requests {
            allowed += usize::from(self.ask(CLIENT).await.is_allowed());
            tokio::task::yield_now().await;
        }
        allowed
    }

    /// The client's limit under the only policy, as a look that costs nothing.
    pub(crate) fn look(&self) -> RateLimitCheck {
        let set = self.desk.policies().select("GET", "/", |_| None);
        let args = set.checks(0, &LimitSubject { client: CLIENT, ..LimitSubject::default() });
        RateLimitCheck { cost: 0, ..args[0].clone() }
    }

    pub(crate) async fn remaining(&self) -> u64 {
        self.redis.limit_status(&self.look()).await.unwrap().remaining
    }
}
