//! A stream made of an async step: what is awaited may be dropped and polled again, and nothing is lost.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

type Step<S, T> = Pin<Box<dyn Future<Output = (S, Option<T>)> + Send>>;

/// A source of items, one step at a time.
pub(super) struct Stepwise<S, T> {
    state: StepState<S, T>,
    step: fn(S) -> Step<S, T>,
}

enum StepState<S, T> {
    /// Between two steps.
    Idle(S),
    /// A step is under way and has the source.
    Running(Step<S, T>),
    /// No item follows.
    Finished,
}

impl<S, T> Stepwise<S, T> {
    /// `step` takes the source and gives it back with the next item, or with `None` at the end.
    pub(super) fn new(source: S, step: fn(S) -> Step<S, T>) -> Self {
        Self { state: StepState::Idle(source), step }
    }

    /// The source, between two steps.
    pub(super) fn source(&self) -> Option<&S> {
        match &self.state {
            StepState::Idle(source) => Some(source),
            StepState::Running(_) | StepState::Finished => None,
        }
    }

    /// No item follows.
    pub(super) fn finish(&mut self) {
        self.state = StepState::Finished;
    }

    pub(super) fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<T>> {
        if let StepState::Idle(_) = &self.state
            && let StepState::Idle(source) = mem::replace(&mut self.state, StepState::Finished)
        {
            self.state = StepState::Running((self.step)(source));
        }
        let StepState::Running(step) = &mut self.state else { return Poll::Ready(None) };
        let (source, item) = ready!(step.as_mut().poll(context));
        self.state = if item.is_some() { StepState::Idle(source) } else { StepState::Finished };
        Poll::Ready(item)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures_util::FutureExt;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn an_item_is_not_lost_when_the_wait_for_it_is_dropped() {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut steps = Stepwise::new(receiver, |mut receiver: mpsc::UnboundedReceiver<u8>| {
            Box::pin(async move {
                let item = receiver.recv().await;
                (receiver, item)
            })
        });
        assert_eq!(poll_fn(|context| steps.poll_next(context)).now_or_never(), None);
        sender.send(1).unwrap();
        sender.send(2).unwrap();
        assert_eq!(poll_fn(|context| steps.poll_next(context)).await, Some(1));
        assert!(steps.source().is_some());
        assert_eq!(poll_fn(|context| steps.poll_next(context)).await, Some(2));
        drop(sender);
        assert_eq!(poll_fn(|context| steps.poll_next(context)).await, None);
        assert_eq!(poll_fn(|context| steps.poll_next(context)).await, None, "it stays at its end");
    }
}
