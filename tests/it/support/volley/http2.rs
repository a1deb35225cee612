//! A client that speaks HTTP/2 without TLS, on hyper's connection and not its pool, which would repeat requests.

use std::net::SocketAddr;
use std::time::Instant;

use axum::body::Body;
use axum::http::Request;
use axum::http::Response;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioExecutor;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::support::client::Failure;
use crate::support::client::PATIENCE;
use crate::support::volley::Act;
use crate::support::volley::COUNTER;
use crate::support::volley::Loss;
use crate::support::volley::Outcome;
use crate::support::volley::POSTED;

/// Requests at a time.
const STREAMS: usize = 4;

/// Four requests at a time over one connection, as long as it lasts.
pub(super) fn streams(address: SocketAddr) -> Act {
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
                let asked = ask(sender.clone(), address, posts);
                streams.spawn(async move { Some((posts, asked.await?)) });
            }
            let outcomes = streams.join_all().await;
            if outcomes.iter().all(|outcome| matches!(outcome, Some((_, Ok(_))))) {
                kept = Some(sender);
            }
            outcomes.into_iter().flatten().collect()
        });
        for (posts, outcome) in outcomes {
            match posts {
                true => book.note_posted(begin, outcome),
                false => book.note(begin, outcome),
            }
        }
    })
}

async fn connect(address: SocketAddr) -> Result<SendRequest<Body>, (Loss, String)> {
    let stream = timeout(PATIENCE, TcpStream::connect(address)).await;
    let stream = stream.map_err(|_| (Loss::TimedOut, "connect".to_owned()))?.map_err(|error| {
        let failure = Failure::from(error);
        (Loss::from(&failure), format!("{failure:?}"))
    })?;
    let _ = stream.set_nodelay(true);
    let (sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(|error| lost(&error))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// One request; none when the connection was closed before it was sent.
async fn ask(mut sender: SendRequest<Body>, address: SocketAddr, posts: bool) -> Option<Outcome> {
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
    timeout(PATIENCE, exchange).await.unwrap_or(Some(Err((Loss::TimedOut, String::from("no answer")))))
}

async fn read(response: Response<Incoming>) -> Outcome {
    let (head, body) = response.into_parts();
    let body = body.collect().await.map_err(|error| lost(&error))?.to_bytes();
    if head.status != 200 {
        return Err((Loss::of_status(head.status.as_u16()), format!("{head:?}")));
    }
    if body.is_empty() {
        return Err((Loss::Short, "an empty body".to_owned()));
    }
    let worker = head.headers.get("x-worker-id").and_then(|id| id.to_str().ok()?.parse().ok());
    worker.ok_or_else(|| (Loss::Other, format!("no worker in {head:?}")))
}

fn lost(error: &hyper::Error) -> (Loss, String) {
    let loss = if error.is_incomplete_message() { Loss::Short } else { Loss::Reset };
    (loss, format!("{error:?}"))
}
