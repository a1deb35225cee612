//! A client that speaks HTTP/2 without TLS, on hyper's connection and not its pool, which would repeat requests.

use std::net::SocketAddr;
use std::time::Instant;

use axum::body::Body;
use axum::http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::client::{Failure, TIMEOUT};
use crate::support::load_generator::{COUNTER, ClientAction, POSTED, RequestLoss, RequestOutcome};
use crate::support::stand_in;

/// Requests at a time.
const STREAMS: usize = 4;

/// Four requests at a time over one connection, as long as it lasts.
pub(super) fn streams(address: SocketAddr) -> ClientAction {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let mut kept: Option<SendRequest<Body>> = None;
    Box::new(move |book| {
        let begin = Instant::now();
        let outcomes = runtime.block_on(async {
            let usable = match kept.take() {
                Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
                None => None,
            };
            let sender = match usable {
                Some(sender) => sender,
                None => match connect(address).await {
                    Ok(sender) => sender,
                    Err(loss) => return vec![(false, Err(loss))],
                },
            };
            let mut streams = JoinSet::new();
            for posts in (0..STREAMS).map(|number| number == 0) {
                let answer = request(sender.clone(), address, posts);
                streams.spawn(async move { Some((posts, answer.await?)) });
            }
            let outcomes = streams.join_all().await;
            if outcomes.iter().all(|outcome| matches!(outcome, Some((_, Ok(_))))) {
                kept = Some(sender);
            }
            outcomes.into_iter().flatten().collect()
        });
        for (posts, outcome) in outcomes {
            match posts {
                true => book.record_posted(begin, outcome),
                false => book.record(begin, outcome),
            }
        }
    })
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Body>, (RequestLoss, String)> {
    let connected = timeout(TIMEOUT, async {
        if !stand_in::is_one(address) {
            return TcpStream::connect(address).await;
        }
        let stream = stand_in::connect(address)?;
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    });
    let stream = connected.await;
    let stream = stream.map_err(|_| (RequestLoss::TimedOut, "connect".to_owned()))?.map_err(|error| {
        let failure = Failure::from(error);
        (RequestLoss::from(&failure), format!("{failure:?}"))
    })?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One request; none when the connection was closed before it was sent.
async fn request(mut sender: SendRequest<Body>, address: SocketAddr, posts: bool) -> Option<RequestOutcome> {
    let request = match posts {
        true => {
            Request::post(format!("http://{address}/counters/{COUNTER}")).body(Body::from(vec![b'x'; POSTED]))
        }
        false => Request::get(format!("http://{address}/hello")).body(Body::empty()),
    };
    let exchange = async {
        if sender.ready().await.is_err() {
            return None;
        }
        match sender.try_send_request(request.unwrap()).await {
            Ok(response) => Some(read(response).await),
            // A request that is handed back was never sent.
            Err(mut error) => match error.take_message() {
                Some(_) => None,
                None => Some(Err(lost(&error.into_error()))),
            },
        }
    };
    timeout(TIMEOUT, exchange).await.unwrap_or(Some(Err((RequestLoss::TimedOut, String::from("no answer")))))
}

async fn read(response: Response<Incoming>) -> RequestOutcome {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| lost(&error))?.to_bytes();
    if head.status != 200 {
        return Err((RequestLoss::of_status(head.status.as_u16()), format!("{head:?}")));
    }
    if body.is_empty() {
        return Err((RequestLoss::Short, "an empty body".to_owned()));
    }
    let worker = head.headers.get("x-worker-id").and_then(|id| id.to_str().ok()?.parse().ok());
    worker.ok_or_else(|| (RequestLoss::Other, format!("no worker in {head:?}")))
}

fn lost(error: &hyper::Error) -> (RequestLoss, String) {
    let loss = if error.is_incomplete_message() { RequestLoss::Short } else { RequestLoss::Reset };
    (loss, format!("{error:?}"))
}
