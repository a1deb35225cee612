//! Streams under way: listeners and publishers on a fleet, and at the end nothing lost and nothing twice.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::events::delivery_audit::DeliveryReport;
use crate::support::events::publisher::{PublishPlan, PublishedMessage, Publisher};
use crate::support::events::{Clock, Id, SubscribePlan, SubscriberGroup, delivery_audit};
use crate::support::{soak, wait};

/// Publishers, unless a test says otherwise.
const PRESSES: usize = 2;

/// From one message to the next, each publisher: the fleet is to have something left for what happens to it.
const PACE: Duration = Duration::from_millis(5);

/// Longest wait until all clients have all messages: they come again after up to a second, on a busy host.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A crowd, and publishers.
#[derive(Debug)]
pub(crate) struct DeliveryScenario {
    addresses: Vec<SocketAddr>,
    topics: Vec<String>,
    clock: Clock,
    pub(crate) subscribers: SubscriberGroup,
    publishers: Vec<Publisher>,
    published: Vec<PublishedMessage>,
    /// Publishers that there ever were.
    number: usize,
}

impl DeliveryScenario {
    /// Clients of two topics, all of which listen; nothing is published yet.
    #[track_caller]
    pub(crate) fn open(addresses: &[SocketAddr], clients: usize) -> Self {
        Self::with(addresses, &["news", "weather"], clients)
    }

    #[track_caller]
    pub(crate) fn with(addresses: &[SocketAddr], topics: &[&str], clients: usize) -> Self {
        let (clock, topics) = (Clock::start(), topics.iter().map(ToString::to_string).collect::<Vec<_>>());
        let crowd = SubscriberGroup::start(clock, &SubscribePlan::spread(addresses, &topics, clients));
        let all = wait::until_or(TIMEOUT, || crowd.listens());
        assert!(all.is_ok(), "{}", crowd.summary());
        let addresses = addresses.to_vec();
        Self {
            addresses,
            topics,
            clock,
            subscribers: crowd,
            publishers: Vec::new(),
            published: Vec::new(),
            number: 0,
        }
    }

    /// The same with publishers at work, whose first messages all clients have.
    #[track_caller]
    pub(crate) fn busy(addresses: &[SocketAddr], clients: usize) -> Self {
        let mut stage = Self::open(addresses, clients);
        for _ in 0..PRESSES {
            stage.add_publisher(PACE, 0, None);
        }
        wait::until("everybody has heard something", TIMEOUT, || {
            stage.subscribers.all(|record| !record.seen.is_empty())
        });
        stage
    }

    /// One publisher more, of all topics in turn.
    pub(crate) fn add_publisher(&mut self, pace: Duration, size: usize, count: Option<usize>) {
        let (addresses, topics) = (self.addresses.clone(), self.topics.clone());
        self.publishers.push(Publisher::start(
            self.clock,
            self.number,
            PublishPlan { addresses, topics, pace, size, count },
        ));
        self.number += 1;
    }

    /// Messages that were answered so far.
    pub(crate) fn answered(&self) -> usize {
        self.publishers.iter().map(Publisher::answered).sum()
    }

    /// Waits until so many messages more were answered.
    #[track_caller]
    pub(crate) fn more(&self, messages: usize) {
        let goal = self.answered() + messages;
        let done = wait::until_or(TIMEOUT, || self.answered() >= goal);
        assert!(done.is_ok(), "{} of {goal} published, {}", self.answered(), self.subscribers.summary());
    }

    /// Waits until the publishers that have an end are there.
    #[track_caller]
    pub(crate) fn published(&self) {
        let done = wait::until_or(2 * TIMEOUT, || self.publishers.iter().all(Publisher::is_done));
        assert!(done.is_ok(), "{} published, {}", self.answered(), self.subscribers.summary());
    }

    /// Waits until all clients listen.
    #[track_caller]
    pub(crate) fn listens(&self) {
        let all = wait::until_or(TIMEOUT, || self.subscribers.listens());
        assert!(all.is_ok(), "{}", self.subscribers.summary());
    }

    /// Ends publishers and clients; the books, which have to be in order.
    #[track_caller]
    pub(crate) fn close(mut self, name: &str) -> DeliveryReport {
        for press in std::mem::take(&mut self.publishers) {
            self.published.extend(press.finish());
        }
        let last = self.publish_final_messages();
        let got_all = |topic: &str| last.iter().find(|(of, _)| of == topic).map(|(_, id)| *id);
        let all = wait::until_or(TIMEOUT, || {
            self.subscribers.all(|record| got_all(&record.topic).is_some_and(|id| record.has(id)))
        });
        let summary = self.subscribers.summary();
        let records = self.subscribers.stop();
        match delivery_audit::audit(&records, &self.published) {
            Ok(balance) => {
                assert!(all.is_ok(), "{name}: not everybody got the end: {summary}");
                soak::log(name, &balance.to_string());
                balance
            }
            Err(fault) => panic!("{name}: {fault}; {summary}"),
        }
    }

    /// One message more to every topic: a client that has it has had the chance to miss any other.
    fn publish_final_messages(&mut self) -> Vec<(String, Id)> {
        let mut last = Vec::new();
        for topic in self.topics.clone() {
            let id = wait::until_some("a last word is published", TIMEOUT, || {
                let job = PublishPlan {
                    addresses: self.addresses.clone(),
                    topics: vec![topic.clone()],
                    pace: Duration::ZERO,
                    size: 0,
                    count: Some(1),
                };
                self.number += 1;
                let printed = Publisher::start(self.clock, self.number, job).wait();
                let id = printed.iter().find_map(|printed| printed.answer.clone().ok());
                self.published.extend(printed);
                id
            });
            last.push((topic, id));
        }
        last
    }
}
