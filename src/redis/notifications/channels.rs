//! Which channel a notification goes to, and publishing it.

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::breakers::CallKind;
use crate::redis::client::RedisClient;
use crate::redis::keys;
use crate::redis::notifications::earlier_releases::{EARLIER_LIBRARY, EarlierReleaseSighting};
use crate::redis::transport::ActiveConnection;

/// A channel beside the common one.
#[derive(Debug, Clone, Copy)]
pub struct NotificationChannel<'a> {
    family: &'static str,
    name: &'a str,
    lingers: bool,
}

impl<'a> NotificationChannel<'a> {
    /// The channel with this name in a family, which no other room uses.
    pub fn new(family: &'static str, name: &'a str) -> Self {
        Self { family, name, lingers: false }
    }

    /// The same, subscribed for a while after its last subscriber has gone, because another one comes soon.
    pub fn lingering(family: &'static str, name: &'a str) -> Self {
        Self { lingers: true, ..Self::new(family, name) }
    }

    /// The channel of one worker: tasks to claim, tasks that were cancelled.
    pub fn worker(name: &'a str) -> Self {
        Self::new(keys::WORKER_CHANNELS, name)
    }

    /// Its name below this prefix of channels.
    pub fn name(self, space: &str) -> String {
        keys::KeySpace::new(space).key([self.family, self.name])
    }

    pub(super) fn lingers(self) -> bool {
        self.lingers
    }
}

impl RedisClient {
    /// Notifies the workers that keep copies. A worker that misses it keeps its copy until the copy expires.
    pub fn publish_notification(&self, kind: char, subject: &str) {
        let (redis, message) = (self.clone(), format!("{kind} {subject}"));
        tokio::spawn(async move {
            let channel = redis.common_channel().await;
            let (channel, message) = (channel.as_str(), message.as_str());
            let publish = |active: ActiveConnection| async move {
                active.transport.call("PUBLISH", [channel, message]).await
            };
            if let Err(error) = redis.send(CallKind::Read, publish).await {
                tracing::debug!(%error, "a notification was not published: {error}");
            }
        });
    }

    pub(super) fn channel_name(&self, channel: NotificationChannel<'_>) -> String {
        channel.name(&self.inner.target.channel_prefix)
    }

    /// The common channel to publish on.
    ///
    /// Workers of earlier releases listen to that of database 0, whatever their own. While one is running, later
    /// releases listen to both and publish there.
    pub async fn common_channel(&self) -> String {
        let inner = &self.inner;
        if inner.target.channel_prefix != inner.target.prefix
            && self.earlier_release_sighting().await.needs_publish()
        {
            return keys::notifications_channel(&inner.target.prefix);
        }
        keys::notifications_channel(&inner.target.channel_prefix)
    }

    /// The channel on which workers of earlier releases expect broadcasts and tasks; empty while there are none.
    pub async fn earlier_release_channel(&self) -> String {
        match self.earlier_release_sighting().await.needs_publish() {
            true => keys::notifications_channel(&self.inner.target.prefix),
            false => String::new(),
        }
    }

    /// What is known of workers of earlier releases; asks Redis if that is old. Without a reply it stays as it was.
    pub(in crate::redis) async fn earlier_release_sighting(&self) -> EarlierReleaseSighting {
        let earlier = &self.inner.earlier_releases;
        if let Some(known) = earlier.fresh_sighting(Instant::now()) {
            return known;
        }
        let _turn = earlier.query_lock.lock().await;
        if let Some(known) = earlier.fresh_sighting(Instant::now()) {
            return known;
        }
        let seen = keys::libraries_in_use(&self.inner.target.prefix);
        let query = |active: ActiveConnection| {
            let commands = vec![
                ("TIME", Vec::new()),
                ("ZSCORE", vec![seen.as_str().into(), Value::from_static_str(EARLIER_LIBRARY)]),
            ];
            async move { active.transport.pipeline(commands).await }
        };
        if let Ok(answers) = Box::pin(self.send(CallKind::Read, query)).await
            && let [time, score] = answers.as_slice()
        {
            earlier.record_reply(time.as_ref(), score.as_ref(), Instant::now());
        }
        earlier.sighting()
    }
}
