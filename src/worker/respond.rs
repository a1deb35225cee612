//! A request between hyper and what answers it: its turn before, the connection's view of the response behind.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Context;
use std::task::Poll;
use std::task::ready;
use std::time::Duration;

use ::http::HeaderValue;
use ::http::Response;
use ::http::StatusCode;
use ::http::header::CONNECTION;
use ::http::request::Parts;

use crate::http;
use crate::scoreboard::refusal::Refusal;
use crate::worker::accept::Answer;
use crate::worker::gate::Gate;
use crate::worker::gate::Ticket;
use crate::worker::gate::Verdict;
use crate::worker::receiving::Receiving;
use crate::worker::refusals::Refusals;
use crate::worker::under_way::Sending;
use crate::worker::under_way::UnderWay;

/// What refusing a request costs that was read already, about.
const REFUSED_READ: Duration = Duration::from_micros(5);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A request until its response is ready to be sent. Only one that waits for its turn costs a box: hyper copies this
/// value, so that it must be as small as it is for most.
pub(super) enum Responding<A: Answer> {
    /// It is answered.
    Answering(A::Answering, Option<UnderWay>),
    /// It waits for its turn.
    Waiting(Boxed<Response<Sending<A::Body>>>),
}

impl<A: Answer> Responding<A> {
    /// It begins now, or begins or is refused when its turn has come at the gate where it `waits`.
    pub(super) fn new(
        waits: Option<(Arc<Gate>, Arc<Refusals>)>,
        answer: &A,
        (head, body, peer): (Parts, Receiving, SocketAddr),
        under_way: UnderWay,
    ) -> Self {
        let Some((gate, refusals)) = waits else {
            return Self::Answering(answer.answer(head, body, peer), Some(under_way));
        };
        let answer = answer.clone();
        Self::Waiting(Box::pin(async move {
            if Ticket::turn(&gate).await == Verdict::Refused {
                under_way.turned_away(Refusal::Overload);
                gate.refused(REFUSED_READ);
                let refusal = refusals.get(Refusal::Overload).response.response(!under_way.is_http2());
                return refusal.map(|body| Sending::new(body.into(), under_way));
            }
            send(answer.answer(head, body, peer).await, under_way)
        }))
    }
}

impl<A: Answer> Future for Responding<A> {
    type Output = Result<Response<Sending<A::Body>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Waiting(waiting) => waiting.as_mut().poll(context).map(Ok),
            Self::Answering(answering, under_way) => {
                let response = ready!(Pin::new(answering).poll(context));
                match under_way.take() {
                    Some(under_way) => Poll::Ready(Ok(send(response, under_way))),
                    // It was answered before, and hyper does not ask again.
                    None => Poll::Pending,
                }
            }
        }
    }
}

/// The response as the connection sends it.
fn send<B>(mut response: Response<B>, under_way: UnderWay) -> Response<Sending<B>> {
    let mut lasts = false;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        under_way.upgrades();
        lasts = true;
    }
    if let Some(sign) = response.extensions_mut().remove::<http::SignOfLife>() {
        under_way.can_sign(sign);
        lasts = true;
    }
    // One that lasts would not end soon, and one that ends anyway is none of those that are too many.
    let may_stay = || !lasts && !response.headers().contains_key(CONNECTION);
    if under_way.must_close(may_stay) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| Sending::new(body, under_way))
}
