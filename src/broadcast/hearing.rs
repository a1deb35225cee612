//! What comes to a worker's topics: on each topic's channel, and from workers of earlier releases on the common one.
//!
//! A channel is heard before it is read where its topic stands, so that nothing falls between the two.

use std::sync::Arc;
use std::sync::Weak;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::time::timeout;

use crate::broadcast::Error;
use crate::broadcast::Hub;
use crate::broadcast::Inner;
use crate::broadcast::line::Line;
use crate::redis::live;
use crate::redis::news::Channel;
use crate::redis::news::Heard;
use crate::sys::time;

/// Longest wait for a topic's channel to be heard before it is read where the topic stands; what comes later is doubted.
const CONFIRM: Duration = Duration::from_millis(250);

impl Hub {
    /// Finds out where the topic stands; one subscriber does so for all that wait.
    pub(super) async fn begin(&self, line: &Arc<Line>) -> Result<(), Error> {
        self.listen();
        let _turn = line.turn.lock().await;
        if line.has_begun() {
            return Ok(());
        }
        // What comes after the place where the topic stands has to be heard.
        let heard = self.inner.redis.confirmed(Channel::Topic(line.topic.as_str()));
        if timeout(CONFIRM, heard).await.is_err() {
            tokio::spawn(doubt_when_heard(Arc::downgrade(&self.inner), Arc::downgrade(line)));
        }
        let newest = match self.inner.reads.acquire().await {
            Ok(_permit) => self.inner.redis.live_newest(line.topic.as_str()).await?,
            Err(_) => live::Stamp::default(),
        };
        line.begin(newest.into());
        self.inner.doubt.notify_one();
        Ok(())
    }

    /// Listens to what workers of earlier releases tell, from the first subscriber on.
    fn listen(&self) {
        if self.inner.listens.swap(true, Relaxed) {
            return;
        }
        let inner = Arc::downgrade(&self.inner);
        let hear = move |text: &str| {
            if let Some(inner) = inner.upgrade() {
                inner.hear(text);
            }
        };
        self.inner.redis.listen(live::NEWS, Arc::new(hear));
    }
}

impl Inner {
    fn hear(&self, text: &str) {
        let Some((topic, before, id, text)) = live::heard(text) else { return };
        let line = self.topics().get(topic).map(|table| Arc::clone(&table.line));
        if line.is_some_and(|line| line.hear(before.into(), id.into(), text)) {
            self.doubt.notify_one();
        }
    }

    /// What came on a topic's channel. What is not of this fleet is no reason for more than a look at the stream now and
    /// then.
    fn hear_of(&self, line: &Line, text: &str) {
        let doubtful = match self.redis.live_heard(text) {
            Some((before, id, text)) => line.hear(before.into(), id.into(), text),
            None => line.suspect(time::monotonic()),
        };
        if doubtful {
            self.doubt.notify_one();
        }
    }

    /// Hears a topic's channel for as long as the returned value lives.
    pub(super) fn listen_to(self: &Arc<Self>, line: &Arc<Line>) -> Heard {
        let (inner, of) = (Arc::downgrade(self), Arc::downgrade(line));
        let listener = move |text: &str| {
            if let Some((inner, line)) = inner.upgrade().zip(of.upgrade()) {
                inner.hear_of(&line, text);
            }
        };
        self.redis.hear(Channel::Topic(line.topic.as_str()), Arc::new(listener))
    }
}

/// A topic's channel was not heard when it was read where the topic stands: what came in between was missed.
async fn doubt_when_heard(inner: Weak<Inner>, line: Weak<Line>) {
    let Some((redis, topic)) =
        inner.upgrade().zip(line.upgrade()).map(|(inner, line)| (inner.redis.clone(), line.topic.clone()))
    else {
        return;
    };
    // Where there is no connection, all topics are doubted when there is one.
    if redis.confirmed(Channel::Topic(topic.as_str())).await
        && let Some((inner, line)) = inner.upgrade().zip(line.upgrade())
    {
        line.doubt(true);
        inner.doubt.notify_one();
    }
}
