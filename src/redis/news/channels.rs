//! The channels that have listeners on this worker, and which of them are heard. No I/O.
//!
//! A channel without a listener stays subscribed for a moment, because the next one is often there at once. How many may
//! linger so is bounded.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::redis::news::Listener;

/// How long a channel that lingers stays after its last listener has left.
const LINGER: Duration = Duration::from_secs(5);
/// Channels that linger at the same time, at most.
const LINGERING_MAX: usize = 1024;

/// How far a channel's subscription is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The server was not asked yet.
    Wanted,
    /// It was, and has not answered.
    Asked,
    /// It is subscribed to.
    Heard,
}

struct Channel {
    /// None: it is the fleet's common one, whose listeners are those of each kind of news.
    listener: Option<Listener>,
    users: usize,
    state: State,
    lingers: bool,
    /// Since when it has no listener.
    left: Option<Instant>,
}

/// All of a worker's channels.
#[derive(Default)]
pub(super) struct Channels {
    all: HashMap<String, Channel>,
    lingering: usize,
}

/// Where the messages of a channel go.
pub(super) enum To {
    /// To the listeners of each kind of common news.
    Common,
    /// To this one.
    One(Listener),
}

impl Channels {
    /// One more wants a channel.
    pub(super) fn want(&mut self, name: &str, listener: Option<Listener>, lingers: bool) {
        if let Some(channel) = self.all.get_mut(name) {
            channel.users += 1;
            channel.listener = listener;
            channel.lingers = lingers;
            self.lingering -= usize::from(channel.left.take().is_some());
            return;
        }
        let channel = Channel { listener, users: 1, state: State::Wanted, lingers, left: None };
        self.all.insert(name.to_owned(), channel);
    }

    /// One less wants it.
    pub(super) fn leave(&mut self, name: &str, now: Instant) {
        let Some(channel) = self.all.get_mut(name) else { return };
        channel.users = channel.users.saturating_sub(1);
        if channel.users > 0 {
            return;
        }
        channel.lingers &= self.lingering < LINGERING_MAX;
        channel.left = Some(now);
        self.lingering += 1;
    }

    /// The connection is gone: nothing is heard, and channels without a listener are forgotten.
    pub(super) fn lost(&mut self) {
        self.all.retain(|_, channel| channel.left.is_none());
        self.lingering = 0;
        self.all.values_mut().for_each(|channel| channel.state = State::Wanted);
    }

    /// How many are subscribed to, and which are to be besides, at most so many; the answer goes to [`Channels::heard`] or
    /// [`Channels::lost`].
    pub(super) fn ask_for(&mut self, most: usize) -> (usize, Vec<String>) {
        let heard = self.all.values().filter(|channel| channel.state == State::Heard).count();
        let wanted = self.all.iter_mut().filter(|(_, channel)| channel.state == State::Wanted);
        let ask = |(name, channel): (&String, &mut Channel)| {
            channel.state = State::Asked;
            name.clone()
        };
        (heard, wanted.take(most).map(ask).collect())
    }

    /// The server has subscribed these.
    pub(super) fn heard(&mut self, names: &[String]) {
        for name in names {
            if let Some(channel) = self.all.get_mut(name) {
                channel.state = State::Heard;
            }
        }
    }

    /// Channels to unsubscribe from, which are no longer known from here on.
    pub(super) fn give_up(&mut self, now: Instant) -> Vec<String> {
        let is_over = |channel: &Channel| match channel.left {
            // What was asked for is answered first: an answer must not be taken for that of a later subscription.
            Some(left) => channel.state != State::Asked && (!channel.lingers || now >= left + LINGER),
            None => false,
        };
        let over = self.all.iter().filter(|(_, channel)| is_over(channel)).map(|(name, _)| name.clone());
        let over: Vec<String> = over.collect();
        self.lingering -= over.len();
        over.iter().for_each(|name| drop(self.all.remove(name)));
        over
    }

    /// Whether a channel is heard.
    pub(super) fn is_heard(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|channel| channel.state == State::Heard)
    }

    /// Whether a channel has a listener.
    pub(super) fn is_wanted(&self, name: &str) -> bool {
        self.all.get(name).is_some_and(|channel| channel.left.is_none())
    }

    /// Where a channel's messages go; none if it is not known.
    pub(super) fn listener(&self, name: &str) -> Option<To> {
        let channel = self.all.get(name)?;
        Some(channel.listener.clone().map_or(To::Common, To::One))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn nothing() -> Option<Listener> {
        Some(Arc::new(|_: &str| {}))
    }

    fn sorted(mut names: Vec<String>) -> Vec<String> {
        names.sort();
        names
    }

    #[tokio::test]
    async fn who_comes_back_in_a_moment_is_heard_all_the_time() {
        let (mut channels, now) = (Channels::default(), Instant::now());
        channels.want("a", nothing(), true);
        channels.want("a", nothing(), true);
        assert_eq!(channels.ask_for(9), (0, vec!["a".into()]));
        assert!(channels.ask_for(9).1.is_empty() && !channels.is_heard("a"), "it is asked for once");
        channels.heard(&["a".into()]);
        channels.leave("a", now);
        assert!(channels.is_wanted("a") && channels.give_up(now + LINGER).is_empty());
        channels.leave("a", now);
        assert!(channels.give_up(now).is_empty() && channels.is_heard("a"));
        channels.want("a", nothing(), true);
        assert!(channels.give_up(now + 2 * LINGER).is_empty());
        channels.leave("a", now);
        assert_eq!(channels.give_up(now + LINGER), ["a"]);
        assert!(!channels.is_heard("a") && channels.listener("a").is_none());
    }

    #[tokio::test]
    async fn a_flood_of_channels_that_nobody_wants_does_not_linger() {
        let (mut channels, now) = (Channels::default(), Instant::now());
        let names: Vec<String> = (0..2 * LINGERING_MAX).map(|number| number.to_string()).collect();
        names.iter().for_each(|name| channels.want(name, nothing(), true));
        assert_eq!(channels.ask_for(100).1.len(), 100);
        assert!(channels.ask_for(usize::MAX).1.len() == names.len() - 100);
        channels.heard(&names);
        names.iter().for_each(|name| channels.leave(name, now));
        assert_eq!(channels.give_up(now).len(), LINGERING_MAX);
        assert_eq!((channels.give_up(now + LINGER).len(), channels.all.len()), (LINGERING_MAX, 0));
        assert_eq!(channels.lingering, 0);
    }

    #[tokio::test]
    async fn after_a_loss_all_that_is_wanted_is_asked_for_again() {
        let (mut channels, now) = (Channels::default(), Instant::now());
        for name in ["a", "b", "c"] {
            channels.want(name, nothing(), false);
        }
        let (_, asked) = channels.ask_for(2);
        channels.heard(&asked);
        channels.leave("c", now);
        channels.lost();
        assert_eq!(sorted(channels.ask_for(9).1), ["a", "b"]);
        assert!(!channels.is_heard(&asked[0]) && channels.lingering == 0);
        // What was asked for and left meanwhile is left when the answer has come.
        channels.leave("a", now);
        assert!(channels.give_up(now).is_empty());
        channels.heard(&["a".into(), "b".into()]);
        assert_eq!(channels.give_up(now), ["a"]);
    }
}
