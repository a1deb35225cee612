//! The channels that have subscribers in this worker, and which of them are subscribed on the server. No I/O.
//!
//! A channel without subscribers stays subscribed for a moment, because the next subscriber often follows at once. The
//! number of such channels is bounded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

/// Receives the text of a notification.
pub type NotificationHandler = Arc<dyn Fn(&str) + Send + Sync>;

/// How long a channel stays subscribed after its last subscriber has left, if it lingers.
const LINGER_TIME: Duration = Duration::from_secs(5);
/// Most channels that linger at the same time.
const MAX_LINGERING: usize = 1024;

/// The state of a channel's subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubscriptionState {
    /// SUBSCRIBE was not sent yet.
    Pending,
    /// SUBSCRIBE was sent and not confirmed.
    Requested,
    /// It is subscribed.
    Subscribed,
}

struct ChannelEntry {
    /// `None` for the common channel, whose handlers are chosen by the kind of notification.
    handler: Option<NotificationHandler>,
    subscribers: usize,
    state: SubscriptionState,
    lingers: bool,
    /// Since when it has no subscriber.
    idle_since: Option<Instant>,
}

/// All of a worker's channels.
#[derive(Default)]
pub(super) struct ChannelSubscriptions {
    channels: HashMap<String, ChannelEntry>,
    lingering: usize,
}

/// Where the messages of a channel go.
pub(super) enum MessageTarget {
    /// To the handlers of the notification's kind.
    Common,
    /// To this handler.
    Handler(NotificationHandler),
}

impl ChannelSubscriptions {
    /// Adds a subscriber.
    pub(super) fn add_subscriber(&mut self, name: &str, handler: Option<NotificationHandler>, lingers: bool) {
        if let Some(channel) = self.channels.get_mut(name) {
            channel.subscribers += 1;
            channel.handler = handler;
            channel.lingers = lingers;
            self.lingering -= usize::from(channel.idle_since.take().is_some());
            return;
        }
        let channel = ChannelEntry {
            handler,
            subscribers: 1,
            state: SubscriptionState::Pending,
            lingers,
            idle_since: None,
        };
        self.channels.insert(name.to_owned(), channel);
    }

    /// Removes a subscriber.
    pub(super) fn remove_subscriber(&mut self, name: &str, now: Instant) {
        let Some(channel) = self.channels.get_mut(name) else { return };
        channel.subscribers = channel.subscribers.saturating_sub(1);
        if channel.subscribers > 0 {
            return;
        }
        channel.lingers &= self.lingering < MAX_LINGERING;
        channel.idle_since = Some(now);
        self.lingering += 1;
    }

    /// The connection is lost: no channel is subscribed, and channels without subscribers are removed.
    pub(super) fn reset(&mut self) {
        self.channels.retain(|_, channel| channel.idle_since.is_none());
        self.lingering = 0;
        self.channels.values_mut().for_each(|channel| channel.state = SubscriptionState::Pending);
    }

    /// The number of subscribed channels, and up to `most` that must be subscribed; the result goes to
    /// [`ChannelSubscriptions::mark_subscribed`] or [`ChannelSubscriptions::reset`].
    pub(super) fn take_pending(&mut self, most: usize) -> (usize, Vec<String>) {
        let subscribed =
            self.channels.values().filter(|channel| channel.state == SubscriptionState::Subscribed).count();
        let pending =
            self.channels.iter_mut().filter(|(_, channel)| channel.state == SubscriptionState::Pending);
        let request = |(name, channel): (&String, &mut ChannelEntry)| {
            channel.state = SubscriptionState::Requested;
            name.clone()
        };
        (subscribed, pending.take(most).map(request).collect())
    }

    /// The server has subscribed these.
    pub(super) fn mark_subscribed(&mut self, names: &[String]) {
        for name in names {
            if let Some(channel) = self.channels.get_mut(name) {
                channel.state = SubscriptionState::Subscribed;
            }
        }
    }

