//! A request between hyper and its handler: the wait for its turn, and what the connection does with the response.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use ::http::header::CONNECTION;
use ::http::request::Parts;
use ::http::{HeaderValue, Response, StatusCode};

use crate::http;
use crate::http::real_ip::ConnectionPeer;
use crate::scoreboard::refusal_reason::RefusalReason;
use crate::worker::admission::{AdmissionGate, AdmissionOutcome};
use crate::worker::connection::in_flight::{InFlightRequest, TrackedBody};
use crate::worker::connection::incoming_body::IncomingBody;
use crate::worker::connection::refusals::RefusalResponses;
use crate::worker::handler::RequestHandler;

/// What refusing a request costs that was read already, about.
const READ_REFUSAL_COST: Duration = Duration::from_micros(5);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A request until its response is ready to be sent. Only one that waits for its turn costs a box: hyper copies this
/// value, so that it must be as small as it is for most.
pub(in crate::worker) enum PendingResponse<A: RequestHandler> {
    /// It is answered.
    Handling(A::HandlerFuture, Option<InFlightRequest>),
    /// It waits for its turn.
    Queued(Boxed<Response<TrackedBody<A::HandlerBody>>>),
}

impl<A: RequestHandler> PendingResponse<A> {
    /// It begins now, or begins or is refused when its turn has come at the gate where it `waits`.
    pub(in crate::worker) fn new(
        queue: Option<(Arc<AdmissionGate>, Arc<RefusalResponses>)>,
        handler: &A,
        (head, body, peer): (Parts, IncomingBody, ConnectionPeer),
        request: InFlightRequest,
    ) -> Self {
        let Some((gate, refusals)) = queue else {
            return Self::Handling(handler.handle(head, body, peer), Some(request));
        };
        let handler = handler.clone();
        Self::Queued(Box::pin(async move {
            if gate.wait_for_turn().await == AdmissionOutcome::Refused {
                request.count_refused(RefusalReason::Overload);
                gate.record_refusal(READ_REFUSAL_COST);
                let refusal = refusals.get(RefusalReason::Overload).response.to_response(!request.is_http2());
                return refusal.map(|body| TrackedBody::new(body.into(), request));
            }
            track_response(handler.handle(head, body, peer).await, request)
        }))
    }
}

impl<A: RequestHandler> Future for PendingResponse<A> {
    type Output = Result<Response<TrackedBody<A::HandlerBody>>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Queued(waiting) => waiting.as_mut().poll(context).map(Ok),
            Self::Handling(future, request) => {
                let response = ready!(Pin::new(future).poll(context));
                match request.take() {
                    Some(request) => Poll::Ready(Ok(track_response(response, request))),
                    // It was answered before, and hyper does not poll it again.
                    None => Poll::Pending,
                }
            }
        }
    }
}

/// The response as the connection sends it.
fn track_response<B>(mut response: Response<B>, request: InFlightRequest) -> Response<TrackedBody<B>> {
    let mut lasts = false;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        request.set_upgraded();
        lasts = true;
    }
    if let Some(sign) = response.extensions_mut().remove::<http::KeepAliveTrigger>() {
        request.add_sign_of_life(sign);
        lasts = true;
    }
    // One that lasts would not end soon, and one that ends anyway is none of those that are too many.
    let may_stay = || !lasts && !response.headers().contains_key(CONNECTION);
    if request.must_close(may_stay) {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response.map(|body| TrackedBody::new(body, request))
}
