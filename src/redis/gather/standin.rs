//! Each entry of a batch in a call of its own.

use futures_util::future::join_all;

use crate::redis::Redis;
use crate::redis::begin;
use crate::redis::begin::CounterArg;
use crate::redis::begin::LimitArg;
use crate::redis::begin::Request;
use crate::redis::begin::SessionArg;
use crate::redis::error::Error;
use crate::redis::gather::Answer;
use crate::redis::library::Entry as Code;
use crate::redis::link::Live;

pub(super) struct Entry {
    limits: Vec<LimitArg>,
    session: Option<SessionArg>,
    counters: Vec<CounterArg>,
    token: String,
    number: std::sync::OnceLock<u64>,
}

impl Entry {
    pub(super) fn new(request: &Request<'_>) -> Self {
        Self {
            limits: request.limits.to_vec(),
            session: request.session.cloned(),
            counters: request.counters.to_vec(),
            token: request.token.to_owned(),
            number: std::sync::OnceLock::new(),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        200
    }

    fn request(&self) -> Request<'_> {
        Request {
            limits: &self.limits,
            session: self.session.as_ref(),
            counters: &self.counters,
            token: &self.token,
        }
    }
}

pub(super) async fn all(
    redis: &Redis,
    live: &Live,
    entries: Vec<std::sync::Arc<Entry>>,
    repeated: bool,
) -> Result<Vec<Answer>, Error> {
    let calls = entries.iter().map(|entry| async move {
        let request = entry.request();
        let numbers = &redis.inner.numbers;
        let number = *entry.number.get_or_init(|| numbers.batch());
        let once = (request.changes() && live.notes)
            .then(|| numbers.call(&redis.inner.prefix, number, live.number, repeated));
        let encode = |name| begin::encode(&request, once.as_ref(), name);
        begin::decode(&request, redis.execute(live, Code::Begin, encode).await?)
    });
    let answers = join_all(calls).await;
    if let Some(Err(lost @ (Error::Lost { .. } | Error::Unavailable { .. }))) = answers.iter().find(|a| matches!(a, Err(Error::Lost{..} | Error::Unavailable{..}))) {
        return Err(lost.clone());
    }
    Ok(answers)
}