    /// Removes and returns the channels to unsubscribe from.
    pub(super) fn take_expired(&mut self, now: Instant) -> Vec<String> {
        let is_expired = |channel: &ChannelEntry| match channel.idle_since {
            // A requested channel is confirmed first: otherwise that confirmation would count for a later subscription.
            Some(left) => {
                channel.state != SubscriptionState::Requested
                    && (!channel.lingers || now >= left + LINGER_TIME)
            }
            None => false,
        };
        let expired =
            self.channels.iter().filter(|(_, channel)| is_expired(channel)).map(|(name, _)| name.clone());
        let expired: Vec<String> = expired.collect();
        self.lingering -= expired.len();
        expired.iter().for_each(|name| drop(self.channels.remove(name)));
        expired
    }

    /// Whether a channel is subscribed.
    pub(super) fn is_subscribed(&self, name: &str) -> bool {
        self.channels.get(name).is_some_and(|channel| channel.state == SubscriptionState::Subscribed)
    }

    /// Whether a channel has a subscriber.
    pub(super) fn has_subscriber(&self, name: &str) -> bool {
        self.channels.get(name).is_some_and(|channel| channel.idle_since.is_none())
    }

    /// Where a channel's messages go; `None` if it is unknown.
    pub(super) fn target(&self, name: &str) -> Option<MessageTarget> {
        let channel = self.channels.get(name)?;
        Some(channel.handler.clone().map_or(MessageTarget::Common, MessageTarget::Handler))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn nothing() -> Option<NotificationHandler> {
        Some(Arc::new(|_: &str| {}))
    }

    fn sorted(mut names: Vec<String>) -> Vec<String> {
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_subscriber_that_returns_soon_finds_the_subscription_intact() {
        let (mut channels, now) = (ChannelSubscriptions::default(), Instant::now());
        channels.add_subscriber("a", nothing(), true);
        channels.add_subscriber("a", nothing(), true);
        assert_eq!(channels.take_pending(9), (0, vec!["a".into()]));
        assert!(
            channels.take_pending(9).1.is_empty() && !channels.is_subscribed("a"),
            "it is asked for once"
        );
        channels.mark_subscribed(&["a".into()]);
        channels.remove_subscriber("a", now);
        assert!(channels.has_subscriber("a") && channels.take_expired(now + LINGER_TIME).is_empty());
        channels.remove_subscriber("a", now);
        assert!(channels.take_expired(now).is_empty() && channels.is_subscribed("a"));
        channels.add_subscriber("a", nothing(), true);
        assert!(channels.take_expired(now + 2 * LINGER_TIME).is_empty());
        channels.remove_subscriber("a", now);
        assert_eq!(channels.take_expired(now + LINGER_TIME), ["a"]);
        assert!(!channels.is_subscribed("a") && channels.target("a").is_none());
    }

    #[tokio::test]
    async fn a_flood_of_channels_without_subscribers_does_not_linger() {
        let (mut channels, now) = (ChannelSubscriptions::default(), Instant::now());
        let names: Vec<String> = (0..2 * MAX_LINGERING).map(|number| number.to_string()).collect();
        names.iter().for_each(|name| channels.add_subscriber(name, nothing(), true));
        assert_eq!(channels.take_pending(100).1.len(), 100);
        assert!(channels.take_pending(usize::MAX).1.len() == names.len() - 100);
        channels.mark_subscribed(&names);
        names.iter().for_each(|name| channels.remove_subscriber(name, now));
        assert_eq!(channels.take_expired(now).len(), MAX_LINGERING);
        assert_eq!(
            (channels.take_expired(now + LINGER_TIME).len(), channels.channels.len()),
            (MAX_LINGERING, 0)
        );
        assert_eq!(channels.lingering, 0);
    }

    #[tokio::test]
    async fn after_a_loss_all_channels_with_subscribers_are_requested_again() {
        let (mut channels, now) = (ChannelSubscriptions::default(), Instant::now());
        for name in ["a", "b", "c"] {
            channels.add_subscriber(name, nothing(), false);
        }
        let (_, requested) = channels.take_pending(2);
        channels.mark_subscribed(&requested);
        channels.remove_subscriber("c", now);
        channels.reset();
        assert_eq!(sorted(channels.take_pending(9).1), ["a", "b"]);
        assert!(!channels.is_subscribed(&requested[0]) && channels.lingering == 0);
        // A channel that was requested and then left is unsubscribed after its confirmation.
        channels.remove_subscriber("a", now);
        assert!(channels.take_expired(now).is_empty());
        channels.mark_subscribed(&["a".into(), "b".into()]);
        assert_eq!(channels.take_expired(now), ["a"]);
    }
}
