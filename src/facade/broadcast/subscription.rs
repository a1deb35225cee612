//! A client's place in a topic, and what comes to it.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::Stream;
use serde::de::DeserializeOwned;

use crate::broadcasts;
use crate::broadcasts::{BroadcastMessage, MessageId, SubscriptionEvent};
use crate::facade::broadcast::error::Error;
use crate::facade::stepwise::Stepwise;
use crate::http::standalone::connection::StandaloneConnection;

/// A client's place in a topic; also a `Stream`. Dropping it ends the subscription.
///
/// ```
/// use regatta::LastEventId;
/// use regatta::broadcast::{Error, Event, Topic};
///
/// async fn print(topic: &Topic) -> Result<(), Error> {
///     let mut subscription = topic.subscribe(LastEventId::none()).await?;
///     while let Some(event) = subscription.next().await {
///         if let Event::Message(message) = event {
///             println!("{}: {}", message.id(), message.text());
///         }
///     }
///     Ok(())
/// }
/// # let _ = print;
/// ```
pub struct Subscription {
    steps: Stepwise<broadcasts::Subscription, Event>,
    last: Option<MessageId>,
    /// Nothing comes without it.
    _connection: Option<Arc<StandaloneConnection>>,
}

/// What comes to a client.
///
/// ```
/// use regatta::LastEventId;
/// use regatta::broadcast::{Error, Event, Topic};
///
/// /// Follows a topic for ever, and says where it may have missed something.
/// async fn follow(topic: &Topic) -> Result<(), Error> {
///     let mut after = LastEventId::none();
///     loop {
///         let mut subscription = topic.subscribe(after).await?;
///         while let Some(event) = subscription.next().await {
///             match event {
///                 Event::Message(message) => println!("{}: {}", topic.name(), message.text()),
///                 Event::Gap => println!("some messages are missing"),
///                 Event::Lagged => println!("too slow"),
///                 _ => {}
///             }
///         }
///         after = match subscription.last_id() {
///             Some(id) => LastEventId::from(id.to_string().as_str()),
///             None => LastEventId::none(),
///         };
///     }
/// }
/// # let _ = follow;
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The next message.
    Message(Message),
    /// Messages may be missing here; what follows is complete again.
    Gap,
    /// The client fell too far behind, and nothing more comes. It may subscribe again, after [`Subscription::last_id`].
    Lagged,
}

/// A message of a topic. Cheap to clone.
///
/// ```
/// use regatta::broadcast::{Error, Message};
///
/// #[derive(serde::Deserialize)]
/// struct Weather {
///     wind: u8,
/// }
///
/// fn is_a_storm(message: &Message) -> Result<bool, Error> {
///     Ok(message.json::<Weather>()?.wind >= 10)
/// }
/// # let _ = is_a_storm;
/// ```
#[derive(Debug, Clone)]
pub struct Message(Arc<BroadcastMessage>);

impl Message {
    /// Its id, rising within its topic.
    pub fn id(&self) -> MessageId {
        self.0.id()
    }

    /// Its text, as it was published.
    pub fn text(&self) -> &str {
        self.0.text()
    }

    /// Its value, if it was published as JSON.
    ///
    /// # Errors
    /// [`Error::Json`]: it is something else.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_str(self.text()).map_err(|error| Error::Json(error.into()))
    }
}

impl Subscription {
    pub(super) fn new(
        subscription: broadcasts::Subscription,
        connection: Option<Arc<StandaloneConnection>>,
    ) -> Self {
        let last = subscription.last_id();
        let steps = Stepwise::new(subscription, |mut subscription| {
            Box::pin(async move {
                let event = subscription.next().await;
                (subscription, Some(Event::from(event)))
            })
        });
        Self { steps, last, _connection: connection }
    }

    /// The next event; `None` after [`Event::Lagged`]. While Redis is away none comes; afterwards all do.
    ///
    /// # Cancel safety
    /// Nothing is lost when it is dropped.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context)).await
    }

    /// The message after which this client resumes if it subscribes again: the last that came, or the one it began
    /// after. After a gap, the one from which on messages are complete again.
    pub fn last_id(&self) -> Option<MessageId> {
        self.last
    }
}

impl Stream for Subscription {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        let polled = self.steps.poll_next(context);
        if let Poll::Ready(event) = &polled {
            if let Some(subscription) = self.steps.source() {
                self.last = subscription.last_id();
            }
            if matches!(event, Some(Event::Lagged)) {
                self.steps.finish();
            }
        }
        polled
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("last_id", &self.last).finish_non_exhaustive()
    }
}

#[doc(hidden)]
impl From<SubscriptionEvent> for Event {
    fn from(event: SubscriptionEvent) -> Self {
        match event {
            SubscriptionEvent::Message(message) => Self::Message(Message(message)),
            SubscriptionEvent::Gap => Self::Gap,
            SubscriptionEvent::Lagged => Self::Lagged,
        }
    }
}
