//! This library's own streams of server-sent events: topics, tasks and the operators' page.

use std::convert::Infallible;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::stream;

use crate::http::error::RequestError;
use crate::http::streams::event_stream::{self, Framing, StreamOptions};
use crate::http::streams::on_drain::OnDrain;
use crate::http::streams::worker_streams::{StreamPlace, WorkerStreams};

/// What a stream of events is made of.
pub(crate) trait SseSource: Send + 'static {
    /// The next event or events as they go over the wire; `None` ends the response.
    fn next(&mut self) -> impl Future<Output = Option<Bytes>> + Send;
}

/// The response of a source that something else bounds.
pub(crate) fn respond(source: impl SseSource, streams: &WorkerStreams) -> Response {
    respond_in(source, streams.count(), streams)
}

/// The response of a source that takes one of the worker's places: 503 when there is none left.
pub(crate) fn respond_permitted(source: impl SseSource, streams: &WorkerStreams) -> Response {
    match streams.take_place() {
        Some(place) => respond_in(source, place, streams),
        None => RequestError::TooManySubscribers.into_response(),
    }
}

fn respond_in(source: impl SseSource, place: StreamPlace, streams: &WorkerStreams) -> Response {
    let options = StreamOptions {
        framing: Framing::Events,
        drain: streams.drain.clone(),
        on_drain: OnDrain::Close,
        keep_alive_interval: streams.keep_alive_interval,
        place: Some(place),
    };
    let events = stream::unfold(source, |mut source| async move {
        let piece = source.next().await?;
        Some((Ok::<_, Infallible>(piece), source))
    });
    event_stream::respond(Body::from_stream(events), options)
}
