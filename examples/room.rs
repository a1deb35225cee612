//! A chat over WebSockets: on every worker, and no client is cut off at a reload without being told to come again.
//!
//! `cargo run --example room`, then open `http://localhost:3000/` in two browsers, and reload the fleet under them.
//!
//! A client first gets `{"after": id}`, then `{"id": …, "text": …}` for each line, and `{"gap": true}` where lines may be
//! missing. It keeps the last id and opens its next socket with `?after=`; a line of its own that has not come back by then
//! was not published, and it sends it again.

use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get};
use regatta::broadcast::{Event, InvalidTopic, Topic};
use regatta::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use regatta::{Context, Fleet, LastEventId};
use serde_json::json;

fn main() -> std::process::ExitCode {
    Fleet::new(app).run()
}

async fn app(cx: Context) -> Result<Router, InvalidTopic> {
    let room = cx.fleet().broadcast().topic("room")?;
    let routes = Router::new().route("/", get(page)).route("/room.js", get(script)).route("/chat", any(join));
    Ok(routes.with_state(room))
}

async fn join(upgrade: WebSocketUpgrade, State(room): State<Topic>, last: LastEventId) -> Response {
    upgrade.max_message_size(4096).on_upgrade(move |socket| chat(socket, room, last))
}

/// Ends when the client leaves or falls behind, or when the worker drains: then the client was told 1012 and is back in a
/// moment. Only `recv` ends it, so that what the client said before it learnt of the end is still published.
async fn chat(mut socket: WebSocket, room: Topic, last: LastEventId) {
    let later = CloseFrame { code: 1013, reason: "come again later".into() };
    let Ok(mut heard) = room.subscribe(last).await else { return socket.close(Some(later)).await };
    let after = heard.last_id().map(|id| id.to_string());
    let _ = socket.send(Message::text(json!({ "after": after }).to_string())).await;
    loop {
        tokio::select! {
            said = socket.recv() => match said {
                Some(Ok(Message::Text(text))) => if room.publish(&text).await.is_err() { return },
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            event = heard.next() => {
                let line = match event {
                    Some(Event::Message(line)) => json!({ "id": line.id().to_string(), "text": line.text() }),
                    Some(Event::Gap) => json!({ "gap": true }),
                    Some(_) | None => return socket.close(Some(later)).await,
                };
                let _ = socket.send(Message::text(line.to_string())).await;
            }
        }
    }
}

/// The page's own script and its socket, and nothing else: without this header a fleet's pages run no script.
async fn page() -> impl IntoResponse {
    (
        [(header::CONTENT_SECURITY_POLICY, "default-src 'none'; script-src 'self'; connect-src 'self'")],
        Html(PAGE),
    )
}

async fn script() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/javascript")], SCRIPT)
}

const PAGE: &str = r#"<!doctype html>
<meta charset="utf-8">
<title>Room</title>
<script src="/room.js" defer></script>
<form><input name="line" autocomplete="off" autofocus><button>Say</button></form>
<ol id="lines"></ol>
"#;

const SCRIPT: &str = r##"
var socket, last = "", unheard = [];

function say(line) {
  unheard.push(line);
  if (socket.readyState === WebSocket.OPEN) socket.send(line);
}

function join() {
  const own = socket = new WebSocket(`${location.origin.replace("http", "ws")}/chat?after=${last}`);
  own.onopen = () => setTimeout(() => own === socket && unheard.forEach(line => own.send(line)), 1000);
  own.onmessage = ({ data }) => {
    const { id, after, text } = JSON.parse(data);
    last = id ?? after ?? last;
    if (text === undefined) return;
    const at = unheard.indexOf(text);
    if (at >= 0) unheard.splice(at, 1);
    document.querySelector("#lines").append(Object.assign(document.createElement("li"), { textContent: text }));
  };
  own.onclose = ({ code }) => {
    document.body.dataset.closed = `${document.body.dataset.closed ?? ""} ${code}`.trim();
    setTimeout(join, 50 + Math.random() * 450);
  };
}

document.querySelector("form").onsubmit = event => {
  event.preventDefault();
  say(event.target.line.value);
  event.target.reset();
};
join();
"##;
